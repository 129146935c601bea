"""The whole demo in its own process, as people start it: killed, interrupted, damaged, refused."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.killing import ROOT, Ended, Moment, run_killed, run_whole

DEMO: Final = ["-m", "asynctune.demo"]
SMALL: Final = ["--trials", "5", "--epochs", "4", "--seed", "3"]


def table(ended: Ended) -> list[str]:
    return [line for line in ended.lines if re.match(r"trial_\d\d( \*)? +(terminated|error) ", line)]


def rows(directory: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Epoch, loss and accuracy of each trial's result rows."""
    found = {}
    for path in sorted(directory.glob("trial_*/result.json")):
        results = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [(r["training_iteration"], r["loss"], r["accuracy"]) for r in results]
    return found


def as_begun(directory: Path) -> list[str]:
    return [*DEMO, str(directory), *SMALL]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Ended, Path]:
    directory = tmp_path_factory.mktemp("undisturbed") / "demo"
    return run_whole(as_begun(directory)), directory


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "demo"


def test_it_ends_with_the_table_and_the_best_accuracy(undisturbed):
    ended, directory = undisturbed
    assert ended.code == 0, ended.output
    assert len(table(ended)) == 5
    assert sum(" * " in line for line in table(ended)) == 1
    assert re.search(
        r"best: trial_\d\d, accuracy 0\.9\d+ on the validation images, 0\.[89]\d+ on test", ended.output
    )
    assert re.search(r"[1-9]\d* commits, which took \d+\.\d% of the time", ended.output)
    assert f"python -m asynctune.inspect {directory}" in ended.output
    assert sorted(len(each) for each in rows(directory).values()) == [1, 1, 1, 2, 4]
    assert not (directory / ".demo").exists()


def test_killed_at_any_moment_it_ends_with_the_same_table(undisturbed, directory, rng):
    expected, expected_directory = undisturbed
    starts = []
    for _ in range(3):
        moment = Moment.draw(rng, lines=6, seconds=0.6)
        print(moment)
        starts.append(run_killed(as_begun(directory), moment))
    starts.append(run_whole([*DEMO, str(directory)]))
    print(*(start.output for start in starts), sep="\n---\n")
    assert starts[-1].code == 0
    assert table(starts[-1]) == table(expected)
    assert rows(directory) == rows(expected_directory)
    for start in starts:
        assert "Traceback" not in start.output
        assert "lost     not known" not in start.output
    kept = [
        int(found[1]) for s in starts if (found := re.search(r"kept +(\d+) of 5 trials finished", s.output))
    ]
    assert kept == sorted(kept)


def test_a_restart_says_what_was_kept_resumed_and_lost(directory):
    # After the third line two rungs are reached; both workers are in the middle of something else.
    killed = run_killed(as_begun(directory), Moment(lines=4, seconds=0.2))
    assert killed.code == -signal.SIGKILL
    again = run_killed(as_begun(directory), Moment(lines=7, seconds=0))
    assert re.search(
        r"^Going on: the driver before died at \d\d:\d\d:\d\d\.\d\d\d, \d+\.\d s ago",
        again.output,
        re.MULTILINE,
    )
    assert re.search(r"^  kept +\d of 5 trials finished before, \d paused", again.output, re.MULTILINE)
    assert re.search(r"^  resumed +(trial_\d\d from |nothing)", again.output, re.MULTILINE)
    assert re.search(
        r"^  lost +[\d,]+ ms of training since the newest checkpoints", again.output, re.MULTILINE
    )
    assert re.search(r"^ +[\d,]+ ms of records", again.output, re.MULTILINE)


def test_a_finished_experiment_is_shown_again(undisturbed):
    first, directory = undisturbed
    again = run_whole([*DEMO, str(directory)])
    assert again.code == 0
    assert again.lines[0].startswith("This experiment is finished: 5 trials")
    assert table(again) == table(first)
    assert "commits" not in again.output
    assert f"start anew:   rm -r {directory}" in again.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_cleanly(directory, number, code):
    stopped = run_killed(as_begun(directory), Moment(lines=3, seconds=0.2), number)
    assert stopped.code == code, stopped.output
    assert f"To go on: python -m asynctune.demo {directory} --trials 5" in stopped.output
    assert "Traceback" not in stopped.output
    again = run_killed(as_begun(directory), Moment(lines=3, seconds=0))
    assert "the driver before was stopped at" in again.output


