"""Owns the life of a `Trainable` object in a worker: which steps it takes, and when it makes a checkpoint.

Blocking, in the process that trains. Where the result goes is the `TrialContext`'s business.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from asynctune.checkpoints.disk import disk_errors
from asynctune.checkpoints.staging import STAGED_PREFIX
from asynctune.errors import ConfigError
from asynctune.protocols import CONTINUE, PAUSE, Decision, TrialTask
from asynctune.trainable import Trainable
from asynctune.trial import DICT_FILE, Checkpoint

__all__ = ["ClassTrial", "Deliver"]

DONE = "done"
SHOULD_CHECKPOINT = "should_checkpoint"
RETURNED_FILE = ".checkpoint-returned-path"

_GIVEN = ("iteration", "trial_id", "trial_name", "trial_dir")


class Deliver(Protocol):
    """Brings a report to the driver and returns its decision; `metrics=None`: a checkpoint of the last result."""

    def __call__(
        self, metrics: Mapping[str, Any] | None, checkpoint: Checkpoint | None, *, move: bool
    ) -> Decision:
        """Blocks until the driver has answered."""
        ...


class ClassTrial:
    """Runs one trial after the other, of one class, with one object as long as `reset_config` allows that.

    Args:
        trainable: The class.
        checkpoint_frequency: A checkpoint every so many iterations; 0: none for that reason.
        checkpoint_at_end: One more when the trial ends.
    """

    def __init__(
        self,
        trainable: Callable[[], Trainable],
        *,
        checkpoint_frequency: int = 0,
        checkpoint_at_end: bool = False,
    ) -> None:
        self._make = trainable
        self._every = checkpoint_frequency
        self._at_end = checkpoint_at_end
        self._object: Trainable | None = None

    def run(self, task: TrialTask, deliver: Deliver) -> None:
        """Run one start of a trial to its end, or as far as the driver wants it."""
        try:
            made = self._prepare(task)
            decision, saved = CONTINUE, False
            done = False
            while not done and decision == CONTINUE:
                metrics = self._step(made)
                done = bool(metrics.get(DONE, False))
                saved = self._is_due(made, metrics, done=done)
                decision = deliver(metrics, self._save(made, task) if saved else None, move=True)
            if not saved and (decision == PAUSE or (self._at_end and decision != CONTINUE)):
                deliver(None, self._save(made, task), move=True)
        except BaseException:
            self.close()
            raise
        if type(made).reset_config is Trainable.reset_config:
            self.close()  # it takes no other config, so nothing of it is kept until the next trial comes

    def close(self) -> None:
        """Let the object go, if there is one; what its `cleanup` raises is printed, and ends no trial."""
        made, self._object = self._object, None
        if made is None:
            return
        try:
            made.cleanup()
        except BaseException:  # noqa: BLE001 - its trial has ended already, and the next one has no part in it
            print(f"{type(made).__name__}.cleanup() failed:", file=sys.stderr)  # noqa: T201 - the trial's own output
            traceback.print_exc()

    def _prepare(self, task: TrialTask) -> Trainable:
        made, config = self._object, dict(task.config)
        if made is not None:
            before = vars(made).copy()
            _introduce(made, task)
            if not made.reset_config(config):
                vars(made).update({name: before[name] for name in _GIVEN})
                self.close()
                made = None
        if made is None:
            made = self._object = self._make()
            _introduce(made, task)
            made.config = config
            made.setup(config)
        made.config = config
        if task.checkpoint is not None:
            made.load_checkpoint(_loadable(task.checkpoint))
        return made

    def _step(self, made: Trainable) -> dict[str, Any]:
        metrics = made.step()
        if not isinstance(metrics, Mapping):
            kind = type(metrics).__name__
            raise ConfigError(f"{type(made).__name__}.step() must return a mapping of metrics, not {kind}")
        made.iteration += 1
        return {**metrics, "training_iteration": made.iteration}

    def _is_due(self, made: Trainable, metrics: dict[str, Any], *, done: bool) -> bool:
        asked = bool(metrics.pop(SHOULD_CHECKPOINT, False))
        periodic = self._every > 0 and made.iteration % self._every == 0
        return asked or periodic or (done and self._at_end)

    def _save(self, made: Trainable, task: TrialTask) -> Checkpoint:
        # Beside the trial, so that it can be moved instead of copied; the name is one that a restart sweeps away.
        with disk_errors("make a checkpoint", task.trial_dir):
            directory = tempfile.mkdtemp(prefix=f"{STAGED_PREFIX}saving-", dir=task.trial_dir)
        try:
            answer = made.save_checkpoint(directory)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        if isinstance(answer, Mapping):
            shutil.rmtree(directory, ignore_errors=True)
            return Checkpoint.from_dict(dict(answer))
        try:
            path = directory if answer is None else _path_of(answer, directory)
            if path != directory:
                name = os.path.join(directory, RETURNED_FILE)
                with disk_errors("make a checkpoint", name), open(name, "w", encoding="utf-8") as file:
                    file.write(os.path.relpath(path, directory))
        except ConfigError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise ConfigError(
                f"{type(made).__name__}.save_checkpoint() returned {answer!r:.200}, {error}"
            ) from None
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return Checkpoint.from_directory(directory)


def _introduce(made: Trainable, task: TrialTask) -> None:
    made.iteration = task.iteration
    made.trial_id, made.trial_name, made.trial_dir = task.trial_id, task.trial_name, task.trial_dir


def _path_of(answer: Any, directory: str) -> str:
    """The path that a class returned for what it wrote."""
    is_path = isinstance(answer, str | os.PathLike) and not isinstance(answer, Checkpoint)
    path = os.fspath(answer) if is_path else None
    if not isinstance(path, str):
        raise ConfigError(
            "which is neither a dict nor a path; write to the directory that it gets, and return nothing"
        )
    path = os.path.abspath(path)
    if path != directory and not path.startswith(directory + os.sep):
        raise ConfigError("which is not in the directory that it was given; write there, and return nothing")
    if not os.path.exists(path):
        raise ConfigError("where nothing is; write to the directory that it gets, and return nothing")
    return path


def _loadable(checkpoint: Checkpoint) -> Any:
    """What `save_checkpoint` returned, in the private copy; where the files are if that was nothing."""
    if checkpoint.path is None or os.path.exists(os.path.join(checkpoint.path, DICT_FILE)):
        return checkpoint.to_dict()
    try:
        with open(os.path.join(checkpoint.path, RETURNED_FILE), encoding="utf-8") as file:
            return os.path.join(checkpoint.path, file.read())
    except FileNotFoundError:
        return str(checkpoint.path)
