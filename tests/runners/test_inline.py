"""Trials as coroutines on the driver's loop."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from asynctune import ConfigError, InlineRunner, TrialFailedError, session
from asynctune.testing import TrialRunnerTests
from asynctune.trainable import TrainableKind
from tests.runners import trials
from tests.runners.world import Reports, task


class TestInlineRunner(TrialRunnerTests):
    kinds = frozenset({TrainableKind.COROUTINE})

    @pytest.fixture
    def make_runner(self):
        return InlineRunner


async def failure(runner, trial, task):
    await runner.start(trial, {})
    with pytest.raises(TrialFailedError) as failed:
        await runner.run_trial(task, Reports())
    return str(failed.value)


@pytest.mark.parametrize(
    ("what", "text"),
    [("exit", "SystemExit: 3"), ("cancelled", "something that it awaited had been cancelled")],
)
async def test_what_would_end_the_driver_is_a_failure_of_the_trial(tmp_path, what, text):
    assert text in await failure(InlineRunner(), trials.araises, task(tmp_path, what=what))
    running = asyncio.current_task()
    assert running is not None
    assert not running.cancelling()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit])
async def test_so_is_what_other_trials_would_end_with(tmp_path, kind):
    async def raises(config):
        raise kind("its own")

    assert f"{kind.__name__}: its own" in await failure(InlineRunner(), raises, task(tmp_path))


async def test_tasks_of_a_trial_that_is_stopped_are_no_failure(tmp_path):
    runner = InlineRunner()
    await runner.start(trials.araises, {})
    await runner.run_trial(task(tmp_path, what="group"), Reports({3: "STOP"}))


@pytest.mark.parametrize("trial", [trials.acleans_up, trials.agenerates], ids=["coroutine", "generator"])
@pytest.mark.parametrize("end", ["STOP", "PAUSE", "cancel"])
async def test_cleanup_runs_however_a_trial_ends(tmp_path, trial, end):
    runner = InlineRunner()
    await runner.start(trial, {})
    reports = Reports({} if end == "cancel" else {3: end})
    running = asyncio.create_task(runner.run_trial(task(tmp_path), reports))
    if end == "cancel":
        while len(reports.got) < 3:  # noqa: ASYNC110 - it reports at each turn of the loop
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    else:
        await running
        assert len(reports.got) == 3
    assert (tmp_path / "t1" / "cleaned").exists()


async def slow_to_end(config):
    try:
        await session.areport({"loss": 1})
    finally:
        await asyncio.Event().wait()


async def test_a_trial_that_does_not_end_is_cancelled_and_has_not_failed(tmp_path, caplog):
    runner = InlineRunner(stop_grace_s=0.05)
    await runner.start(slow_to_end, {})
    reports = Reports({1: "STOP"})
    await runner.run_trial(task(tmp_path), reports)
    assert len(reports.got) == 1
    assert "trial t1 was told to STOP and did not end for 0.05 s" in caplog.text
    running = asyncio.current_task()
    assert running is not None
    assert not running.cancelling()


async def test_one_that_swallows_it_for_long_leaves_the_loop_to_others(tmp_path, monkeypatch):
    monkeypatch.setattr("asynctune.runners.inline._BETWEEN_REPORTS_S", 0.001)
    others = asyncio.Event()

    async def ignores(config):
        while not others.is_set():
            with contextlib.suppress(BaseException):
                await session.areport({"loss": 1})

    runner, reports = InlineRunner(), Reports({1: "STOP"})
    await runner.start(ignores, {})
    running = asyncio.create_task(runner.run_trial(task(tmp_path), reports))
    for _ in range(50):
        await asyncio.sleep(0)
    others.set()
    await running
    assert len(reports.got) == 1


async def test_one_that_is_cancelled_while_it_ends_is_cancelled(tmp_path):
    ending = asyncio.Event()

    async def slow(config):
        try:
            await session.areport({"loss": 1})
        finally:
            ending.set()
            await asyncio.Event().wait()

    runner = InlineRunner(stop_grace_s=60)
    await runner.start(slow, {})
    running = asyncio.create_task(runner.run_trial(task(tmp_path), Reports({1: "STOP"})))
    await ending.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_trial_may_have_timeouts_of_its_own(tmp_path):
    async def patient(config):
        for _ in range(2):
            try:
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
            except TimeoutError:
                await session.areport({"timed out": True})

    runner, reports = InlineRunner(), Reports()
    await runner.start(patient, {})
    await runner.run_trial(task(tmp_path), reports)
    assert len(reports.got) == 2


async def test_a_runner_is_one_drivers_at_a_time():
    runner = InlineRunner()
    with pytest.raises(ConfigError, match="awaits coroutine functions"):
        await runner.start(trials.pid, {})
    await runner.start(trials.acleans_up, {})
    with pytest.raises(ConfigError, match=r"this InlineRunner is in use: .* a runner for each Tuner"):
        await runner.start(trials.acleans_up, {})
    await runner.aclose()
    await runner.start(trials.acleans_up, {})


async def test_what_a_trial_left_behind_reports_to_nobody(tmp_path):
    """Not for the trial, which has ended, and not for its next start."""
    go_on = asyncio.Event()
    said = []

    async def late():
        await go_on.wait()
        try:
            await session.areport({"ghost": 1})
        except ConfigError as error:
            said.append(str(error))

    left: list[asyncio.Task[None]] = []

    async def leaves(config):
        if not left:
            left.append(asyncio.create_task(late()))
            raise ValueError("first")
        go_on.set()
        await left[0]
        await session.areport({"loss": 1})

    runner, reports = InlineRunner(), Reports()
    await runner.start(leaves, {})
    with pytest.raises(TrialFailedError, match="first"):
        await runner.run_trial(task(tmp_path), reports)
    await runner.run_trial(task(tmp_path), reports)
    assert reports.metrics == [{"loss": 1}]
    assert said == ["trial t1 has ended, and takes no more reports; await what it starts in it"]


async def test_a_report_that_outlives_its_trial_cancels_nobody(tmp_path):
    """The answer to a task that a trial left behind tells a trial to stop that is no more."""
    answered = asyncio.Event()
    left = []

    async def report(_):
        await answered.wait()
        return "STOP"

    async def leaves(config):
        left.append(asyncio.create_task(session.areport({"loss": 1})))
        await asyncio.sleep(0)

    runner = InlineRunner(stop_grace_s=0.001)
    await runner.start(leaves, {})
    timers = []
    await runner.run_trial(task(tmp_path), report)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "call_later", lambda *args, **_: timers.append(args))
        answered.set()
        with pytest.raises(session.TrialInterrupted):
            await left[0]
    assert timers == []


async def test_one_that_swallows_its_cancellation_reports_nothing_more(tmp_path):
    reports = Reports()
    raised: list[type[BaseException]] = []

    async def swallows(config):
        while len(raised) < 3:
            try:
                await session.areport({"loss": 1})
            except BaseException as error:  # noqa: BLE001
                raised.append(type(error))

    runner = InlineRunner()
    await runner.start(swallows, {})
    running = asyncio.create_task(runner.run_trial(task(tmp_path), reports))
    while not reports.got:  # noqa: ASYNC110 - it reports at each turn of the loop
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert raised == [asyncio.CancelledError] * 3
    assert len(reports.got) <= 2, "at most the one that was under way"


async def test_a_trial_may_report_in_a_block_that_has_timed_out(tmp_path):
    """A cancellation of its own is nobody else's."""

    async def patient(config):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                try:
                    await asyncio.Event().wait()
                finally:
                    await session.areport({"timed out": True})

    runner, reports = InlineRunner(), Reports()
    await runner.start(patient, {})
    await runner.run_trial(task(tmp_path), reports)
    assert len(reports.got) == 1


