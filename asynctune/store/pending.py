"""Owns the way from the arguments of `ExperimentStore.open` to an open store, awaited or entered as a context."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from asynctune.clock import Clock, SystemClock
from asynctune.config import CheckpointConfig, SyncConfig, checkpoint_period_s
from asynctune.errors import ConfigError
from asynctune.files import LocalFiles
from asynctune.state.pacing import CommitPacing
from asynctune.store.engine import Engine
from asynctune.store.events import EventStream
from asynctune.store.opening import Mode, check_mode
from asynctune.store.place import Place, place_of
from asynctune.store.reader import Reader

if TYPE_CHECKING:
    from asynctune.store.store import ExperimentStore

__all__ = ["PendingStore", "prepare"]

S = TypeVar("S", bound="ExperimentStore")


def prepare(
    owner: type[S],
    location: str | os.PathLike[str],
    mode: Mode,
    *,
    local_dir: str | os.PathLike[str] | None,
    sync_config: SyncConfig | None,
    checkpoint_config: CheckpointConfig | None,
    checkpoint_period: float | str,
    storage_options: Mapping[str, Any] | None,
    max_interval_s: float | None,
    tensorboard: bool,
    clock: Clock | None,
    files: LocalFiles | None,
) -> PendingStore[S]:
    """Check the arguments of `ExperimentStore.open`, where they are explained.

    Raises:
        ConfigError: One of them cannot work.
    """
    check_mode(mode)
    for name, value, kind in (
        ("sync_config", sync_config, SyncConfig),
        ("checkpoint_config", checkpoint_config, CheckpointConfig),
    ):
        if value is not None and not isinstance(value, kind):
            msg = f"{name} must be a {kind.__name__} or None, not {type(value).__name__}"
            raise ConfigError(msg)
    if max_interval_s is not None and not (isinstance(max_interval_s, int | float) and max_interval_s > 0):
        msg = f"max_interval_s must be a number of seconds above 0, or None, not {max_interval_s!r}"
        raise ConfigError(msg)
    place = place_of(
        location, mode, local_dir=local_dir, sync_config=sync_config, storage_options=storage_options
    )
    return PendingStore(
        owner,
        place,
        mode,
        clock=clock or SystemClock(),
        files=files or LocalFiles(),
        pacing=CommitPacing(checkpoint_period_s(checkpoint_period), max_interval_s),
        checkpoint_config=checkpoint_config,
        tensorboard=tensorboard,
    )


class PendingStore(Generic[S]):
    """A store about to be opened: `await` it, or enter it with `async with`."""

    def __init__(
        self,
        owner: type[S],
        place: Place,
        mode: Mode,
        *,
        clock: Clock,
        files: LocalFiles,
        **settings: Any,
    ) -> None:
        self._owner = owner
        self._place = place
        self._mode: Mode = mode
        self._clock = clock
        self._files = files
        self._settings = settings
        self._store: S | None = None

    def __await__(self) -> Generator[Any, None, S]:
        return self._open().__await__()

    async def _open(self) -> S:
        events = EventStream()
        engine, reader, mode = None, None, self._mode
        if mode == "read":
            reader = await Reader.start(self._place, clock=self._clock, files=self._files)
        else:
            engine = await Engine.start(
                self._place, mode, clock=self._clock, files=self._files, events=events, **self._settings
            )
            mode = "resume" if engine.opening.resumed else "create"
        # after the caller's next steps up to its first await, so that it can subscribe before
        asyncio.get_running_loop().call_soon(events.opened)
        return self._owner(
            self._place,
            mode,
            engine=engine,
            reader=reader,
            events=events,
            clock=self._clock,
            files=self._files,
        )

    async def __aenter__(self) -> S:
        self._store = await self._open()
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._store is not None
        await self._store.__aexit__(kind, error, traceback)
