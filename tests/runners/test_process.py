"""Trials in worker processes: what they report, how they end, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import psutil
import pytest

import asynctune
from asynctune import ConfigError, ProcessRunner, TrialFailedError, session
from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.runners import frames, orders, process, spawning
from asynctune.testing import TrialRunnerTests
from tests.runners import trials
from tests.runners.world import Reports, ends, lives, task
from tests.tuning import trainables


class TestProcessRunner(TrialRunnerTests):
    @pytest.fixture
    def make_runner(self):
        return ProcessRunner


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


async def test_one_that_was_asked_to_end_leaves_time_for_its_driver_to_be_asked_too(
    start, tmp_path, monkeypatch
):
    """Who ends all processes of a group reaches them one after the other: such a trial has not failed."""
    runner = await start(trainables.with_directory)
    real, pausing = asyncio.sleep, asyncio.Event()
    monkeypatch.setattr(process, "_SIGTERM_PAUSE_S", 1234.5)

    async def sleep(seconds, *args):
        if seconds == 1234.5:
            pausing.set()
            await asyncio.Event().wait()
        await real(seconds, *args)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    here = task(tmp_path, iterations=3, die_at=2, signal="SIGTERM")
    running = asyncio.create_task(runner.run_trial(here, Reports()))
    waiting = asyncio.create_task(pausing.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    assert waiting.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_worker_that_ends_by_itself(start, tmp_path):
    runner = await start(trials.leaves)
    with pytest.raises(TrialFailedError, match="exit code 7"):
        await runner.run_trial(task(tmp_path, code=7), Reports())


async def test_a_hung_worker_is_killed(start, tmp_path):
    runner = await start(trainables.with_directory, hung_after_s=2.0)
    with pytest.raises(TrialFailedError, match="no sign of life"):
        await runner.run_trial(task(tmp_path, iterations=3, die_at=2, signal="SIGSTOP"), Reports())


async def test_one_that_computes_is_left_alone(start, tmp_path):
    def computes(config):
        3**5_000_000  # one step of the interpreter, which lets nobody else run  # noqa: B018
        session.report({"done": True})

    runner = await start(computes, hung_after_s=0.2)
    reports = Reports()
    await runner.run_trial(task(tmp_path), reports)
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


async def test_a_worker_whose_trial_failed_is_not_used_again(start, tmp_path):
    def fails(config):
        session.report({"pid": os.getpid()})
        if config["fail"]:
            raise ValueError

    runner = await start(fails)
    reports = Reports()
    for fail in (False, False, True, False):
        with contextlib.suppress(TrialFailedError):
            await runner.run_trial(task(tmp_path, fail=fail), reports)
    pids = [each["pid"] for each in reports.metrics]
    assert pids[0] == pids[1] == pids[2] != pids[3]
    assert not lives(pids[0])


@pytest.mark.parametrize("decision", ["STOP", "PAUSE"])
async def test_a_trial_that_goes_on_for_good_is_killed_and_has_not_failed(start, tmp_path, decision, caplog):
    runner = await start(trials.ignores, stop_grace_s=0.3)
    reports = Reports({1: decision})
    await runner.run_trial(task(tmp_path), reports)
    assert len(reports.got) == 1
    assert not lives(reports.metrics[0]["pid"])
    assert f"trial t1 was told to {decision} and did not end for 0.3 s" in caplog.text


async def test_what_a_trial_saves_at_its_end_does_not_start_it_over(start, tmp_path, caplog):
    """The answer to that is that all is well; it has been told to stop nevertheless."""
    runner = await start(trials.HangsAtItsEnd, stop_grace_s=0.3, checkpoint_at_end=True)
    reports = Reports({1: "STOP"})
    await runner.run_trial(task(tmp_path), reports)
    assert [each.checkpoint is not None for each in reports.got] == [False, True]
    assert not lives(reports.metrics[0]["pid"])
    assert "trial t1 was told to STOP and did not end for 0.3 s" in caplog.text


async def test_what_a_trial_started_ends_with_its_worker(start, tmp_path):
    runner = await start(trials.starts_children)
    reported = asyncio.Event()
    pids = {}

    async def report(each):
        pids.update(each.metrics)
        reported.set()
        return "CONTINUE"

    running = asyncio.create_task(runner.run_trial(task(tmp_path), report))
    await reported.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not lives(pids["pid"])
    await ends(pids["child"])


@pytest.mark.parametrize("trial", [trials.forks, trials.forks_in_c], ids=["python", "c"])
async def test_a_child_that_outlives_a_dead_worker_keeps_nobody_waiting(start, tmp_path, trial):
    runner = await start(trial)
    reports = Reports()
    with pytest.raises(TrialFailedError, match="SIGKILL"):
        await runner.run_trial(task(tmp_path, die=True), reports)
    assert len(reports.got) == 1, "the child's report is not the trial's"
    await ends(reports.metrics[0]["child"])


async def test_a_child_that_lives_on_does_not_speak_for_the_trial(start, tmp_path):
    runner = await start(trials.forks)
    reports = Reports()
    await runner.run_trial(task(tmp_path), reports)
    assert [list(each) for each in reports.metrics] == [["child"]]


@pytest.mark.parametrize("steps", [*range(0, 20, 4), *range(20, 140, 15)])
async def test_cancelling_at_any_moment_leaves_no_process(start, tmp_path, steps):
    runner = await start(trials.pid)
    before = set(psutil.Process().children())
    running = asyncio.create_task(runner.run_trial(task(tmp_path), Reports()))
    for _ in range(steps):
        await asyncio.sleep(0.001 if steps > 20 else 0)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await runner.aclose()
    assert set(psutil.Process().children()) <= before


async def test_cancelling_twice_while_a_worker_is_started_leaves_no_process(start, tmp_path, monkeypatch):
    started, go_on = asyncio.Event(), threading.Event()
    made = []
    real, loop = spawning._spawn, asyncio.get_running_loop()

    def slowly(theirs):
        loop.call_soon_threadsafe(started.set)
        go_on.wait()
        made.append(real(theirs))
        return made[0]

    monkeypatch.setattr(spawning, "_spawn", slowly)
    runner = await start(trials.pid)
    running = asyncio.create_task(runner.run_trial(task(tmp_path), Reports()))
    await started.wait()
    for _ in range(2):
        running.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await running
    go_on.set()
    while not made or made[0].returncode is None:  # noqa: ASYNC110 - of a thread that nobody awaits
        await asyncio.sleep(0.01)


async def test_closing_ends_a_trial_that_runs(start, tmp_path):
    runner = await start(trials.blocks)
    reported = asyncio.Event()

    async def report(_):
        reported.set()
        return "CONTINUE"

    running = asyncio.create_task(runner.run_trial(task(tmp_path, how="sleep"), report))
    await reported.wait()
    await runner.aclose()
    with pytest.raises(TrialFailedError):
        await running


async def test_a_closed_runner_can_be_started_again(start, tmp_path):
    runner = await start(trials.pid)
    await runner.aclose()
    with pytest.raises(TrialFailedError, match="closed"):
        await runner.run_trial(task(tmp_path), Reports())
    await runner.start(trials.pid, {})
    reports = Reports()
    for _ in range(2):
        await runner.run_trial(task(tmp_path), reports)
    assert len({each["pid"] for each in reports.metrics}) == 1


async def test_a_runner_is_one_drivers_at_a_time(start, tmp_path):
    runner = await start(trials.pid)
    with pytest.raises(ConfigError, match=r"this ProcessRunner is in use: .* a runner for each Tuner"):
        await runner.start(trials.leaves, {})
    await runner.run_trial(task(tmp_path), Reports())  # of the trainable that it was started with


async def test_a_start_that_failed_does_not_count(start):
    runner = ProcessRunner(1)
    with open("/dev/null") as file, pytest.raises(ConfigError, match="cannot be sent"):
        await runner.start(file.read, {})
    await runner.start(trials.pid, {})
    await runner.aclose()


async def test_a_config_that_is_too_large_fails_its_trial_alone(start, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 10_000)
    runner = await start(trials.pid)
    with pytest.raises(TrialFailedError, match=r"the config of trial t1 is 20,... bytes packed"):
        await runner.run_trial(task(tmp_path, x=b"x" * 20_000), Reports())
    await runner.run_trial(task(tmp_path), Reports())


async def test_a_trainable_that_is_too_large_is_refused_at_the_start(start, monkeypatch):
    monkeypatch.setattr(orders, "MAX_FRAME_BYTES", 1 << 21)
    data = os.urandom(1 << 21)
    with pytest.raises(ConfigError, match=r"the trainable '.*<lambda>' is 2,\d.* load large data inside"):
        await start(lambda config: data)


async def test_a_trainable_that_workers_cannot_import_is_told_clearly(start, tmp_path, monkeypatch):
    module = types.ModuleType("only_here")
    exec("def trial(config): pass", vars(module))
    monkeypatch.setitem(sys.modules, "only_here", module)
    runner = await start(module.trial)
    started, real = [], spawning._spawn

    def spawn(theirs):
        started.append(theirs)
        return real(theirs)

    monkeypatch.setattr(spawning, "_spawn", spawn)
    for _ in range(3):
        with pytest.raises(TrialFailedError, match=r"could not load the trainable(.|\n)*only_here"):
            await runner.run_trial(task(tmp_path), Reports())
    assert len(started) == 1, "no other worker could, either"
    await runner.aclose()
    await runner.start(trials.pid, {})
    await runner.run_trial(task(tmp_path), Reports())


async def test_one_that_was_loaded_before_is_tried_again(start, tmp_path, monkeypatch):
    """Somebody may be at work on the file."""
    module = tmp_path / "changing.py"
    good = "import os\ndef trial(config):\n    os._exit(3) if config['die'] else None\n"
    module.write_text(good, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    runner = await start(importlib.import_module("changing").trial)
    monkeypatch.delitem(sys.modules, "changing")
    with pytest.raises(TrialFailedError, match="exit code 3"):
        await runner.run_trial(task(tmp_path, die=True), Reports())
    module.write_text("half a line (", "utf-8")
    with pytest.raises(TrialFailedError, match="SyntaxError"):
        await runner.run_trial(task(tmp_path, die=False), Reports())
    module.write_text(good, "utf-8")
    await runner.run_trial(task(tmp_path, die=False), Reports())


async def test_workers_import_the_package_of_their_driver(start, tmp_path, monkeypatch):
    """Not the one that the interpreter would find first."""
    other = tmp_path / "elsewhere" / "asynctune"
    other.mkdir(parents=True)
    Path(other, "__init__.py").write_text("raise RuntimeError('another copy')", "ascii")
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    runner = await start(trials.arguments)
    reports = Reports()
    await runner.run_trial(task(tmp_path), reports)
    assert reports.metrics[0]["package"] == asynctune.__file__
    assert reports.metrics[0]["path"] == [os.path.abspath(each) for each in sys.path]


async def test_a_working_directory_may_be_gone(start, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.syspath_prepend("here")
    gone.rmdir()
    runner = await start(trials.arguments)
    reports = Reports()
    for _ in range(2):
        await runner.run_trial(task(tmp_path), reports)
    assert reports.metrics[0]["path"] == reports.metrics[1]["path"] == sys.path


@pytest.mark.parametrize(
    "arguments",
    [{"max_concurrent": 0}, {"max_concurrent": True}, {"hung_after_s": 0}, {"stop_grace_s": "long"}],
    ids=str,
)
def test_numbers_that_make_no_sense(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        ProcessRunner(**arguments)


DRIVER = """
import asyncio, sys
from asynctune import ProcessRunner, TrialTask, session

