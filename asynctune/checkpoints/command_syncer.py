"""Owns `CommandSyncer`: a `Syncer` made of command templates. What a command is run by is `commands`' affair."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from typing import Final

from asynctune.checkpoints.commands import run_command
from asynctune.checkpoints.scrubbing import scrubbed, scrubbed_end, secret_options, secret_values
from asynctune.errors import ConfigError, StorageError

__all__ = ["CommandSyncer"]

_MOST_OUTPUT: Final = 2048
_FIELD: Final = re.compile(r"\{(\w+)\}")
_SHELL: Final = re.compile(r"[|&;<>()]+|\d?[<>]+(&\d)?")
_EXPANDED: Final = re.compile(r"\$[A-Za-z_{(]|`|^~")
_ASSIGNMENT: Final = re.compile(r"\w+=.*", re.DOTALL)


class CommandSyncer:
    """Copies with commands such as `aws s3 sync {source} {target}`.

    A template is split as a shell would split it, and run without one: no variables, pipes or wildcards. Each field
    stays within its own argument, whatever it holds. The exit code 0 says that all is done; any other is a failure,
    whose message has the end of the output, without what may be a credential.

    Args:
        sync_up_template: Copies the local directory `{source}` to the remote `{target}`.
        sync_down_template: Copies the remote directory `{source}` to the local `{target}`.
        delete_template: Deletes the remote directory `{target}`.
        exclude_template: How one `{pattern}` is excluded, such as `--exclude={pattern}`. Where a template of the two
            above has the argument `{options}`, it is replaced by this for each pattern. asynctune itself excludes
            nothing.

    Raises:
        ConfigError: A template that cannot work.

    Example::

        SyncConfig(
            upload_dir="s3://bucket/runs",
            syncer=CommandSyncer(
                sync_up_template="aws s3 sync {source} {target}",
                sync_down_template="aws s3 sync {source} {target}",
                delete_template="aws s3 rm --recursive {target}",
            ),
        )
    """

    def __init__(
        self,
        sync_up_template: str,
        sync_down_template: str,
        delete_template: str,
        *,
        exclude_template: str | None = None,
    ) -> None:
        both = {"source", "target"}
        self._up = _Template("sync_up_template", sync_up_template, both, {"options"})
        self._down = _Template("sync_down_template", sync_down_template, both, {"options"})
        self._delete = _Template("delete_template", delete_template, {"target"})
        self._exclude = (
            None
            if exclude_template is None
            else _Template("exclude_template", exclude_template, {"pattern"}, is_command=False)
        )
        if self._exclude is not None and not (self._up.has_options or self._down.has_options):
            raise ConfigError("exclude_template was given, and no template has {options}, where it would go")

    def __repr__(self) -> str:
        return f"<CommandSyncer: {self._up.program}>"

    async def sync_up(self, local_dir: str, remote_dir: str, exclude: Sequence[str] | None = None) -> None:
        """Run `sync_up_template`.

        Raises:
            StorageError: The command failed, or cannot be started.
            ConfigError: `exclude` was given, and the templates do not say how.
        """
        await self._run("sync_up", remote_dir, self._up, local_dir, remote_dir, exclude)

    async def sync_down(self, remote_dir: str, local_dir: str, exclude: Sequence[str] | None = None) -> None:
        """Run `sync_down_template`. Errors as for `sync_up`."""
        await self._run("sync_down", remote_dir, self._down, remote_dir, local_dir, exclude)

    async def delete(self, remote_dir: str) -> None:
        """Run `delete_template`. Errors as for `sync_up`."""
        await self._run("delete", remote_dir, self._delete, "", remote_dir)

    async def _run(
        self,
        operation: str,
        remote_dir: str,
        template: _Template,
        source: str,
        target: str,
        exclude: Sequence[str] | None = None,
    ) -> None:
        options: list[str] = []
        if exclude:
            if self._exclude is None or not template.has_options:
                raise ConfigError(
                    f"{operation} cannot leave anything out: give exclude_template, and {{options}} in {template.name}"
                )
            for pattern in exclude:
                options += self._exclude.filled({"pattern": _no_option(pattern, "[-]")})
        fields = {"source": _no_option(source, "./-"), "target": _no_option(target, "./-")}
        arguments = template.filled(fields, options)
        shown = scrubbed(remote_dir)
        try:
            end = await run_command(arguments)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "an argument has a NUL in it"
            raise StorageError(
                f"{operation}, {shown}: the command {template.program!r} cannot be started: {reason}",
                operation=operation,
                key=shown,
                hint="install it, or give its absolute path in the template",
            ) from None
        if end.code != 0:
            secrets = secret_values(os.environ) | secret_options(arguments)
            output = scrubbed_end(end.output.decode("utf-8", "replace"), _MOST_OUTPUT, secrets)
            raise StorageError(
                f"{operation}, {shown}: the command {template.program!r} {_ending(end.code)}"
                + (f"; its output ends with: {output}" if output else ", and said nothing"),
                operation=operation,
                key=shown,
                retryable=True,
            )


class _Template:
    """A command, split into arguments, with fields to be filled in."""

    def __init__(
        self,
        name: str,
        text: str,
        needed: set[str],
        allowed: set[str] | frozenset[str] = frozenset(),
        *,
        is_command: bool = True,
    ) -> None:
        if not isinstance(text, str):
            raise ConfigError(f"{name} must be a text, not {type(text).__name__}")
        try:
            self._arguments = shlex.split(text)
        except ValueError as error:
            raise ConfigError(f"{name} cannot be split into arguments: {error}") from None
        self.name = name
        self.program = os.path.basename(self._arguments[0]) if self._arguments else ""
        self.has_options = "{options}" in self._arguments
        for argument in self._arguments:
            if _SHELL.fullmatch(argument) or _EXPANDED.search(argument):
                raise ConfigError(
                    f"{name} is run without a shell, which would interpret a part of it; use a script"
                )
        fields = {field for argument in self._arguments for field in _FIELD.findall(argument)}
        if missing := needed - fields:
            raise ConfigError(
                f"{name} has no {_braced(missing)}; without it the command cannot know what to do"
            )
        if unknown := fields - needed - allowed:
            raise ConfigError(f"{name} has {_braced(unknown)}, which stands for nothing")
        if "options" in fields and not self.has_options:
            raise ConfigError(f"{name}: {{options}} must be an argument by itself")
        if is_command and _FIELD.search(self._arguments[0]):
            raise ConfigError(f"{name} must begin with a command")
        if is_command and _ASSIGNMENT.fullmatch(self._arguments[0]):
            raise ConfigError(
                f"{name} is run without a shell: begin it with the command env, or set the variable before"
            )

    def filled(self, fields: Mapping[str, str], options: Sequence[str] = ()) -> list[str]:
        """The arguments, with each field in its place."""
        made: list[str] = []
        for argument in self._arguments:
            if argument == "{options}":
                made += options
            else:
                made.append(_FIELD.sub(lambda field: fields[field[1]], argument))
        return made


def _no_option(text: str, instead: str) -> str:
    """The text, spelled so that no command takes it for an option."""
    return instead + text[1:] if text.startswith("-") else text


def _braced(names: set[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names))


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
