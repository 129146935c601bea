"""Owns `Trainable`, the class a user derives from, and what may be a trainable at all. Runs nothing.

A trainable is a function of a config, a coroutine function of a config, or a subclass of `Trainable`. How they
are run is the runners' business.
"""

from __future__ import annotations

import enum
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from asynctune.errors import ConfigError

__all__ = [
    "Trainable",
    "TrainableKind",
    "check_checkpointing",
    "check_trainable",
    "import_trainable",
    "importable_name",
    "kind_of",
    "trainable_name",
]


class Trainable:
    """A trial as an object: `setup` once, `step` until it is done, saved and loaded in between.

    Override what is needed; `step` is. The runner counts iterations, and makes checkpoints every
    `CheckpointConfig.checkpoint_frequency` iterations, at the end (`checkpoint_at_end`), before a pause, and when
    the result of a step says so.

    Attributes:
        config: The trial's hyperparameters.
        iteration: How many steps the trial has done, those before it was resumed included.
        trial_id: Of the trial.
        trial_name: Of the trial.
        trial_dir: Of the trial.
    """

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.iteration = 0
        self.trial_id = ""
        self.trial_name = ""
        self.trial_dir = ""

    @property
    def training_iteration(self) -> int:
        """The same as `iteration`."""
        return self.iteration

    @property
    def logdir(self) -> str:
        """The same as `trial_dir`."""
        return self.trial_dir

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare for the first step. Called once for each object."""

    def step(self) -> Mapping[str, Any]:
        """Train for one iteration, and return its metrics.

        Two names mean something: `done` ends the trial, `should_checkpoint` asks for a checkpoint now.
        """
        raise NotImplementedError

    def save_checkpoint(self, checkpoint_dir: str) -> str | Mapping[str, Any] | None:
        """Write everything that `load_checkpoint` needs into the empty directory, or return it as a dict.

        The returned dict holds msgpack values. A returned path is that of the directory or of a file in it.
        """
        raise NotImplementedError(
            f"{type(self).__qualname__} has no save_checkpoint(); define it to have checkpoints"
        )

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from what `save_checkpoint` made: its dict, or the directory (or path) that has a private copy."""
        raise NotImplementedError(
            f"{type(self).__qualname__} has no load_checkpoint(); define it to go on from one"
        )

    def reset_config(self, new_config: dict[str, Any]) -> bool:  # noqa: ARG002 - for those who override it
        """Become a new trial with another config, which spares making a new object.

        Returns:
            Whether that was done. False, the default: a new object is made.
        """
        return False

    def cleanup(self) -> None:
        """Let go of resources. Called once, at the end of the object, also after an error."""


class TrainableKind(enum.Enum):
    """What kind of thing a trainable is."""

    FUNCTION = "function"
    COROUTINE = "coroutine"
    CLASS = "class"


def kind_of(trainable: Any) -> TrainableKind:
    """What kind it is.

    Raises:
        ConfigError: It is none.
    """
    if inspect.isclass(trainable):
        if not issubclass(trainable, Trainable):
            msg = f"the trainable {trainable.__qualname__} must be a subclass of asynctune.Trainable, or a function"
            raise ConfigError(msg)
        return TrainableKind.CLASS
    function = trainable
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return TrainableKind.COROUTINE
    if inspect.isroutine(function):
        return TrainableKind.FUNCTION
    kind = type(trainable).__name__
    msg = f"a trainable is a function of a config or a subclass of asynctune.Trainable, not a {kind}"
    raise ConfigError(msg)


def check_trainable(trainable: Any) -> TrainableKind:
    """Likewise, and refuse a function that cannot be called with one config, or a class without `step`.

    Raises:
        ConfigError: Says what is wrong.
    """
    kind = kind_of(trainable)
    if kind is TrainableKind.CLASS:
        if trainable.step is Trainable.step:
            raise ConfigError(f"the trainable {trainable.__qualname__} has no step(); define it")
        return kind
    try:
        inspect.signature(trainable).bind({})
    except TypeError as error:
        name = trainable_name(trainable)
        raise ConfigError(f"the trainable {name} cannot be called with one config: {error}") from error
    except ValueError:  # a builtin, which does not say how it is called
        pass
    return kind


def check_checkpointing(trainable: Any, *, wanted: bool) -> None:
    """Refuse a class that cannot make the checkpoints that are asked of it.

    Args:
        trainable: Of any kind.
        wanted: Whether `checkpoint_frequency` or `checkpoint_at_end` ask for some.

    Raises:
        ConfigError: It is a class without `save_checkpoint`.
    """
    if not wanted or kind_of(trainable) is not TrainableKind.CLASS:
        return
    if trainable.save_checkpoint is Trainable.save_checkpoint:
        raise ConfigError(
            f"the trainable {trainable.__qualname__} has no save_checkpoint(), so checkpoint_frequency and "
            "checkpoint_at_end cannot be met; define it, or leave them out"
        )


def trainable_name(trainable: Any) -> str:
    """Its short name, for the names of trials and for people."""
    while isinstance(trainable, functools.partial):
        trainable = trainable.func
    return str(getattr(trainable, "__name__", type(trainable).__name__))


def importable_name(trainable: Callable[..., Any] | type) -> str | None:
    """`module:qualified.name` that leads to this very object in another process, or `None`."""
    module, name = getattr(trainable, "__module__", None), getattr(trainable, "__qualname__", None)
    if not module or not name or module == "__main__" or "<" in name:
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is trainable else None


def import_trainable(name: str) -> Any:
    """Import what `importable_name` named.

    Raises:
        ConfigError: It cannot be imported, or is no trainable (any more).
    """
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        msg = f"the trainable {name} cannot be imported ({error}); give it: Tuner.restore(path, trainable)"
        raise ConfigError(msg) from error
    check_trainable(found)
    return found
