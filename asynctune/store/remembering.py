"""Owns the note of where an experiment's copy is: `.asynctune/MIRROR`. With it, the next opening needs not be told.

Text for people and programs, in JSON; no credentials. Blocking, for a thread.
"""

from __future__ import annotations

import json
from typing import Any, Final

from asynctune.config import SyncConfig
from asynctune.errors import ConfigError, CorruptStateError
from asynctune.files import LocalFiles
from asynctune.storage.uri import parse_uri
from asynctune.store.place import Remote

__all__ = ["NOTE", "forget", "noted", "recall", "remember"]

NOTE: Final = "MIRROR"
"""Name of the file in the state directory."""

_FORM: Final = 1
_MAX_BYTES: Final = 16 << 10
_SETTINGS: Final = ("sync_period", "sync_timeout", "sync_on_checkpoint")


def remember(state_dir: str, remote: Remote, files: LocalFiles) -> None:
    """Write down where the copy is; durable when this returns, and not touched if it says so already.

    Raises:
        OSError: The disk refused.
    """
    settings = {name: getattr(remote.sync, name) for name in _SETTINGS}
    syncer = None if remote.uri is not None else type(remote.sync.syncer).__name__
    value = {"form": _FORM, "uri": str(remote), "syncer": syncer, **settings}
    data = (json.dumps(value, indent=2) + "\n").encode()
    path = f"{state_dir}/{NOTE}"
    if _read(path, files) == data:
        return
    temporary = f"{state_dir}/.{NOTE}.tmp"
    if files.exists(temporary):
        files.unlink(temporary)
    fd = files.create(temporary)
    try:
        files.write_all(fd, data)
        files.sync(fd)
    finally:
        files.close(fd)
    files.rename(temporary, path)
    files.sync_dir(state_dir)


def recall(state_dir: str, files: LocalFiles, options: dict[str, Any]) -> Remote | None:
    """Where the copy is, as it was written down; `None`: there is none.

    Raises:
        ConfigError: It was kept by a `Syncer`, which was not given again.
        CorruptStateError: The note cannot be read; going on without the copy would be worse than asking.
        OSError: The disk refused.
    """
    path = f"{state_dir}/{NOTE}"
    data = _read(path, files)
    if data is None:
        return None
    try:
        value = json.loads(data)
        if value["form"] != _FORM:
            raise ValueError(f"it has form {value['form']!r}, and this asynctune knows {_FORM}")
        if value["syncer"] is not None:
            raise ConfigError(
                f"the copy of this experiment is kept by a {value['syncer']}, which cannot be stored: give it again, "
                f"sync_config=SyncConfig(upload_dir=..., syncer={value['syncer']}(...)), or SyncConfig() to go on "
                "without a copy"
            )
        uri = parse_uri(value["uri"])
        sync = SyncConfig(
            upload_dir=value["uri"].rpartition("/")[0], **{name: value[name] for name in _SETTINGS}
        )
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptStateError(
            f"{path}, which says where the experiment's copy is, cannot be read ({error}); give "
            "sync_config=SyncConfig(upload_dir=...), or SyncConfig() to go on without a copy",
            path=path,
        ) from error
    return Remote.at(uri, sync, options)


def noted(state_dir: str, files: LocalFiles) -> str | None:
    """Where the copy is, for who only looks; `None` also where the note cannot be read."""
    data = _read(f"{state_dir}/{NOTE}", files)
    try:
        return None if data is None else str(json.loads(data)["uri"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def forget(state_dir: str, files: LocalFiles) -> str | None:
    """Remove the note, as the experiment goes on without a copy; where the copy was."""
    path = f"{state_dir}/{NOTE}"
    data = _read(path, files)
    if data is None:
        return None
    files.unlink(path)
    files.sync_dir(state_dir)
    try:
        return str(json.loads(data)["uri"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "its copy"


def _read(path: str, files: LocalFiles) -> bytes | None:
    try:
        return files.read_from(path, 0, _MAX_BYTES)
    except FileNotFoundError:
        return None
