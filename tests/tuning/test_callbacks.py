"""Callbacks are told everything, one after the other, and harm nobody."""

from __future__ import annotations

import asyncio

import pytest

from asynctune import ConfigError
from asynctune.tuning.callbacks import Callbacks


class Plain:
    """Keeps what it hears."""

    def __init__(self, heard, name="plain"):
        self.heard, self.name = heard, name

    def on_trial_start(self, trial):
        self.heard.append((self.name, trial))


class Waiting(Plain):
    """Waits for a while at each event."""

    async def on_trial_start(self, trial):
        self.heard.append((self.name, "began", trial))
        for _ in range(3):
            await asyncio.sleep(0)
        self.heard.append((self.name, "ended", trial))


async def test_plain_and_async_ones_in_the_order_they_were_given():
    heard: list = []
    callbacks = Callbacks([Plain(heard, "a"), Waiting(heard, "b"), Plain(heard, "c")], print)
    await callbacks.tell("on_trial_start", 1)
    await callbacks.tell("on_trial_complete", 1)
    assert heard == [("a", 1), ("b", "began", 1), ("b", "ended", 1), ("c", 1)]
    assert callbacks.listens("on_trial_start")
    assert not callbacks.listens("on_trial_complete")


async def test_events_of_trials_that_run_at_the_same_time_come_in_order_and_none_is_lost():
    heard: list = []
    callbacks = Callbacks([Waiting(heard, "slow"), Plain(heard, "quick")], print)
    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(callbacks.tell("on_trial_start", number))
    assert heard == [
        each
        for number in range(20)
        for each in (("slow", "began", number), ("slow", "ended", number), ("quick", number))
    ]


class Failing:
    """Raises what it was given."""

    def __init__(self, error):
        self.error = error

    def on_trial_start(self, trial):
        raise self.error

    async def on_trial_complete(self, trial):
        await asyncio.sleep(0)
        raise self.error


@pytest.mark.parametrize("event", ["on_trial_start", "on_trial_complete"])
@pytest.mark.parametrize(
    "error", [RuntimeError("[red]no"), asyncio.CancelledError("not you")], ids=["error", "cancelled"]
)
async def test_what_one_raises_harms_no_other(caplog, event, error):
    told: list[str] = []
    heard: list = []
    second = Plain(heard)
    second.on_trial_complete = second.on_trial_start  # type: ignore[attr-defined]
    callbacks = Callbacks([Failing(error), second], told.append)
    await callbacks.tell(event, 1)
    assert heard == [("plain", 1)]
    assert told == [f"the callback Failing.{event} failed: {error!r}"]
    assert "Traceback" in caplog.text


def test_a_class_is_no_callback():
    with pytest.raises(ConfigError, match=r"not the class Plain; write Plain\("):
        Callbacks([Plain], print)


async def test_cancelling_the_trial_cancels_the_callback():
    entered = asyncio.Event()

    class Stuck:
        async def on_trial_start(self, trial):
            entered.set()
            await asyncio.Event().wait()

    told: list[str] = []
    callbacks = Callbacks([Stuck()], told.append)
    task = asyncio.create_task(callbacks.tell("on_trial_start", 1))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == []
    heard: list = []
    callbacks.objects = (Plain(heard),)
    await callbacks.tell("on_trial_start", 2)
    assert heard == [("plain", 2)], "the next one has its turn"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
async def test_who_wants_to_end_the_program_may(error):
    with pytest.raises(type(error)):
        await Callbacks([Failing(error)], print).tell("on_trial_start", 1)


@pytest.mark.parametrize(
    "callback", [object(), "text", type("Odd", (), {"on_trial_start": 3})()], ids=range(3)
)
def test_one_without_any_method_is_refused(callback):
    with pytest.raises(ConfigError, match="none of the methods on_trial_start, "):
        Callbacks([callback], print)
