"""What code inside a trial talks to."""

from __future__ import annotations

import asyncio
import threading

import pytest

from asynctune import Checkpoint, ConfigError, TrialInterrupted, session
from asynctune.session import bind


class Context:
    """A trial that answers as told."""

    def __init__(self, name="t1", decision="CONTINUE"):
        self.trial_id = name
        self.trial_name = f"name-{name}"
        self.trial_dir = f"/{name}"
        self.checkpoint = None
        self.decision = decision
        self.got = []

    def report(self, metrics, checkpoint):
        self.got.append((metrics, checkpoint))
        return self.decision

    async def areport(self, metrics, checkpoint):
        return self.report(metrics, checkpoint)


def in_a_thread(call):
    """What it returns or raises in a thread without context variables."""
    answer = []

    def run():
        try:
            answer.append(call())
        except BaseException as error:  # noqa: BLE001
            answer.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return answer[0]


def test_reports_go_to_the_trial():
    here, checkpoint = Context(), Checkpoint.from_dict({"a": 1})
    with bind(here):
        session.report({"loss": 1})
        session.report({"loss": 2}, checkpoint=checkpoint)
        facts = (session.get_trial_id(), session.get_trial_name(), session.get_trial_dir())
        assert session.get_checkpoint() is None
    assert here.got == [({"loss": 1}, None), ({"loss": 2}, checkpoint)]
    assert facts == ("t1", "name-t1", "/t1")


async def test_reports_of_coroutines_are_awaited():
    here = Context()
    with bind(here):
        await session.areport({"loss": 1})
        with pytest.raises(ConfigError, match="would block the event loop"):
            session.report({"loss": 2})
    assert here.got == [({"loss": 1}, None)]


@pytest.mark.parametrize("decision", ["STOP", "PAUSE"])
async def test_a_decision_is_raised_and_is_no_exception_of_the_usual_kind(decision):
    with bind(Context(decision=decision)):
        with pytest.raises(TrialInterrupted) as interrupted:
            await session.areport({"loss": 1})
        assert interrupted.value.decision == decision
        assert not isinstance(interrupted.value, Exception)


@pytest.mark.parametrize(
    "call",
    [
        lambda: session.report({}),
        session.get_checkpoint,
        session.get_trial_id,
        session.get_trial_name,
        session.get_trial_dir,
    ],
    ids=["report", "checkpoint", "id", "name", "dir"],
)
def test_outside_of_a_trial_there_is_no_session(call):
    with pytest.raises(ConfigError, match="outside of a trial"):
        call()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [((3,), "mapping of metric names"), ((None,), "NoneType"), (({}, "path"), "from_directory")],
    ids=["number", "none", "path"],
)
async def test_what_is_no_report(arguments, text):
    here = Context()
    with bind(here):
        with pytest.raises(ConfigError, match=text):
            await session.areport(*arguments)
        assert isinstance(in_a_thread(lambda: session.report(*arguments)), ConfigError)
    assert not here.got


def test_threads_find_the_only_trial_of_a_process():
    here = Context()
    with bind(here, whole_process=True):
        assert in_a_thread(session.get_trial_id) == "t1"
        assert in_a_thread(lambda: session.report({"loss": 1})) is None
    assert here.got == [({"loss": 1}, None)]
    assert isinstance(in_a_thread(session.get_trial_id), ConfigError)
    with bind(here):
        assert isinstance(in_a_thread(session.get_trial_id), ConfigError), "one of many trials here"


def test_a_thread_that_was_there_before_is_of_no_trial():
    go_on, answer = threading.Event(), []

    def run():
        go_on.wait()
        try:
            session.get_trial_id()
        except ConfigError as error:
            answer.append(str(error))

    with bind(Context("first"), whole_process=True):
        thread = threading.Thread(target=run)
        thread.start()
    with bind(Context("second"), whole_process=True):
        go_on.set()
        thread.join()
        assert in_a_thread(session.get_trial_id) == "second"
    assert "a thread that an earlier trial started" in answer[0]


async def test_trials_side_by_side_keep_apart():
    async def trial(here):
        with bind(here):
            for number in range(5):
                await asyncio.sleep(0)
                await session.areport({"number": number, "id": session.get_trial_id()})

    contexts = [Context(f"t{number}") for number in range(5)]
    await asyncio.gather(*map(trial, contexts))
    for here in contexts:
        assert [metrics for metrics, _ in here.got] == [
            {"number": number, "id": here.trial_id} for number in range(5)
        ]


async def test_a_task_of_a_trial_is_in_it():
    here = Context()
    with bind(here):
        task = asyncio.create_task(session.areport({"loss": 1}))
    await task
    assert here.got == [({"loss": 1}, None)]
