"""Owns the way out: standard output for answers, standard error for everything else, and how a command ends.

Answers are text for people or JSON, never both. An error becomes one message and an exit code, never a
traceback; a reader that closes the pipe ends the command quietly.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn

import click
from rich.console import Console, RenderableType
from rich.live import Live

from asynctune.errors import AsynctuneError
from asynctune.inspect.exits import Exit, exit_for
from asynctune.inspect.jsonout import Report, error_text, json_text
from asynctune.inspect.tables import WIDE, Layout
from asynctune.inspect.text import printable

__all__ = ["Answer", "Screen", "View"]

View = Callable[[Any, Layout], RenderableType]
Answer = tuple[str, Report, View]
"""The kind of a report, the report, and what draws it."""

_STDOUT: Final = 1
_PATIENCE_S: Final = 3.0


class _OutputError(Exception):
    """Standard output does not take what is written."""


class _Console(Console):
    """A console that leaves a closed pipe to its caller."""

    def on_broken_pipe(self) -> NoReturn:
        raise _OutputError from BrokenPipeError()


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """Where and how a command answers.

    Attributes:
        as_json: JSON instead of text.
        color: `False`: no escape sequences at all.
        wide: Do not fit the terminal's width. A pipe or file is always wide, unless `COLUMNS` says otherwise.
        layout: What the reader asked to see; its width is set here.
        waits_for: A bucket, whose answer may take a while; somebody at a terminal is told so.
    """

    as_json: bool = False
    color: bool = True
    wide: bool = False
    layout: Layout = field(default_factory=Layout)
    waits_for: str | None = None

    def answer(self, question: Coroutine[Any, Any, Answer]) -> Exit:
        """Wait for an answer and print it."""
        return _guarded(lambda: self._show(*asyncio.run(self._wait(question))), self._fail)

    async def _wait(self, question: Coroutine[Any, Any, Answer]) -> Answer:
        if self.waits_for is None or sys.stderr is None or not sys.stderr.isatty():
            return await question
        # a bucket that does not answer is asked again for minutes
        said = f"waiting for {printable(self.waits_for)}; Ctrl-C ends it"
        told = asyncio.get_running_loop().call_later(_PATIENCE_S, lambda: click.echo(said, err=True))
        try:
            return await question
        finally:
            told.cancel()

    def follow(self, reports: AsyncGenerator[Report], view: View) -> Exit:
        """Show each report in place of the one before, until Ctrl-C, which is how this ends."""
        code = Exit.FINE

        async def show() -> None:
            nonlocal code
            console = self._console()
            with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
                async with aclosing(reports):
                    async for report in reports:
                        live.update(view(report, self._fitted(console)), refresh=True)
                        code = _found(report)

        def run() -> Exit:
            try:
                asyncio.run(show())
            except KeyboardInterrupt:
                return code
            return code

        return _guarded(run, self._fail)

    def _show(self, kind: str, report: Report, view: View) -> Exit:
        if self.as_json:
            _write(json_text(kind, report))
        else:
            drawn = io.StringIO()
            console = self._console(drawn)
            console.print(view(report, self._fitted(console)), crop=False)  # a command is not cut
            _write(f"{line.rstrip(' ')}\n" for line in drawn.getvalue().splitlines())
        return _found(report)

    def _fail(self, error: AsynctuneError | OSError) -> Exit:
        """To standard error, and as JSON to standard output if that was asked for."""
        code = exit_for(error)
        if self.as_json:
            _write(error_text(error, code))
        click.echo(f"error: {printable(str(error) or type(error).__name__, keep=chr(10))}", err=True)
        return code

    def _console(self, file: io.StringIO | None = None) -> Console:
        terminal = sys.stdout is not None and sys.stdout.isatty()  # `>&-` leaves no standard output at all
        fits = (terminal or "COLUMNS" in os.environ) and not self.wide
        return _Console(
            file=file,
            force_terminal=terminal,
            width=None if fits else WIDE,
            color_system="auto" if self.color else None,
            highlight=False,
            markup=False,
            emoji=False,
        )

    def _fitted(self, console: Console) -> Layout:
        return replace(self.layout, width=console.width)


def _found(report: Report) -> Exit:
    return Exit.PROBLEM if report.problems else Exit.FINE


def _guarded(run: Callable[[], Exit], fail: Callable[[AsynctuneError | OSError], Exit]) -> Exit:
    try:
        try:
            return run()
        except _OutputError:
            raise
        except (AsynctuneError, OSError) as error:
            return fail(error)
    except _OutputError as error:
        # Whatever is still buffered goes nowhere, also when the interpreter flushes it at its end.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, _STDOUT)
        os.close(devnull)
        if isinstance(error.__cause__, BrokenPipeError):
            return Exit.CLOSED_PIPE
        click.echo(f"error: {error}", err=True)
        return Exit.PROBLEM


def _write(parts: Iterable[str]) -> None:
    """Write to standard output and flush, so that what goes wrong does so here."""
    stream = sys.stdout
    if stream is None:
        return
    try:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 shows escapes
        for part in parts:
            stream.write(part)
        stream.flush()
    except OSError as error:
        raise _OutputError(f"cannot write to standard output: {error.strerror}") from error