def trial(config):
    import os, time, ctypes
    session.report({"pid": os.getpid()})
    open(session.get_trial_dir() + "/started", "w").close()
    time.sleep(60) if config["how"] == "sleep" else ctypes.PyDLL(None).sleep(60)

async def report(each):
    print(each.metrics["pid"], flush=True)
    return "CONTINUE"

async def main():
    runner = ProcessRunner(1)
    try:
        await runner.start(trial, {})
        config = {"how": sys.argv[2]}
        task = TrialTask(trial_id="t", trial_name="t", trial_dir=sys.argv[1], config=config)
        await runner.run_trial(task, report)
    finally:
        await runner.aclose()

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["sleep", "holding-the-interpreter"])
async def test_a_dead_drivers_workers_end_by_themselves(tmp_path, how):
    command = [sys.executable, "-c", DRIVER, str(tmp_path), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        worker = int(await asyncio.to_thread(driver.stdout.readline))
        assert lives(worker)
        while not (tmp_path / "started").exists():  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
    await ends(worker)


async def test_ctrl_c_is_the_drivers_business_alone(tmp_path):
    """A terminal sends it to the whole group: no worker says anything about it."""
    command = [sys.executable, "-c", DRIVER, str(tmp_path), "sleep"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as driver:
        assert driver.stdout is not None
        assert driver.stderr is not None
        worker = int(await asyncio.to_thread(driver.stdout.readline))
        os.killpg(driver.pid, signal.SIGINT)
        said = await asyncio.to_thread(driver.stderr.read)
    assert said.count("Traceback") <= 2, said  # the driver's own: cancelled, and interrupted
    assert "worker.py" not in said
    await ends(worker)


SCRIPT = """
import asyncio, os, sys
from asynctune import ProcessRunner, TrialTask, session

class Helper:
    factor = 3

def trial(config):
    session.report({"loss": config["x"] * Helper.factor, "pid": os.getpid()})

async def main():
    async def report(each):
        print(each.metrics["loss"], each.metrics["pid"] != os.getpid())
        return "CONTINUE"

    runner = ProcessRunner(1)
    await runner.start(trial, {})
    task = TrialTask(trial_id="t", trial_name="t", trial_dir=sys.argv[-1], config={"x": 2})
    await runner.run_trial(task, report)
    await runner.aclose()

print("main")
asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["file", "standard-input", "command"])
def test_a_script_without_a_guard_runs_once(tmp_path, how):
    Path(tmp_path, "queue.py").write_text(
        "raise RuntimeError('a module of the user, not the library')", "ascii"
    )
    Path(tmp_path, "script.py").write_text(SCRIPT, "ascii")
    arguments = {"file": ["-P", "script.py"], "standard-input": ["-P", "-"], "command": ["-P", "-c", SCRIPT]}
    done = subprocess.run(
        [sys.executable, *arguments[how], str(tmp_path)],
        input=SCRIPT if how == "standard-input" else None,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("main\n6 True\n", "")


QUIET = """
import asyncio, sys
from asynctune import ProcessRunner, TrialTask

def trial(config):
    print("hello", flush=True)

async def main():
    runner = ProcessRunner(1)
    await runner.start(trial, {"log_to_file": True})
    for _ in range(2):
        task = TrialTask(trial_id="t", trial_name="t", trial_dir=sys.argv[1], config={})
        await runner.run_trial(task, None)
    await runner.aclose()

asyncio.run(main())
"""


def test_a_driver_may_have_closed_its_output(tmp_path):
    command = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', sys.executable, "-c", QUIET, str(tmp_path)]
    subprocess.run(command, check=True)
    assert (tmp_path / "stdout").read_text() == "hello\nhello\n"
    assert not (tmp_path / "stderr").read_text()
