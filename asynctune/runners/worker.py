"""Owns the process that runs trials for a driver: one at a time, for as long as the driver lives.

Started with the number of a connected socket. The trial runs in the main thread. Another thread ends the process at
once when the driver is gone; a third one says that this process lives. What a worker stages beside its trial belongs
to the driver that adopts it.

Messages, each a map with `kind`; from the driver `hello` (first), `run`, `answer` (of `report`), `bye`; to it `ready`
(of `hello`), `report`, `ended`, `failed`, `beat`. But for `beat` each end speaks in its turn.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import io
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final

from asynctune.checkpoints.disk import disk_errors
from asynctune.checkpoints.staging import STAGED_PREFIX, stage_for_adoption
from asynctune.errors import ConfigError
from asynctune.protocols import CONTINUE, Decision, TrialTask
from asynctune.runners.class_trial import ClassTrial
from asynctune.runners.failure import failure_text, is_interruption
from asynctune.runners.frames import FrameError, frame, receive_frame
from asynctune.runners.inline import drive
from asynctune.runners.space import when_there_is_space
from asynctune.runners.surroundings import Surroundings
from asynctune.session import TrialInterrupted, bind, report
from asynctune.trainable import TrainableKind, kind_of
from asynctune.trial import Checkpoint

__all__ = ["main"]

_PR_SET_PDEATHSIG: Final = 1


class _Driver:
    """The other end, as the trial sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._process = os.getpid()
        # A child that a trial forks must neither keep the driver waiting nor speak to it.
        os.register_at_fork(after_in_child=connection.close)

    def send(self, message: Mapping[str, Any], what: str = "message") -> None:
        data = frame(message, what)
        if os.getpid() != self._process:
            raise ConfigError("only the process of the trial itself can report, not one that it forked")
        with self._sending:
            try:
                self._connection.sendall(data)
            except OSError:
                _driver_is_gone()

    def receive(self) -> Mapping[str, Any]:
        try:
            message = receive_frame(self._connection)
        except (OSError, FrameError):
            message = None
        if message is None:
            _driver_is_gone()
        assert message is not None
        return dict(message)

    def watch(self) -> None:
        """Runs in a thread of its own for as long as the process lives; nobody else may be waiting for the driver."""
        end = select.poll()
        end.register(self._connection, 0)  # its end is told of unasked
        end.poll()
        _driver_is_gone()

    def beat(self, every_s: float) -> None:
        """Runs in a thread of its own for as long as the process lives."""
        while True:
            self.send({"kind": "beat"})
            time.sleep(every_s)


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
        self._has_ended = False
        self._one_at_a_time = threading.RLock()

    def report(self, metrics: Mapping[str, Any], checkpoint: Checkpoint | None) -> Decision:
        with self._one_at_a_time:
            if self._has_ended:
                raise ConfigError(
                    f"trial {self.trial_id} has ended, and takes no more reports; join the threads that it starts in it"
                )
            if self._decision != CONTINUE:  # it was told to stop already, and is told so again
                return self._decision
            return self.deliver(metrics, checkpoint)

    def end(self) -> None:
        """From now on nobody can report; returns when a report that is under way in another thread was answered."""
        with self._one_at_a_time:
            self._has_ended = True

    async def areport(self, metrics: Mapping[str, Any], checkpoint: Checkpoint | None) -> Decision:
        return await asyncio.to_thread(self.report, metrics, checkpoint)

    def deliver(
        self, metrics: Mapping[str, Any] | None, checkpoint: Checkpoint | None, *, move: bool = False
    ) -> Decision:
        with self._one_at_a_time:
            staged = None if checkpoint is None else self._stage(checkpoint, move=move)
            try:
                message = {
                    "kind": "report",
                    "metrics": None if metrics is None else dict(metrics),
                    "checkpoint": staged,
                }
                self._driver.send(message, "a report")
                answer = self._driver.receive()
                if "error" in answer:
                    raise ConfigError(answer["error"])
            except ConfigError:
                if staged is not None:  # nobody adopts it
                    shutil.rmtree(staged["path"], ignore_errors=True)
                raise
            self._decision = answer["decision"]
            return self._decision

    def _stage(self, checkpoint: Checkpoint, *, move: bool) -> dict[str, Any]:
        directory = checkpoint.path
        if directory is None:
            # Named so that the next opening sweeps it away if this process is killed.
            directory, move = Path(self.trial_dir, f"{STAGED_PREFIX}dict-{os.getpid()}"), True

        def stage() -> dict[str, Any]:
            if checkpoint.path is None:
                with disk_errors("stage a checkpoint", os.fspath(directory)):
                    checkpoint.to_directory(directory)
            # No loop runs in this thread: a coroutine's report was handed to another one.
            return asyncio.run(stage_for_adoption(directory, self.trial_dir, move=move)).to_value()

        try:
            return when_there_is_space(stage)
        finally:
            if move:
                shutil.rmtree(directory, ignore_errors=True)


