"""Owns telling callbacks what happens: one after the other, in order; what one raises harms nobody else."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from asynctune.errors import ConfigError

__all__ = ["EVENTS", "Callbacks"]

logger = logging.getLogger("asynctune")

EVENTS: Final = (
    "on_trial_start",
    "on_trial_result",
    "on_checkpoint",
    "on_trial_complete",
    "on_trial_error",
    "on_experiment_end",
)


class Callbacks:
    """The callbacks of one experiment.

    Args:
        callbacks: Objects with some of the methods of `Callback`.
        report: Told of a failure: `report(message)`.

    Raises:
        ConfigError: One has none of the methods, or is a class.
    """

    def __init__(self, callbacks: Sequence[Any], report: Callable[[str], None]) -> None:
        self._report = report
        self._turn = (
            asyncio.Lock()
        )  # in the order of asking: trials that run at the same time are told of in turn
        self.objects = tuple(callbacks)
        for each in callbacks:
            if isinstance(each, type):
                raise ConfigError(
                    f"a callback must be an object, not the class {each.__name__}; write {each.__name__}(...)"
                )
            if not any(callable(getattr(each, name, None)) for name in EVENTS):
                raise ConfigError(f"the callback {each!r} has none of the methods {', '.join(EVENTS)}")

    def listens(self, event: str) -> bool:
        """Whether anybody wants to know."""
        return any(callable(getattr(each, event, None)) for each in self.objects)

    async def tell(self, event: str, *args: Any) -> None:
        """Call the method of this name of each callback, and await what is to be awaited.

        Events that come meanwhile wait for their turn.
        """
        if not self.listens(event):
            return
        async with self._turn:
            for each in self.objects:
                method = getattr(each, event, None)
                if not callable(method):
                    continue
                try:
                    answer = method(*args)
                    if inspect.isawaitable(answer):
                        await answer
                except Exception as error:  # noqa: BLE001 - logged and shown
                    self._failed(each, event, error)
                except asyncio.CancelledError as error:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    self._failed(each, event, error)  # not this task: something that the callback awaits

    def _failed(self, callback: Any, event: str, error: BaseException) -> None:
        message = f"the callback {type(callback).__name__}.{event} failed: {error!r}"
        logger.error("%s; the experiment goes on", message, exc_info=error)
        self._report(message)
