"""What a trial finds in its worker process, and what is made of its end."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from asynctune import TrialFailedError, session
from asynctune.checkpoints.staging import StagedCheckpoint
from tests.runners import trials
from tests.runners.world import BareWorker, Reports, lives, task


async def failure(runner, task):
    with pytest.raises(TrialFailedError) as failed:
        await runner.run_trial(task, Reports())
    return str(failed.value)


# -- how trials end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1])
async def test_leaving_python_is_a_failure_of_the_trial(start, tmp_path, code):
    assert f"SystemExit: {code}" in await failure(await start(trials.exits), task(tmp_path, code=code))
    assert f"exit code {code}" in await failure(await start(trials.leaves), task(tmp_path, code=code))


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("interrupt", "KeyboardInterrupt"),
        ("unprintable", "Unprintable"),
        ("surrogate", r"bad \udcff text"),
        ("huge", "characters ..."),
        ("group", "KeyError: 'two'"),
        ("recursion", "RecursionError"),
    ],
    ids=lambda each: each if each.isalpha() and each.islower() else "",
)
async def test_any_exception_becomes_a_text(start, tmp_path, what, text):
    told = await failure(await start(trials.raises), task(tmp_path, what=what))
    assert text in told
    assert "trials.py" in told
    assert "worker.py" not in told
    assert len(told) < 101_000


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("huge", "a report is 68,.* bytes packed"),
        ("object", r"a report\['metrics'\]\['x'\] is of type object"),
        ("deep", "nested too deeply"),
        ("number", "a report takes a mapping"),
        ("checkpoint", "checkpoint must be a Checkpoint"),
    ],
)
async def test_a_report_that_cannot_be_stored_fails_where_it_was_made(start, tmp_path, what, text):
    runner = await start(trials.reports_badly)
    with pytest.raises(TrialFailedError, match=rf"session\.report(.|\n)*ConfigError: {text}|{text}"):
        await runner.run_trial(task(tmp_path, what=what), Reports())


async def test_foreign_numbers_arrive_as_pythons(start, tmp_path):
    runner = await start(trials.numbers)
    reports = Reports()
    await runner.run_trial(task(tmp_path), reports)
    (row,) = reports.metrics
    assert math.isnan(row.pop("nan"))
    assert row == {
        "float32": 0.5,
        "float64": 0.25,
        "int": 3,
        "bool": True,
        "zero": 1.5,
        "inf": -math.inf,
        "set": {1, 2},
    }
    assert [type(value) for value in row.values()] == [float, float, int, bool, float, float, set]


async def test_a_generators_cleanup_runs_before_its_trial_has_ended(start, tmp_path):
    for trial in (trials.generates, trials.agenerates, trials.acleans_up):
        runner = await start(trial)
        here = task(tmp_path, trial.__name__)
        await runner.run_trial(here, Reports({2: "STOP"}))
        assert (tmp_path / trial.__name__ / "cleaned").exists()


async def test_tasks_of_a_trial_that_is_stopped_are_no_failure(start, tmp_path):
    runner = await start(trials.araises)
    await runner.run_trial(task(tmp_path, what="group"), Reports({3: "STOP"}))


# -- threads and processes of a trial ----------------------------------------------------------------------


async def test_a_thread_of_the_trial_reports_and_is_told(start, tmp_path, capfd):
    runner = await start(trials.reports_in_a_thread)
    reports = Reports({2: "STOP"})
    await runner.run_trial(task(tmp_path), reports)
    assert [each["loss"] for each in reports.metrics] == [1, 2]
    assert (tmp_path / "t1" / "seen").read_text() == "['TrialInterrupted']"
    assert "Traceback" not in capfd.readouterr().err


async def test_a_thread_of_an_earlier_trial_cannot_report_for_this_one(start, tmp_path):
    runner = await start(trials.leaves_a_thread)
    reports = Reports()
    await runner.run_trial(task(tmp_path, first=True), reports)
    await runner.run_trial(task(tmp_path, "t2", first=False), reports)
    (row,) = reports.metrics
    assert "an earlier trial" in row["said"][0]


async def test_one_that_knows_whose_it_is_cannot_report_when_that_has_ended(start, tmp_path):
    runner = await start(trials.leaves_a_thread_with_its_context)
    reports = Reports()
    await runner.run_trial(task(tmp_path, first=True), reports)
    await runner.run_trial(task(tmp_path, "t2", first=False), reports)
    (row,) = reports.metrics
    assert row["said"][0].startswith("trial t1 has ended, and takes no more reports")


@pytest.fixture
def bare():
    """Starts workers whose driver is the test itself."""
    made = []

    def make(trainable):
        made.append(BareWorker(trainable))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_worker_ends_at_once_when_its_driver_is_gone(bare, tmp_path):
    """While a trial runs that says nothing, and the process that started it lives on."""
    worker = bare(trials.blocks)
    worker.run(tmp_path, how="sleep")
    assert worker.next()["kind"] == "report"
    worker.send(kind="answer", decision="CONTINUE")
    worker.connection.close()
    assert worker.process.wait(30) == 0


def test_a_child_that_a_trial_forked_does_not_hold_the_connection(bare, tmp_path):
    worker = bare(trials.forks)
    worker.run(tmp_path)
    child = worker.next()["metrics"]["child"]
    worker.send(kind="answer", decision="CONTINUE")
    assert worker.next() == {"kind": "ended"}
    worker.send(kind="bye")
    assert worker.next() is None, "the end of the connection"
    assert lives(child)


@pytest.mark.parametrize("method", ["fork", "spawn"])
async def test_a_trial_may_use_processes(start, tmp_path, method):
    runner = await start(trials.multiprocesses)
    reports = Reports()
    await runner.run_trial(task(tmp_path, method=method), reports)
    assert reports.metrics == [{"squares": [1, 4, 9]}]


# -- output ------------------------------------------------------------------------------------------------


async def test_output_goes_to_files_on_request_and_is_appended(start, tmp_path, capfd):
    runner = await start(trials.prints, log_to_file=True)
    for lines in (1, 2):
        await runner.run_trial(task(tmp_path, lines=lines), Reports())
    await runner.run_trial(task(tmp_path, "t2", lines=0), Reports())
    line = "x" * 99
    assert (tmp_path / "t1/stdout").read_text().splitlines() == [
        line,
        "raw",
        "from C",
        line,
        line,
        "raw",
        "from C",
    ]
    assert (tmp_path / "t1/stderr").read_text() == "err\nerr\n"
    assert sorted((tmp_path / "t2/stdout").read_text().splitlines()) == ["from C", "raw"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("log_to_file", [True, False], ids=["file", "terminal"])
async def test_much_output_stops_nothing(start, tmp_path, log_to_file, capfd):
    runner = await start(trials.prints, log_to_file=log_to_file)
    await runner.run_trial(task(tmp_path, lines=100_000), Reports())
    printed = (tmp_path / "t1/stdout").read_text() if log_to_file else capfd.readouterr().out
    assert printed.count("x") == 9_900_000


async def test_what_was_printed_before_a_crash_is_there(start, tmp_path):
    runner = await start(trials.prints, log_to_file=True)
    assert "SIGKILL" in await failure(runner, task(tmp_path, lines=3, kill=True))
    assert (tmp_path / "t1/stdout").read_text().count("x") == 297


# -- what trials leave behind ------------------------------------------------------------------------------


@pytest.mark.parametrize("log_to_file", [True, False], ids=["file", "terminal"])
async def test_the_next_trial_finds_none_of_it(start, tmp_path, log_to_file):
    runner = await start(trials.disturbs, log_to_file=log_to_file)
    reports = Reports()
    await runner.run_trial(task(tmp_path, disturb=True), reports)
    await runner.run_trial(task(tmp_path, "t2" if not log_to_file else "t1", disturb=False), reports)
    first, second = reports.metrics
    assert second == {
        "pid": first["pid"],
        "directory": first["directory"],
        "stdout": first["stdout"],
        "term": True,
        "interrupt": True,
        "timer": 0.0,
        "prints": True,
    }


async def test_a_trial_that_closes_its_connection_has_failed(start, tmp_path):
    runner = await start(trials.closes_everything)
    told = await failure(runner, task(tmp_path))
    # by whichever notices it first: the end of the process, or its next use of a descriptor
    assert "the worker process of trial t1 ended with exit code" in told or "Bad file descriptor" in told


async def test_a_worker_has_the_drivers_path_and_arguments(start, tmp_path, monkeypatch):
    import sys  # noqa: PLC0415

    monkeypatch.setattr(sys, "argv", ["program", "--flag"])
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    runner = await start(trials.arguments)
    reports = Reports()
    await runner.run_trial(task(tmp_path), reports)
    (row,) = reports.metrics
    assert row["argv"] == ["program", "--flag"]
    assert row["path"] == [os.path.abspath(each) for each in sys.path]


# -- checkpoints -------------------------------------------------------------------------------------------


async def test_a_checkpoint_is_staged_once_and_its_directory_is_free_again(start, tmp_path):
    runner = await start(trials.same_directory)
    reports = Reports()
    await runner.run_trial(task(tmp_path), reports)
    staged = [StagedCheckpoint.from_value(report.checkpoint) for report in reports.got]
    assert [Path(each.path, "file").read_text() for each in staged] == ["0", "1", "2"]
    assert all(report.move for report in reports.got)


async def test_a_staged_checkpoint_that_is_refused_is_removed(start, tmp_path):
    from asynctune import ConfigError  # noqa: PLC0415

    runner = await start(trials.same_directory)
    with pytest.raises(TrialFailedError, match="refused"):
        await runner.run_trial(task(tmp_path), Reports({1: ConfigError("refused")}))
    assert [path.name for path in (tmp_path / "t1").iterdir()] == ["mine"]


async def test_a_function_may_be_a_closure_or_a_lambda(start, tmp_path):
    reports = Reports()
    runner = await start(lambda config: session.report({"x": config["x"]}))
    await runner.run_trial(task(tmp_path, x=1), reports)
    assert reports.metrics == [{"x": 1}]