class _Worker:
    """Runs one trial after the other."""

    def __init__(self, driver: _Driver, hello: Mapping[str, Any]) -> None:
        import cloudpickle  # noqa: PLC0415 - only workers load what drivers packed

        self._driver = driver
        self._surroundings = Surroundings(log_to_file=bool(hello["log_to_file"]))
        sys.path[:] = hello["path"]
        sys.argv[:] = hello["argv"]
        self._trainable = cloudpickle.loads(hello["trainable"])
        self._kind = kind_of(self._trainable)
        self._class_trial: ClassTrial | None = None
        if self._kind is TrainableKind.CLASS:
            self._class_trial = ClassTrial(
                self._trainable,
                checkpoint_frequency=hello["checkpoint_frequency"],
                checkpoint_at_end=hello["checkpoint_at_end"],
            )

    def serve(self) -> None:
        """Until the driver takes its leave."""
        while (message := self._driver.receive())["kind"] == "run":
            self._driver.send(self._run(_task(message["task"])))
        if self._class_trial is not None:
            self._class_trial.close()

    def _run(self, task: TrialTask) -> dict[str, Any]:
        """Run one trial; what the driver is told about its end."""
        here = _Session(task, self._driver)
        try:
            with self._surroundings.of_trial(task.trial_dir), bind(here, whole_process=True):
                try:
                    self._train(task, here)
                except BaseException as error:
                    if not is_interruption(error):
                        raise
        except BaseException as error:  # noqa: BLE001 - also SystemExit: it ends the trial, not this process
            return {"kind": "failed", "error": failure_text(error)}
        finally:
            here.end()
        return {"kind": "ended"}

    def _train(self, task: TrialTask, here: _Session) -> None:
        if self._class_trial is not None:
            self._class_trial.run(task, here.deliver)
        elif self._kind is TrainableKind.COROUTINE:
            asyncio.run(drive(self._trainable, task))
        else:
            made = self._trainable(dict(task.config))
            if isinstance(made, Generator):
                try:
                    for metrics in made:
                        report(metrics)
                finally:
                    made.close()  # its own cleanup runs before the trial counts as ended
            elif made is not None:
                report(made)


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
    _prepare()
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    driver = _Driver(connection)
    hello = driver.receive()
    threading.Thread(target=driver.watch, name="asynctune-watch", daemon=True).start()
    # From here on: importing what a trial needs may take its time.
    beat = threading.Thread(target=driver.beat, args=[hello["beat_s"]], name="asynctune-beat", daemon=True)
    beat.start()
    try:
        worker = _Worker(driver, hello)
    except BaseException as error:  # noqa: BLE001 - told to the driver, who fails the trial
        driver.send({"kind": "failed", "error": failure_text(error)})
        return
    driver.send({"kind": "ready"})
    worker.serve()


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever interrupts the driver's work interrupts the driver
    for fd in (1, 2):
        _ensure_open(fd)
    faulthandler.enable(2)  # a crash in C says where it was
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # what was printed before a crash is seen
    print_failure = threading.excepthook

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, TrialInterrupted):
            print_failure(args)

    threading.excepthook = of_thread


def _ensure_open(fd: int) -> None:
    """A driver without a terminal may have closed its output."""
    try:
        os.fstat(fd)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != fd:
            os.dup2(nowhere, fd)
            os.close(nowhere)
        os.set_inheritable(fd, True)


def _die_with_the_driver() -> None:
    """For trials that hold the interpreter, so that nothing here would notice that the driver is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
