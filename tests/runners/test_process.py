"""Trials in worker processes: what they report, how they end, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asynctune import ConfigError, ProcessRunner, TrialFailedError, TrialReport, TrialTask, session
from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.testing import TrialRunnerTests
from tests.tuning import trainables


class TestProcessRunner(TrialRunnerTests):
    @pytest.fixture
    def make_runner(self):
        return ProcessRunner


class Reports:
    """Takes a trial's reports, and answers as told."""

    def __init__(self, answers=()):
        self.got = []
        self.answers = dict(answers)

    async def __call__(self, report: TrialReport):
        self.got.append(report)
        answer = self.answers.get(len(self.got), "CONTINUE")
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def metrics(self):
        return [report.metrics for report in self.got]


def task(tmp_path, trial_id="t1", **config):
    directory = tmp_path / trial_id
    directory.mkdir(exist_ok=True)
    return TrialTask(trial_id=trial_id, trial_name=trial_id, trial_dir=str(directory), config=config)


@pytest.fixture
async def start():
    runners = []

    async def make(trainable, *, hung_after_s=60.0, **options):
        runner = ProcessRunner(2, hung_after_s=hung_after_s)
        runners.append(runner)
        await runner.start(trainable, options)
        return runner

    yield make
    for runner in runners:
        await runner.aclose()


async def test_a_worker_is_used_for_one_trial_after_the_other(start, tmp_path):
    runner = await start(trainables.function)
    reports = Reports()
    await runner.run_trial(task(tmp_path, x=1), reports)
    await runner.run_trial(task(tmp_path, x=2), reports)
    assert [each["loss"] for each in reports.metrics] == [2, 3, 1, 3, 4, 2]
    pids = {each["pid"] for each in reports.metrics}
    assert len(pids) == 1
    assert pids != {os.getpid()}
    await runner.aclose()
    assert not Path(f"/proc/{pids.pop()}").exists()


async def test_trials_run_beside_each_other(start, tmp_path):
    runner = await start(trainables.function)
    reports = Reports()
    await asyncio.gather(*(runner.run_trial(task(tmp_path, f"t{n}", x=n), reports) for n in range(2)))
    assert len({each["pid"] for each in reports.metrics}) == 2


@pytest.mark.parametrize("answer", ["STOP", "PAUSE"])
async def test_a_trial_that_is_told_to_stop_ends(start, tmp_path, answer):
    runner = await start(trainables.function)
    reports = Reports({1: answer})
    await runner.run_trial(task(tmp_path, x=1), reports)
    assert len(reports.got) == 1


async def test_generators_and_coroutines_run_too(start, tmp_path):
    reports = Reports()
    await (await start(trainables.generator)).run_trial(task(tmp_path, x=1), reports)
    assert [each["loss"] for each in reports.metrics] == [0, 1, 2]
    reports = Reports()
    await (await start(trainables.coroutine)).run_trial(task(tmp_path, x=1), reports)
    assert len(reports.got) == 10


async def test_checkpoints_are_staged_beside_the_trial(start, tmp_path):
    runner = await start(trainables.with_directory)
    reports = Reports()
    await runner.run_trial(task(tmp_path, iterations=2), reports)
    staged = [StagedCheckpoint.from_value(report.checkpoint) for report in reports.got]
    assert [Path(each.path).parent for each in staged] == [tmp_path / "t1"] * 2
    assert len({each.path for each in staged}) == 2


async def test_an_exception_is_told_with_the_trials_own_frames(start, tmp_path):
    runner = await start(trainables.failing)
    with pytest.raises(TrialFailedError, match="ValueError: no 3") as failed:
        await runner.run_trial(task(tmp_path, x=3), Reports())
    assert "worker.py" not in str(failed.value)
    assert "trainables.py" in str(failed.value)


