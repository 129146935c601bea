"""Owns the worker processes of one driver: starting them, lending each to one trial at a time, and their end.

A worker is started when the first trial needs it and used again for others. It is ended when its trial failed or
was cancelled, because nobody knows what is left in it. What goes over the wire is `runners.frames`'; what
happens at the other end is `runners.worker`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from asynctune.errors import ConfigError, TrialFailedError
from asynctune.protocols import CONTINUE, Decision, TrialReport, TrialTask
from asynctune.runners.connection import Connection, WorkerLostError
from asynctune.runners.frames import frame
from asynctune.runners.inline import in_use
from asynctune.runners.orders import hello_for, packed_task
from asynctune.runners.spawning import spawn_worker

__all__ = ["ProcessRunner"]

logger = logging.getLogger("asynctune")

_GOODBYE_S: Final = 10.0
_SIGTERM_PAUSE_S: Final = 1.0

Report = Callable[[TrialReport], Awaitable[Decision]]


class ProcessRunner:
    """Runs each trial in a worker process.

    A worker runs one trial after the other. What a trial leaves in its process (modules that it imported, values that
    it changed there, environment variables) the next one finds; its working directory, output streams and handlers
    of signals are put back. A worker whose trial failed is not used again.

    Args:
        max_concurrent: How many trials run at the same time at most; `None`: one for each CPU.
        hung_after_s: A worker that gives no sign of life for so many seconds, and used no CPU time meanwhile, is
            killed, and its trial has failed. One that computes is left alone, however long that takes. It is the
            process that is watched: a trial that sleeps, or waits for ever for a lock or an answer from a network, is
            not noticed, for its process lives.
        stop_grace_s: A trial that was told to stop or to pause, and neither ends nor saves a checkpoint for so many
            seconds, is killed with its worker. It counts as stopped or paused, not as failed.

    Raises:
        ConfigError: A number that makes no sense.
    """

    def __init__(
        self, max_concurrent: int | None = None, *, hung_after_s: float = 60.0, stop_grace_s: float = 600.0
    ) -> None:
        if max_concurrent is None:
            max_concurrent = (
                len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            )
        if not isinstance(max_concurrent, int) or isinstance(max_concurrent, bool) or max_concurrent < 1:
            raise ConfigError(f"max_concurrent must be a whole number from 1, not {max_concurrent!r}")
        for name, value in (("hung_after_s", hung_after_s), ("stop_grace_s", stop_grace_s)):
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise ConfigError(f"{name} must be a number of seconds above 0, not {value!r}")
        self._capacity = max_concurrent
        self._hung_after_s = hung_after_s
        self._stop_grace_s = stop_grace_s
        self._hello: bytes | None = None
        self._was_ready = False  # any worker
        self._cannot_load: str | None = None
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._in_use = False
        self._closed = False

    @property
    def capacity(self) -> int:
        """How many trials it runs at the same time at most."""
        return self._capacity

    async def start(self, trainable: Any, options: Mapping[str, Any]) -> None:
        """Pack the trainable for the workers.

        Raises:
            ConfigError: It cannot be packed: it holds something that belongs to this process, or is too large; or the
                runner was started and not closed since.
        """
        if self._in_use:
            raise ConfigError(in_use(self))
        self._in_use = True
        try:
            self._hello = await hello_for(trainable, options, hung_after_s=self._hung_after_s)
        except BaseException:
            self._in_use = False
            raise
        self._was_ready, self._cannot_load = False, None
        self._closed = False

    async def run_trial(self, task: TrialTask, report: Report) -> None:
        """Run the trial in a worker; cancelling the caller kills that.

        Raises:
            TrialFailedError: The trial raised, or its worker died or hung.
        """
        worker = await self._borrow()
        try:
            is_usable = await self._run(worker, task, report)
        except BaseException:
            await self._end(worker)
            raise
        if is_usable and not self._closed:
            self._idle.append(worker)
        else:
            await self._end(worker)

    async def aclose(self) -> None:
        """End all workers: idle ones let go of their `Trainable` object first. Again: does nothing."""
        self._closed = True
        idle, self._idle = self._idle, []
        try:
            async with asyncio.TaskGroup() as tasks:
                for worker in list(self._all):
                    tasks.create_task(self._end(worker, politely=worker in idle))
        finally:
            self._in_use = False

    # -- one trial -----------------------------------------------------------------------------------------

    async def _run(self, worker: Connection, task: TrialTask, report: Report) -> bool:
        """Serve the trial until it ends; whether its worker can be used again."""
        try:
            run = frame({"kind": "run", "task": packed_task(task)}, f"the config of trial {task.trial_id}")
        except ConfigError as error:
            raise TrialFailedError(str(error)) from error
        decision: Decision = CONTINUE
        try:
            await worker.send(run)
            while True:
                message = await self._receive(worker, decision)
                match message.get("kind"):
                    case "report":
                        answer, decision = await _answer(message, report, decision)
                        await worker.send(answer)
                    case "ended":
                        return True
                    case "failed":
                        raise TrialFailedError(str(message.get("error")))
                    case unknown:
                        raise TrialFailedError(f"the worker of trial {task.trial_id} said {unknown!r:.80}")
        except WorkerLostError as error:
            if error.signal == signal.SIGTERM:
                # Who ends a whole batch of processes asks each of them: this one may be asked to stop, too.
                await asyncio.sleep(_SIGTERM_PAUSE_S)
            raise TrialFailedError(f"the worker process of trial {task.trial_id} {error}") from error
        except _IgnoredError:
            logger.warning(
                "trial %s was told to %s and did not end for %g s: its worker was killed; a trial has to let "
                "TrialInterrupted pass",
                task.trial_id,
                decision,
                self._stop_grace_s,
            )
            return False

    async def _receive(self, worker: Connection, decision: Decision) -> Mapping[str, Any]:
        if decision == CONTINUE:
            return await worker.receive()
        try:
            async with asyncio.timeout(self._stop_grace_s):
                return await worker.receive()
        except TimeoutError as error:
            raise _IgnoredError from error

    # -- workers -------------------------------------------------------------------------------------------

    async def _borrow(self) -> Connection:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive:
                return worker
            await self._end(worker)
        if self._cannot_load is not None:  # no other worker can, either
            raise TrialFailedError(self._cannot_load)
        if self._hello is None:
            raise ConfigError("the runner was not started: await runner.start(trainable, options) first")
        worker = await spawn_worker(hung_after_s=self._hung_after_s)
        self._all.add(worker)
        try:
            if self._closed:  # meanwhile
                raise TrialFailedError("the runner was closed before the trial could start")
            await worker.send(self._hello)
            answer = await worker.receive()
            if answer.get("kind") != "ready":
                failure = f"a worker could not load the trainable:\n{answer.get('error')}"
                if not self._was_ready:
                    self._cannot_load = failure
                raise TrialFailedError(failure)
            self._was_ready = True
        except WorkerLostError as error:
            await self._end(worker)
            raise TrialFailedError(f"a worker process {error}, before it was ready") from error
        except BaseException:
            await self._end(worker)
            raise
        return worker

    async def _end(self, worker: Connection, *, politely: bool = False) -> None:
        self._all.discard(worker)
        await worker.aclose({"kind": "bye"} if politely else None, grace_s=_GOODBYE_S)


class _IgnoredError(Exception):
    """A trial that was told to stop goes on."""


async def _answer(
    message: Mapping[str, Any], report: Report, told: Decision
) -> tuple[dict[str, Any], Decision]:
    """What the worker is told, and what its trial is to do since."""
    try:
        made = TrialReport(metrics=message["metrics"], checkpoint=message["checkpoint"], move=True)
        decision = await report(made)
    except ConfigError as error:  # the trial's own mistake, which is raised where it was made
        return {"kind": "answer", "error": str(error)}, told
    return {"kind": "answer", "decision": decision}, decision if told == CONTINUE else told
