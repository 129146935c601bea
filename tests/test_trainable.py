"""What may be a trainable."""

from __future__ import annotations

import functools

import pytest

from asynctune import ConfigError, Trainable
from asynctune.trainable import (
    TrainableKind,
    check_checkpointing,
    check_trainable,
    import_trainable,
    importable_name,
    kind_of,
    trainable_name,
)
from tests.tuning import trainables


class Callable:
    def __call__(self, config):
        pass

    def method(self, config):
        pass

    async def coroutine(self, config):
        pass


class NoStep(Trainable):
    pass


class Good(Trainable):
    def step(self):
        return {}


def two(config, other):
    pass


def default(config, other=1):
    pass


@pytest.mark.parametrize(
    ("trainable", "kind"),
    [
        (trainables.function, TrainableKind.FUNCTION),
        (trainables.generator, TrainableKind.FUNCTION),
        (trainables.coroutine, TrainableKind.COROUTINE),
        (functools.partial(trainables.coroutine), TrainableKind.COROUTINE),
        (functools.partial(functools.partial(two), other=1), TrainableKind.FUNCTION),
        (lambda config: None, TrainableKind.FUNCTION),
        (Callable().method, TrainableKind.FUNCTION),
        (Callable().coroutine, TrainableKind.COROUTINE),
        (default, TrainableKind.FUNCTION),
        (print, TrainableKind.FUNCTION),
        (Good, TrainableKind.CLASS),
    ],
    ids=[
        "function",
        "generator",
        "coroutine",
        "partial-coroutine",
        "partial",
        "lambda",
        "method",
        "coroutine-method",
        "default",
        "builtin",
        "class",
    ],
)
def test_kinds(trainable, kind):
    assert kind_of(trainable) is kind
    assert check_trainable(trainable) is kind


@pytest.mark.parametrize(
    ("trainable", "text"),
    [
        (3, "not a int"),
        ("name", "not a str"),
        (dict, "subclass of asynctune.Trainable"),
        (Good(), "not a Good"),
        (Callable(), "not a Callable"),
        (NoStep, "has no step"),
        (Trainable, "has no step"),
        (two, r"two cannot be called with one config"),
        (lambda: None, "cannot be called with one config"),
    ],
    ids=["number", "name", "class", "object", "callable", "no-step", "base", "two", "none"],
)
def test_what_is_none(trainable, text):
    with pytest.raises(ConfigError, match=text):
        check_trainable(trainable)


class Saves(Good):
    def save_checkpoint(self, checkpoint_dir):
        return {}


@pytest.mark.parametrize("trainable", [Saves, trainables.function], ids=["saves", "function"])
def test_checkpoints_that_can_be_asked_of_a_trainable(trainable):
    check_checkpointing(trainable, wanted=True)


def test_checkpoints_that_cannot():
    check_checkpointing(Good, wanted=False)
    with pytest.raises(ConfigError, match=r"Good has no save_checkpoint\(\), so checkpoint_frequency"):
        check_checkpointing(Good, wanted=True)


def test_names():
    assert trainable_name(trainables.function) == "function"
    assert trainable_name(functools.partial(two, other=1)) == "two"
    assert trainable_name(Good) == "Good"


def test_importable_names_lead_back():
    for trainable in (trainables.function, trainables.Counting):
        name = importable_name(trainable)
        assert name is not None
        assert import_trainable(name) is trainable


def test_what_cannot_be_imported_has_no_such_name():
    def local(config):
        pass

    replaced = functools.wraps(trainables.function)(lambda config: None)
    for trainable in (local, lambda config: None, functools.partial(two, other=1), replaced):
        assert importable_name(trainable) is None


@pytest.mark.parametrize(
    "name", ["no.such.module:f", "tests.tuning.trainables:no_such_name", "tests.tuning.trainables:json"]
)
def test_a_name_that_leads_nowhere(name):
    with pytest.raises(ConfigError, match=r"trainable"):
        import_trainable(name)


def test_what_a_trainable_is_by_itself():
    made = Good()
    assert (made.config, made.iteration, made.training_iteration, made.logdir) == ({}, 0, 0, "")
    assert made.reset_config({}) is False
    made.setup({})
    made.cleanup()
    for call in (made.save_checkpoint, made.load_checkpoint, lambda _: Trainable().step()):
        with pytest.raises(NotImplementedError):
            call("")
    with pytest.raises(NotImplementedError, match=r"Good has no save_checkpoint\(\); define it"):
        made.save_checkpoint("")