async def test_a_mistake_in_a_report_is_raised_where_it_was_made(start, tmp_path):
    runner = await start(trainables.function)
    with pytest.raises(TrialFailedError, match=r"session\.report(.|\n)*ConfigError: not like this"):
        await runner.run_trial(task(tmp_path, x=3), Reports({2: ConfigError("not like this")}))


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
async def test_a_killed_worker_is_told_of_by_its_signal(start, tmp_path, name):
    runner = await start(trainables.with_directory)
    with pytest.raises(TrialFailedError, match=name):
        await runner.run_trial(task(tmp_path, iterations=3, die_at=2, signal=name), Reports())
    reports = Reports()
    await runner.run_trial(task(tmp_path, iterations=1), reports)  # another worker took its place
    assert len(reports.got) == 1


def leaves(config):
    os._exit(config["code"])


async def test_a_worker_that_ends_by_itself(start, tmp_path):
    runner = await start(leaves)
    with pytest.raises(TrialFailedError, match="exit code 7"):
        await runner.run_trial(task(tmp_path, code=7), Reports())


async def test_a_hung_worker_is_killed(start, tmp_path):
    runner = await start(trainables.with_directory, hung_after_s=2.0)
    with pytest.raises(TrialFailedError, match="no sign of life"):
        await runner.run_trial(task(tmp_path, iterations=3, die_at=2, signal="SIGSTOP"), Reports())


def computes(config):
    import ctypes  # noqa: PLC0415

    # holds the interpreter, as a bad extension does
    ctypes.PyDLL(None).usleep.restype = None
    end = time.process_time() + config["seconds"]
    buffer = bytes(50_000_000)
    while time.process_time() < end:
        buffer.count(b"x")
    session.report({"done": True})


async def test_one_that_computes_is_left_alone(start, tmp_path):
    runner = await start(computes, hung_after_s=0.5)
    reports = Reports()
    await runner.run_trial(task(tmp_path, seconds=1), reports)
    assert len(reports.got) == 1


async def test_cancelling_kills_the_worker(start, tmp_path):
    runner = await start(trainables.function)
    blocked = asyncio.Event()
    pids = []

    async def report(each):
        pids.append(each.metrics["pid"])
        blocked.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(runner.run_trial(task(tmp_path, x=1), report))
    await blocked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not Path(f"/proc/{pids[0]}").exists()


async def test_what_cannot_be_sent_is_refused_at_the_start(start):
    file = open("/dev/null")  # noqa: SIM115
    try:
        with pytest.raises(ConfigError, match="cannot be sent"):
            await start(file.read)
    finally:
        file.close()


async def test_closures_travel(start, tmp_path):
    factor = 7

    def closure(config):
        session.report({"loss": config["x"] * factor})

    reports = Reports()
    await (await start(closure)).run_trial(task(tmp_path, x=6), reports)
    assert reports.metrics == [{"loss": 42}]


async def test_output_goes_to_files_on_request(start, tmp_path):
    def talks(config):
        print("hello from", config["x"])
        print("oh no", file=sys.stderr)

    runner = await start(talks, log_to_file=True)
    await runner.run_trial(task(tmp_path, x=1), Reports())
    assert (tmp_path / "t1/stdout").read_text() == "hello from 1\n"
    assert (tmp_path / "t1/stderr").read_text() == "oh no\n"


async def test_one_object_of_a_class_is_used_again(start, tmp_path):
    runner = await start(trainables.Dictionary, checkpoint_frequency=2)
    reports = Reports()
    await runner.run_trial(task(tmp_path, until=3), reports)
    await runner.run_trial(task(tmp_path, until=1), reports)
    assert [each["count"] for each in reports.metrics] == [1, 2, 3, 1]
    assert [each["resets"] for each in reports.metrics] == [0, 0, 0, 1]
    assert [report.checkpoint is not None for report in reports.got] == [False, True, False, False]


DRIVER = """
import asyncio, sys
from asynctune import ProcessRunner, TrialTask
from tests.tuning import trainables

async def report(each):
    print(each.metrics["pid"], flush=True)
    await asyncio.Event().wait()

async def main():
    runner = ProcessRunner(1)
    await runner.start(trainables.function, {})
    task = TrialTask(trial_id="t", trial_name="t", trial_dir=sys.argv[1], config={"x": 1})
    await runner.run_trial(task, report)

asyncio.run(main())
"""


def test_a_dead_drivers_workers_end_by_themselves(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        worker = int(driver.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        driver.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.05)
    raise AssertionError("it lives on")
