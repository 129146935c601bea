"""Owns the worker processes of one driver: starting them, lending each to one trial at a time, and their end.

A worker is started when the first trial needs it and used again for others. It is ended when its trial failed or
was cancelled, because nobody knows what is left in it. What goes over the wire is `runners.frames`'; what
happens at the other end is `runners.worker`'s.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from asynctune.errors import ConfigError, TrialFailedError
from asynctune.protocols import Decision, TrialReport, TrialTask
from asynctune.runners.connection import Connection, WorkerLostError, end_process

__all__ = ["ProcessRunner"]


class ProcessRunner:
    """Runs each trial in a worker process.

    Args:
        max_concurrent: How many trials run at the same time at most; `None`: one for each CPU.
        hung_after_s: A worker that gives no sign of life for so many seconds, and used no CPU time meanwhile, is
            killed, and its trial has failed. One that computes is left alone, however long that takes.
    """

    def __init__(self, max_concurrent: int | None = None, *, hung_after_s: float = 60.0) -> None:
        if max_concurrent is None:
            max_concurrent = (
                len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            )
        if not isinstance(max_concurrent, int) or isinstance(max_concurrent, bool) or max_concurrent < 1:
            raise ConfigError(f"max_concurrent must be a whole number from 1, not {max_concurrent!r}")
        if not hung_after_s > 0:
            raise ConfigError(f"hung_after_s must be above 0, not {hung_after_s!r}")
        self._capacity = max_concurrent
        self._hung_after_s = hung_after_s
        self._hello: dict[str, Any] | None = None
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._closed = False

    @property
    def capacity(self) -> int:
        """How many trials it runs at the same time at most."""
        return self._capacity

    async def start(self, trainable: Any, options: Mapping[str, Any]) -> None:
        """Pack the trainable for the workers.

        Raises:
            ConfigError: It cannot be packed: it holds something that belongs to this process.
        """
        self._hello = {
            "kind": "hello",
            "path": await asyncio.to_thread(_import_path),
            "trainable": await asyncio.to_thread(_pickled, trainable),
            "log_to_file": bool(options.get("log_to_file", False)),
            "checkpoint_frequency": int(options.get("checkpoint_frequency", 0)),
            "checkpoint_at_end": bool(options.get("checkpoint_at_end", False)),
        }

    async def run_trial(self, task: TrialTask, report: Callable[[TrialReport], Awaitable[Decision]]) -> None:
        """Run the trial in a worker; cancelling the caller kills that.

        Raises:
            TrialFailedError: The trial raised, or its worker died or hung.
        """
        worker = await self._borrow()
        try:
            failure = await self._run(worker, task, report)
        except BaseException:
            await self._end(worker)
            raise
        if failure is not None:
            await self._end(worker)
            raise failure
        if self._closed:
            await self._end(worker)
        else:
            self._idle.append(worker)

    async def aclose(self) -> None:
        """End all workers. Again: does nothing."""
        self._closed = True
        self._idle.clear()
        for worker in list(self._all):
            await self._end(worker)

    # -- one trial -----------------------------------------------------------------------------------------

    async def _run(
        self, worker: Connection, task: TrialTask, report: Callable[[TrialReport], Awaitable[Decision]]
    ) -> TrialFailedError | None:
        """Serve the trial until it ends; its failure, or `None`."""
        try:
            await worker.send({"kind": "run", "task": _packed(task)}, f"the config of trial {task.trial_id}")
            while True:
                message = await worker.receive()
                match message.get("kind"):
                    case "report":
                        await worker.send(await self._answer(message, report))
                    case "ended":
                        return None
                    case "failed":
                        return TrialFailedError(message["error"])
                    case unknown:
                        return TrialFailedError(f"the worker of trial {task.trial_id} said {unknown!r}")
        except WorkerLostError as error:
            return TrialFailedError(f"the worker process of trial {task.trial_id} {error}")

    async def _answer(
        self, message: Mapping[str, Any], report: Callable[[TrialReport], Awaitable[Decision]]
    ) -> dict[str, Any]:
        try:
            decision = await report(
                TrialReport(metrics=message["metrics"], checkpoint=message["checkpoint"], move=True)
            )
        except ConfigError as error:  # the trial's own mistake, which is raised where it was made
            return {"kind": "answer", "error": str(error)}
        return {"kind": "answer", "decision": decision}

    # -- workers -------------------------------------------------------------------------------------------

    async def _borrow(self) -> Connection:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive:
                return worker
            await self._end(worker)
        if self._hello is None:
            raise ConfigError("the runner was not started: await runner.start(trainable, options) first")
        worker = await self._spawn()
        self._all.add(worker)
        try:
            await worker.send(self._hello, "the trainable")
            answer = await worker.receive()
        except WorkerLostError as error:
            await self._end(worker)
            raise TrialFailedError(f"a worker process {error}, before it was ready") from error
        except BaseException:
            await self._end(worker)
            raise
        if answer.get("kind") != "ready":
            await self._end(worker)
            raise TrialFailedError(f"a worker could not load the trainable:\n{answer.get('error')}")
        return worker

    async def _spawn(self) -> Connection:
        ours, theirs = socket.socketpair()
        spawning = asyncio.ensure_future(asyncio.to_thread(_spawn, theirs))
        try:
            process = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            ours.close()
            await asyncio.to_thread(end_process, await spawning)  # it is on its way, and only we can end it
            raise
        except OSError as error:
            ours.close()
            raise TrialFailedError(f"cannot start a worker process: {error}") from error
        return await Connection.over(ours, process, hung_after_s=self._hung_after_s)

    async def _end(self, worker: Connection) -> None:
        self._all.discard(worker)
        await worker.aclose()


def _import_path() -> list[str]:
    return [os.path.abspath(each) for each in sys.path]


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    with theirs:
        return subprocess.Popen(  # noqa: S603 - a fixed command
            [sys.executable, "-m", "asynctune.runners.worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )


def _pickled(trainable: Any) -> bytes:
    import cloudpickle  # noqa: PLC0415 - only what goes to workers is packed by it

    try:
        packed: bytes = cloudpickle.dumps(trainable)
    except Exception as error:
        raise ConfigError(
            f"the trainable {getattr(trainable, '__qualname__', trainable)!r} cannot be sent to a worker process "
            f"({error}); open files, locks and connections must be made inside of it"
        ) from error
    return packed


def _packed(task: TrialTask) -> dict[str, Any]:
    checkpoint = task.checkpoint
    about: dict[str, Any] = {}
    if checkpoint is not None:
        about = {
            "trial_id": checkpoint.trial_id,
            "step": checkpoint.step,
            "metrics": dict(checkpoint.metrics),
            "files": dict(checkpoint.files),
            "size_bytes": checkpoint.size_bytes,
            "committed_at": checkpoint.committed_at,
            "mirrored": checkpoint.mirrored,
        }
    return {
        "trial_id": task.trial_id,
        "trial_name": task.trial_name,
        "trial_dir": task.trial_dir,
        "config": dict(task.config),
        "iteration": task.iteration,
        "checkpoint": None if checkpoint is None else str(checkpoint.path),
        "about_checkpoint": about,
    }