async def test_of_two_reports_at_the_same_time_the_first_decision_holds(tmp_path):
    both, first = asyncio.Barrier(2), asyncio.Event()
    told = []

    async def report(each):
        await both.wait()
        if each.metrics["n"] == 0:
            first.set()
            return "STOP"
        await first.wait()
        await asyncio.sleep(0)
        return each.metrics["answer"]

    async def reports(n, answer):
        try:
            await session.areport({"n": n, "answer": answer})
        except session.TrialInterrupted as error:
            told.append(error.decision)

    async def at_once(config):
        await asyncio.gather(*(reports(n, config["answer"]) for n in range(2)))

    runner = InlineRunner()
    await runner.start(at_once, {})
    for trial_id, answer in (("t1", "PAUSE"), ("t2", "CONTINUE")):
        first.clear()
        await runner.run_trial(task(tmp_path, trial_id, answer=answer), report)
    assert told == ["STOP"] * 4


async def test_each_of_many_trials_has_its_own_session(tmp_path):
    async def names(config):
        for _ in range(3):
            await asyncio.sleep(0)
            inner = asyncio.create_task(asyncio.to_thread(session.get_trial_id))
            await session.areport({"id": session.get_trial_id(), "inner": await inner, "x": config["x"]})

    runner, reports = InlineRunner(), Reports()
    await runner.start(names, {})
    await asyncio.gather(*(runner.run_trial(task(tmp_path, f"t{n}", x=f"t{n}"), reports) for n in range(20)))
    assert len(reports.metrics) == 60
    assert all(each["id"] == each["inner"] == each["x"] for each in reports.metrics)


async def test_a_config_is_the_trials_own(tmp_path):
    async def changes(config):
        config["x"] = 2

    here = task(tmp_path, x=1)
    runner = InlineRunner()
    await runner.start(changes, {})
    await runner.run_trial(here, Reports())
    assert here.config == {"x": 1}


async def test_a_blocking_report_is_refused(tmp_path):
    async def blocks(config):
        session.report({"loss": 1})

    assert "await session.areport" in await failure(InlineRunner(), blocks, task(tmp_path))

    async def blocks_in_a_thread(config):
        await asyncio.to_thread(session.report, {"loss": 1})

    assert "also from threads" in await failure(InlineRunner(), blocks_in_a_thread, task(tmp_path))


async def test_output_files_need_processes():
    with pytest.raises(ConfigError, match="log_to_file needs a process"):
        await InlineRunner().start(trials.acleans_up, {"log_to_file": True})


@pytest.mark.parametrize(
    "arguments", [{"max_concurrent": 0}, {"max_concurrent": 1.5}, {"stop_grace_s": 0}], ids=str
)
def test_numbers_that_make_no_sense(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        InlineRunner(**arguments)
