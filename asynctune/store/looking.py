"""Owns the first look of an opening for writing: whether the place can be, and what its copy holds. Changes nothing.

It comes before the directory is locked, or made. A bucket that does not answer is noted, and said soon: whether the
experiment goes on without it is decided when the directory was looked at too (`store.reconcile`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from asynctune.clock import Clock
from asynctune.errors import ConfigError, ExperimentNotFoundError, StorageError
from asynctune.files import LocalFiles
from asynctune.state.epochs import list_epochs
from asynctune.state.mirror.register import open_register
from asynctune.state.mirror.relations import Position
from asynctune.storage.retry import RetryPolicy, overheard
from asynctune.store.access import Access
from asynctune.store.finding import STATE_DIR, check_apart, is_copy, storage_error
from asynctune.store.opening import exists_error
from asynctune.store.place import Place, Remote
from asynctune.store.remembering import NOTE

__all__ = ["Seen", "check_place", "look_at_copy", "may_do_without"]

logger = logging.getLogger("asynctune")

T = TypeVar("T")

_SILENT_S: Final = 5.0
"""After how many seconds it is said that a bucket does not answer."""

_KNOWN_S: Final = 25.0
"""How long a bucket is asked without which the experiment can go on, seconds; for others, as long as requests are."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a copy holds.

    Attributes:
        position: Where its state stands; `None`: there is no experiment, or that cannot be told.
        away: Why it cannot be told.
        is_void: There is not even the claim of an opening, for certain.
    """

    position: Position | None
    away: StorageError | None = None
    is_void: bool = False

    @property
    def exists(self) -> bool:
        """Whether there is an experiment, for certain."""
        return self.position is not None


def check_place(place: Place, files: LocalFiles) -> None:
    """Refuse what can be seen to be wrong before anything is made. Blocking, for a thread.

    Raises:
        ConfigError: The place cannot be.
    """
    path, remote = place.path, place.remote
    uri = None if remote is None else remote.uri
    directory = uri.prefix if uri is not None and uri.scheme == "file" else None
    if directory is not None:
        check_apart(path, directory)
    if place.by_uri:
        if directory is not None and not is_copy(directory, files):
            raise ConfigError(
                f"local_dir stages an experiment opened from its copy, and {remote} is none; leave it out"
            )
    elif is_copy(path, files):
        raise ConfigError(
            f"{path} is the copy of an experiment, kept by upload_dir; to go on with it, say where it is staged: "
            "local_dir=..."
        )
    if place.remembers and place.options and not files.exists(f"{path}/{STATE_DIR}/{NOTE}"):
        raise ConfigError(
            f"storage_options are for a copy in a bucket, and {path} has none; leave them out, or give "
            "sync_config=SyncConfig(upload_dir=...)"
        )


def may_do_without(place: Place, mode: str, files: LocalFiles) -> bool:
    """Whether this disk seems to have an experiment that goes on if the bucket is away. Blocking, for a thread.

    Raises:
        StorageError: The disk refused.
    """
    if place.by_uri or mode == "create":
        return False
    state_dir = f"{place.path}/{STATE_DIR}"
    try:
        return files.exists(state_dir) and bool(list_epochs(state_dir, files))
    except OSError as error:
        raise storage_error("open", place.path, error) from error


async def look_at_copy(
    access: Access, remote: Remote, place: Place, mode: str, *, clock: Clock, known: bool
) -> Seen:
    """What the copy holds. A bucket that is away is no error here.

    Args:
        access: The way to it.
        remote: Where it is.
        place: What is opened.
        mode: As for `ExperimentStore.open`.
        clock: Time.
        known: The experiment can go on without the bucket, so that it is not asked for long.

    Raises:
        ExperimentExistsError, ExperimentNotFoundError: What is there does not fit the mode.
        CorruptStateError, UnsupportedFormatError: It cannot be read.
        StorageError: It was refused, for good.
    """

    async def look() -> Seen:
        await access.look(may_make=not place.by_uri)
        register = await open_register(access.storage, writing=False, clock=clock)
        named = await register.read()
        if named is None:
            # what a syncer keeps has no claims
            return Seen(None, is_void=remote.uri is not None)
        return Seen(named.current.position if named.current.seq > 0 else None)

    try:
        # what a syncer does to look may take its time
        seen = await (look() if remote.uri is None else _ask(look, remote, place, clock, known=known))
    except StorageError as error:
        if not error.retryable:
            raise
        return Seen(None, error)
    if seen.exists and mode == "create":
        raise exists_error(str(remote))
    if place.by_uri and not seen.exists:
        # nothing is made on this disk for an experiment that is not there
        raise ExperimentNotFoundError(
            f"there is no experiment at {remote}; check the location. A new one is made in a directory, "
            "with sync_config=SyncConfig(upload_dir=...) for its copy"
        )
    return seen


async def _ask(
    request: Callable[[], Awaitable[T]], remote: Remote, place: Place, clock: Clock, *, known: bool
) -> T:
    """Await `request()`; say so if that takes long, and give up early where the answer can do without.

    Raises:
        StorageError: Of the request; or that there was no answer, which is retryable.
    """
    with overheard() as trouble:

        async def speak() -> None:
            await clock.sleep(_SILENT_S)
            otherwise = f"the experiment goes on from {place.path}" if known else "this opening fails"
            logger.warning(
                "%s does not answer (%s); it is asked for %.0f s in all, then %s",
                remote,
                trouble.said or f"nothing came for {_SILENT_S:.0f} s",
                _KNOWN_S if known else RetryPolicy().total_s,
                otherwise,
            )

        speaking = asyncio.create_task(speak())
        try:
            async with clock.timeout(_KNOWN_S if known else None):
                return await request()
        except TimeoutError as cause:
            raise StorageError(
                trouble.said
                or f"{remote}: no answer within {_KNOWN_S:.0f} s; check the network and the endpoint",
                operation="read",
                retryable=True,
            ) from cause
        finally:
            speaking.cancel()
            await asyncio.wait([speaking])
