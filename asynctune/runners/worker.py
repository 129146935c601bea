"""Owns the process that runs trials for a driver: one at a time, for as long as the driver lives.

Started as `python -m asynctune.runners.worker FD`, where FD is a connected socket. The trial runs in the main
thread. Another thread reads what the driver says, and ends the process at once when the driver is gone; a third
one says that this process lives. What a worker stages beside its trial belongs to the driver that adopts it.

Messages, each a map with `kind`; from the driver `hello` (first), `run`, `answer`; to it `ready` (of `hello`),
`report`, `ended`, `failed`, `beat`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final

from asynctune.checkpoints.staging import stage_for_adoption
from asynctune.errors import ConfigError
from asynctune.protocols import CONTINUE, Decision, TrialTask
from asynctune.runners.class_trial import ClassTrial
from asynctune.runners.failure import failure_text
from asynctune.runners.frames import frame, receive_frame
from asynctune.runners.inline import drive
from asynctune.session import TrialInterrupted, bind, report
from asynctune.trainable import TrainableKind, kind_of
from asynctune.trial import Checkpoint

__all__ = ["BEAT_S", "main"]

BEAT_S: Final = 1.0
"""Seconds between two signs of life."""

_PR_SET_PDEATHSIG: Final = 1


class _Driver:
    """The other end, as the trial's thread sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self.inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def send(self, message: Mapping[str, Any], what: str = "message") -> None:
        data = frame(message, what)
        with self._sending:
            try:
                self._connection.sendall(data)
            except OSError:
                _driver_is_gone()

    def listen(self) -> None:
        """Runs in a thread of its own for as long as the process lives."""
        while True:
            message = receive_frame(self._connection)
            if message is None:
                _driver_is_gone()
            else:
                self.inbox.put(message)

    def beat(self) -> None:
        """Runs in a thread of its own for as long as the process lives."""
        while True:
            self.send({"kind": "beat"})
            time.sleep(BEAT_S)


def _driver_is_gone() -> None:
    """Nobody takes a result any more, and whatever was acknowledged is on the disk."""
    os._exit(0)


class _Session:
    """The session of the trial that runs."""

    def __init__(self, task: TrialTask, driver: _Driver) -> None:
        self.trial_id = task.trial_id
        self.trial_name = task.trial_name
        self.trial_dir = task.trial_dir
        self.checkpoint = task.checkpoint
        self._driver = driver
        self._decision: Decision = CONTINUE
        self._one_at_a_time = threading.Lock()

    def report(self, metrics: Mapping[str, Any], checkpoint: Checkpoint | None) -> Decision:
        with self._one_at_a_time:
            if self._decision != CONTINUE:  # it was told to stop already, and is told so again
                return self._decision
            return self.deliver(metrics, checkpoint)

    async def areport(self, metrics: Mapping[str, Any], checkpoint: Checkpoint | None) -> Decision:
        return await asyncio.to_thread(self.report, metrics, checkpoint)

    def deliver(
        self, metrics: Mapping[str, Any] | None, checkpoint: Checkpoint | None, *, move: bool = False
    ) -> Decision:
        staged = None if checkpoint is None else self._stage(checkpoint, move=move)
        message = {
            "kind": "report",
            "metrics": None if metrics is None else dict(metrics),
            "checkpoint": staged,
        }
        self._driver.send(message, "a report")
        answer = self._driver.inbox.get()
        if "error" in answer:
            raise ConfigError(answer["error"])
        self._decision = answer["decision"]
        return self._decision

    def _stage(self, checkpoint: Checkpoint, *, move: bool) -> Any:
        if checkpoint.path is None:
            directory: str | os.PathLike[str] = checkpoint.to_directory(
                Path(self.trial_dir, f".saving-{os.getpid()}")
            )
            move = True
        else:
            directory = checkpoint.path
        try:
            # No loop runs in this thread: a coroutine's report was handed to another one.
            return asyncio.run(stage_for_adoption(directory, self.trial_dir, move=move)).to_value()
        finally:
            if move:
                shutil.rmtree(directory, ignore_errors=True)


class _Worker:
    """Runs one trial after the other."""

    def __init__(self, driver: _Driver, hello: Mapping[str, Any]) -> None:
        import cloudpickle  # noqa: PLC0415 - only workers load what drivers packed

        self._driver = driver
        sys.path[:] = hello["path"]
        self._trainable = cloudpickle.loads(hello["trainable"])
        self._kind = kind_of(self._trainable)
        self._log_to_file = bool(hello["log_to_file"])
        self._class_trial: ClassTrial | None = None
        if self._kind is TrainableKind.CLASS:
            self._class_trial = ClassTrial(
                self._trainable,
                checkpoint_frequency=hello["checkpoint_frequency"],
                checkpoint_at_end=hello["checkpoint_at_end"],
            )

    def run(self, message: Mapping[str, Any]) -> None:
        task = _task(message["task"])
        here = _Session(task, self._driver)
        try:
            with self._output(task), bind(here, whole_process=True):
                self._run(task, here)
        except TrialInterrupted:
            self._driver.send({"kind": "ended"})
        except BaseException as error:  # noqa: BLE001 - also SystemExit: it ends the trial, not this process
            self._driver.send({"kind": "failed", "error": failure_text(error)})
        else:
            self._driver.send({"kind": "ended"})

    def _run(self, task: TrialTask, here: _Session) -> None:
        config = dict(task.config)
        if self._class_trial is not None:
            self._class_trial.run(task, here.deliver)
        elif self._kind is TrainableKind.COROUTINE:
            asyncio.run(drive(self._trainable, task))
        else:
            made = self._trainable(config)
            if isinstance(made, Generator):
                for metrics in made:
                    report(metrics)
            elif made is not None:
                report(made)

    @contextlib.contextmanager
    def _output(self, task: TrialTask) -> Any:
        """Standard output and error go to files of the trial, where that was asked for."""
        if not self._log_to_file:
            yield
            return
        kept = [os.dup(fd) for fd in (1, 2)]
        try:
            for fd, name in ((1, "stdout"), (2, "stderr")):
                file = os.open(
                    os.path.join(task.trial_dir, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666
                )
                os.dup2(file, fd)
                os.close(file)
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for fd, original in zip((1, 2), kept, strict=True):
                os.dup2(original, fd)
                os.close(original)


def _task(value: Mapping[str, Any]) -> TrialTask:
    path = value["checkpoint"]
    checkpoint = None
    if path is not None:
        about = value["about_checkpoint"]
        checkpoint = Checkpoint(path=Path(path), **about)
    return TrialTask(
        trial_id=value["trial_id"],
        trial_name=value["trial_name"],
        trial_dir=value["trial_dir"],
        config=value["config"],
        iteration=value["iteration"],
        checkpoint=checkpoint,
    )


def main() -> None:
    """The process."""
    _die_with_the_driver()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the driver decides
    connection = socket.socket(fileno=int(sys.argv[1]))
    hello = receive_frame(connection)
    if hello is None:
        return
    driver = _Driver(connection)
    threading.Thread(target=driver.listen, name="asynctune-listen", daemon=True).start()
    try:
        worker = _Worker(driver, hello)
    except BaseException as error:  # noqa: BLE001 - told to the driver, who fails the trial
        driver.send({"kind": "failed", "error": failure_text(error)})
        return
    threading.Thread(target=driver.beat, name="asynctune-beat", daemon=True).start()
    driver.send({"kind": "ready"})
    while True:
        worker.run(driver.inbox.get())


def _die_with_the_driver() -> None:
    """For trials that hold the interpreter, so that nothing here would notice that the driver is gone."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
