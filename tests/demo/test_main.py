"""The whole demo in its own process, as people start it: killed, interrupted, damaged, refused."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import psutil
import pytest
from click.testing import CliRunner, Result

from asynctune import ExperimentStore
from asynctune.demo.__main__ import main
from tests.killing import ROOT, Ended

DEMO: Final = ["-m", "asynctune.demo"]
# One worker: trials report in one order, so that the search goes the same way each time.
SMALL: Final = ["--trials", "3", "--epochs", "3", "--workers", "1"]


def as_begun(directory: Path) -> list[str]:
    return [*DEMO, str(directory), *SMALL]


def in_process(*arguments: object) -> Result:
    """Run the command here, which spares the imports."""
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture(autouse=True)
def _same_environment(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # as the command does, for good


def start(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *as_begun(directory)],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def epochs(directory: Path) -> int:
    """How many epochs have a checkpoint; the newest one may not be committed yet."""
    newest: dict[Path, int] = {}
    for path in directory.glob("DigitsTrial_*/checkpoint_*"):
        newest[path.parent] = max(newest.get(path.parent, 0), int(path.name[11:17]))
    return sum(newest.values())


def stop_at(directory: Path, epoch: int, number: int) -> Ended:
    """Start the demo, and send it a signal when so many epochs have a checkpoint."""
    with start(directory) as process:
        while epochs(directory) < epoch and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(number)
        output, _ = process.communicate()
    return Ended(process.returncode, output)


def trials(directory: Path) -> list[tuple[dict[str, object], list[tuple[int, float, float]]]]:
    """Of each trial its config, and epoch, loss and accuracy of its rows."""
    found = []
    for path in sorted(directory.glob("DigitsTrial_*")):
        results = [json.loads(line) for line in (path / "result.json").read_text().splitlines()]
        rows = [(row["training_iteration"], row["loss"], row["accuracy"]) for row in results]
        found.append((json.loads((path / "params.json").read_text()), rows))
    return found


def best(output: str) -> list[str]:
    """What is said of the best trial, without its name."""
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("best: trial "))
    return [lines[first].split(maxsplit=3)[3], *lines[first + 1 : first + 5]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[str, Path]:
    directory = tmp_path_factory.mktemp("undisturbed") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        ended = in_process(directory, *SMALL)
    assert ended.exit_code == 0, ended.output
    return ended.output, directory


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "demo"


def test_it_ends_with_the_best_trial_and_what_to_do_next(undisturbed):
    output, directory = undisturbed
    text = " ".join(best(output))
    assert re.match(r"accuracy 0\.[4-9]\d+ on the validation images +learning_rate=", text)
    assert re.search(r"its checkpoint of epoch [1-3]: 0\.[4-9]\d+ on test images that the search", text)
    assert f"python -m asynctune.inspect {directory}" in output
    assert f"python -m asynctune.demo {directory} --trials 15" in output
    assert [len(rows) for _, rows in trials(directory)] == [3, 3, 3]


def test_killed_and_interrupted_it_ends_with_the_same_trials(undisturbed, directory):
    killed, interrupted = stop_at(directory, 2, signal.SIGKILL), stop_at(directory, 5, signal.SIGINT)
    ended = in_process(directory, "--workers", 1)
    print(killed.output, interrupted.output, ended.output, sep="\n---\n")
    assert killed.code == -signal.SIGKILL
    check_stopped(interrupted, 130, directory)
    assert ended.exit_code == 0
    assert trials(directory) == trials(undisturbed[1])
    assert best(ended.output) == best(undisturbed[0])
    going_on = r"^Going on with {} in checkpoints; {} of 3 trials ended before\.$"
    assert re.search(going_on.format(r"(1 epoch|2 epochs)", 0), interrupted.output, re.MULTILINE)
    assert re.search(going_on.format(r"[45] epochs", 1), ended.output, re.MULTILINE)
    assert re.search(r"^  \w+_00001 goes on from its checkpoint of epoch [12]$", ended.output, re.MULTILINE)


def check_stopped(ended: Ended, code: int, directory: Path) -> None:
    assert ended.code == code, ended.output
    assert f"To go on: python -m asynctune.demo {directory} --trials 3" in ended.output
    assert "Traceback" not in ended.output


def test_a_finished_experiment_is_shown_again_and_can_be_extended(directory):
    first = in_process(directory, "--trials", 1, "--epochs", 1)
    again = in_process(directory)
    assert again.exit_code == 0
    assert again.output.startswith("This experiment is finished; nothing is left to run.\n")
    assert best(again.output) == best(first.output)
    more = in_process(directory, "--trials", 2)
    assert more.exit_code == 0
    assert more.output.startswith("Going on with 1 epoch in checkpoints; 1 of 2 trials ended before.\n")
    assert [len(rows) for _, rows in trials(directory)] == [1, 1]


def test_it_goes_on_after_sigterm_and_past_a_damaged_checkpoint(undisturbed, directory):
    check_stopped(stop_at(directory, 2, signal.SIGTERM), 143, directory)
    newest = max(directory.glob("DigitsTrial_*_00000/checkpoint_*"), key=lambda path: path.name)
    (newest / "arrays.npz").write_bytes(b"damaged")
    ended = in_process(directory, "--workers", 1)
    assert ended.exit_code == 0, ended.output
    assert re.search(r"_00000 goes on from its checkpoint of epoch [123]$", ended.output, re.MULTILINE)
    assert trials(directory) == trials(undisturbed[1])


def test_a_killed_worker_costs_its_epoch_and_no_more(undisturbed, directory):
    with start(directory) as process:
        while not epochs(directory):
            assert process.poll() is None
            time.sleep(0.005)
        for worker in psutil.Process(process.pid).children():
            worker.kill()
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "SIGKILL" in output
    assert trials(directory) == trials(undisturbed[1])


BAD: Final = {
    "a file": (["{}/file"], 1, "not a directory"),
    "other files": (["{}/files"], 1, "no experiment state"),
    "another experiment": (["{}/other"], 1, "not made by a Tuner"),
    "another number of epochs": (["{}/demo", "--epochs", "7"], 1, "begun with --epochs 3, not 7"),
    "another seed": (["{}/demo", "--seed", "7"], 1, "begun with --seed 1, not 7"),
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
    if case == "another experiment":
        asyncio.run(make_experiment(tmp_path / "other"))
    ended = in_process(*(each.format(tmp_path) for each in arguments))
    assert ended.exit_code == code, ended.output
    assert message in ended.output
    assert (tmp_path / "files" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "x").exists()


async def make_experiment(directory: Path) -> None:
    async with ExperimentStore.open(directory) as store:
        store.add_trial({})


@pytest.mark.parametrize("module", ["sklearn", "numpy", "optuna"])
def test_a_missing_package_names_the_extra(directory, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    ended = in_process(directory)
    assert ended.exit_code == 1
    assert "pip install 'asynctune[demo]'" in ended.output
    assert not directory.exists()


def test_on_a_terminal_the_tuner_draws_and_every_line_fits(directory):
    ours, other = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    command = [sys.executable, *as_begun(directory)]
    seen = b""
    with subprocess.Popen(
        command, cwd=ROOT, stdin=other, stdout=other, stderr=other, env=environment
    ) as process:
        os.close(other)
        try:
            while part := os.read(ours, 65536):
                seen += part
                if b"best accuracy" in seen:
                    process.kill()
        except OSError:  # the other end of a terminal that is gone
            pass
    os.close(ours)
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l"), "it has a cursor"
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode()).replace("\r", "\n").split("\n")
    assert any("1 running" in line for line in lines)
    assert any("best accuracy" in line for line in lines)
    assert max(map(len, lines)) <= 80
