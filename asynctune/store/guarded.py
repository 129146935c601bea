"""Owns the refusal of calls that cannot work: after the close, in a forked child, in another loop, on a reader."""

from __future__ import annotations

import asyncio
import os
import threading

from asynctune.errors import StoreClosedError
from asynctune.store.engine import Engine
from asynctune.store.place import Place
from asynctune.store.reader import Reader

__all__ = ["Guarded"]


class Guarded:
    """What every store has: its engine or its reader, and the loop and the process it belongs to."""

    def __init__(self, place: Place, engine: Engine | None, reader: Reader | None) -> None:
        self._where = place
        self._path = place.path
        self._engine = engine
        self._reader = reader
        self._closing: asyncio.Task[None] | None = None
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()

    def _check_open(self) -> None:
        self._check_process()
        if self._closing is not None:
            msg = f"the store of {self._where.shown} is closed; open it again"
            raise StoreClosedError(msg)
        self._check_loop()

    def _check_process(self) -> None:
        # In a forked child there are no threads that could answer: a call would wait for ever.
        if os.getpid() != self._pid:
            msg = (
                f"this store belongs to process {self._pid} and this is its forked child {os.getpid()}; open "
                'the experiment with mode="read" here, and write from the parent'
            )
            raise StoreClosedError(msg)

    def _check_loop(self) -> None:
        # Elsewhere a mutator would race with the loop, and an await would never be answered.
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:  # between two runs of the loop, as in a notebook
            if threading.get_ident() == self._thread_id:
                return
        else:
            if running is self._loop:
                return
        msg = f"the store of {self._where.shown} was opened in another event loop, "
        if self._loop.is_closed():
            msg += "which has ended without closing it; open it again in this one"
        else:
            msg += (
                "and works in that one only; from elsewhere use loop.call_soon_threadsafe() or "
                "asyncio.run_coroutine_threadsafe()"
            )
        raise StoreClosedError(msg)

    def _writable(self) -> Engine:
        self._check_open()
        if self._engine is None:
            assert self._reader is not None
            self._reader.refuse()
        self._engine.check()
        return self._engine