def test_a_killed_worker_costs_its_epoch_and_no_more(undisturbed, directory):
    with subprocess.Popen(
        [sys.executable, *as_begun(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        head = process.stdout.readline() + process.stdout.readline()
        for worker in psutil.Process(process.pid).children():
            worker.kill()
        output = head + process.stdout.read()
    ended = Ended(process.returncode, output)
    assert ended.code == 0, output
    assert "exit code -9" in output
    assert table(ended) == table(undisturbed[0])
    assert rows(directory) == rows(undisturbed[1])


@pytest.mark.parametrize("damaged", ["newest", "all"])
def test_damaged_checkpoints_are_passed_over_aloud(directory, damaged):
    arguments = [*DEMO, str(directory), "--trials", "2", "--epochs", "16"]
    # Cleanly, so that every directory there is a committed checkpoint. One trial is finished, one on its way.
    run_killed(arguments, Moment(lines=5, seconds=0.2), signal.SIGTERM)
    trial = max(directory.glob("trial_*/checkpoint_*"), key=lambda path: path.name).parent
    for checkpoint in sorted(trial.glob("checkpoint_*"))[-1 if damaged == "newest" else 0 :]:
        (checkpoint / "arrays.npz").write_bytes(b"damaged")
    ended = run_whole([*DEMO, str(directory)])
    assert ended.code == 0, ended.output
    assert "is damaged" in ended.output
    epochs = [epoch for epoch, _, _ in rows(directory)[trial.name]]
    if damaged == "newest":
        assert epochs == list(range(1, 17))
    else:
        assert re.search(
            rf"^{trial.name} failed: no checkpoint of trial \S+ is intact", ended.output, re.MULTILINE
        )
        assert re.search(rf"^{trial.name}( \*)? +error ", ended.output, re.MULTILINE)


def test_a_second_driver_is_refused(directory):
    with subprocess.Popen(
        [sys.executable, *as_begun(directory)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        second = run_whole([*DEMO, str(directory)])
        process.kill()
    assert second.code == 1
    assert f"{process.pid}" in second.output
    assert "Traceback" not in second.output


BAD: Final = {
    "a missing parent": (["{}/no/such/place"], 1, "there is no directory"),
    "a file": (["{}/file"], 1, "not a directory"),
    "other files": (["{}/files"], 1, "no experiment state"),
    "another experiment": (["{}/other"], 1, "not the demo's"),
    "another number of trials": (["{}/demo", "--trials", "7"], 1, "begun with --trials 5, not 7"),
    "no trials": (["{}/x", "--trials", "0"], 2, "Invalid value for '--trials'"),
    "two directories": (["{}/x", "{}/y"], 2, "unexpected extra argument"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_and_nothing_is_changed(tmp_path, undisturbed, case):
    arguments, code, message = BAD[case]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "mine").write_text("mine")
    (tmp_path / "demo").symlink_to(undisturbed[1])
    script = (
        "import asyncio, sys; from asynctune import ExperimentStore\n"
        "async def main():\n"
        "    async with ExperimentStore.open(sys.argv[1]) as store: store.add_trial({})\n"
        "asyncio.run(main())"
    )
    if case == "another experiment":
        assert run_whole(["-c", script, str(tmp_path / "other")]).code == 0
    ended = run_whole([*DEMO, *(each.format(tmp_path) for each in arguments)])
    assert ended.code == code, ended.output
    assert message in ended.output
    assert "Traceback" not in ended.output
    assert (tmp_path / "files" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("module", ["sklearn", "numpy"])
def test_a_missing_package_names_the_extra(directory, module):
    script = (
        f"import sys, runpy; sys.modules[{module!r}] = None;"
        "runpy.run_module('asynctune.demo', run_name='__main__')"
    )
    ended = run_whole(["-c", script, str(directory)])
    assert ended.code == 1
    assert "pip install 'asynctune[demo]'" in ended.output
    assert "Traceback" not in ended.output
    assert not directory.exists()


def test_nobody_reading_stops_it(directory):
    with subprocess.Popen(
        [sys.executable, "-u", *as_begun(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 143
    assert "Traceback" not in errors


def test_on_a_terminal_it_draws_and_leaves_a_visible_cursor(directory):
    main, other = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    command = [sys.executable, *as_begun(directory)]
    seen = b""
    with subprocess.Popen(
        command, cwd=ROOT, stdin=other, stdout=other, stderr=other, env=environment
    ) as process:
        os.close(other)
        try:
            while part := os.read(main, 65536):
                seen += part
                if b"best so far" in seen:
                    process.kill()
        except OSError:  # the other end of a terminal that is gone
            pass
    os.close(main)
    text = seen.decode()
    assert "best so far" in text
    assert "━" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
    widths = [
        len(line) for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")
    ]
    assert max(widths) <= 80
