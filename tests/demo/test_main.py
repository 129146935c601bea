"""The whole demo in its own process, as people start it: killed, interrupted, damaged, moved, refused."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import boto3  # type: ignore[import-untyped]
import psutil
import pytest
from click.testing import CliRunner, Result

from asynctune import ExperimentNotFoundError, ExperimentStore
from asynctune.demo.__main__ import main
from tests.killing import ROOT, Ended
from tests.storage.moto import moto_server

DEMO: Final = ["-m", "asynctune.demo"]
# One worker: trials report in one order, so that the search goes the same way each time.
SMALL: Final = ["--trials", "3", "--epochs", "3", "--workers", "1"]


def as_begun(directory: Path) -> list[str]:
    return [str(directory), *SMALL]


def in_process(*arguments: object) -> Result:
    """Run the command here, which spares the imports."""
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture(autouse=True)
def _same_environment(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # as the command does, for good


def start(*arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *DEMO, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
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
    return stop_when(lambda: epochs(directory) >= epoch, as_begun(directory), number)


def stop_when(is_time: Callable[[], bool], arguments: Sequence[str], number: int, cwd: Path = ROOT) -> Ended:
    with start(*arguments, cwd=cwd) as process:
        while not is_time() and process.poll() is None:
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
    with start(*as_begun(directory)) as process:
        while not epochs(directory):
            assert process.poll() is None
            time.sleep(0.005)
        for worker in psutil.Process(process.pid).children():
            worker.kill()
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "SIGKILL" in output
    assert trials(directory) == trials(undisturbed[1])


# -- with a copy -------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch):
    """A client and a bucket's name, on a server that the environment tells of."""
    with moto_server() as endpoint:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client
        client.close()


KILLED_AT_THE_CLOSE = """
import os, sys
from asynctune.demo.__main__ import main
from asynctune.store.engine import Engine

async def killed(self, timeout_s):
    await self.flush()
    os._exit(9)

Engine.close = killed
main(sys.argv[1:])
"""


def has_whole_copies(client: Any, count: int) -> bool:
    """Whether the checkpoints of so many epochs have come to the bucket, and are complete there."""
    page = client.list_objects_v2(Bucket="bucket", Prefix="demos/mine/Digits")
    steps: dict[str, int] = {}
    for entry in page.get("Contents", ()):
        if entry["Key"].endswith("/.manifest.json"):
            _, _, trial, checkpoint, _ = entry["Key"].split("/")
            steps[trial] = max(steps.get(trial, 0), int(checkpoint[11:17]))
    return sum(steps.values()) >= count


async def restorable() -> int:
    """Of how many epochs the state in the bucket names a whole copy."""
    try:
        async with ExperimentStore.open("s3://bucket/demos/mine", "read") as store:
            copied = [
                [each.step or 0 for each in store.checkpoints(trial.trial_id) if each.mirrored]
                for trial in store.trials
            ]
            return sum(max(steps, default=0) for steps in copied)
    except ExperimentNotFoundError:
        return 0


def can_be_restored(epochs: int) -> bool:
    return asyncio.run(restorable()) >= epochs


@pytest.mark.timeout(150)
def test_killed_and_its_directory_deleted_it_goes_on_from_the_copy(undisturbed, tmp_path, bucket):
    directory = tmp_path / "mine"
    begun = ["mine", "--upload-dir", "s3://bucket/demos", *SMALL]
    from_uri = ["s3://bucket/demos/mine", "--workers", "1"]
    lives, promised = [], []
    for arguments, is_time in (
        (begun, functools.partial(has_whole_copies, bucket, 2)),
        (begun, functools.partial(has_whole_copies, bucket, 4)),
        (from_uri, lambda: directory.exists() and can_be_restored(3)),
    ):
        stopped = stop_when(is_time, arguments, signal.SIGKILL, cwd=tmp_path)
        assert stopped.code == -signal.SIGKILL, stopped.output
        lives.append(stopped.output)
        promised.append(asyncio.run(restorable()))
        shutil.rmtree(directory)
    with start(*from_uri, cwd=tmp_path) as process:
        output, _ = process.communicate()
    lives.append(output)
    print(*lives, sep="\n---\n")
    assert process.returncode == 0
    assert "A copy is kept in s3://bucket/demos/mine." in lives[0]
    going_on = (
        r"^Going on from s3://bucket/demos/mine, with (\d) epochs? in checkpoints; \d of 3 trials ended"
    )
    kept = [int(found[1]) for life in lives[1:] if (found := re.search(going_on, life, re.MULTILINE))]
    # More is there where a copy became whole after the state had named its checkpoint, and before the kill.
    assert all(found >= whole for found, whole in zip(kept, promised, strict=True))
    assert kept[-1] >= 3
    # Each trial is there once, with each epoch once, and with the same numbers as if nothing had happened.
    assert trials(directory) == trials(undisturbed[1])
    # But for the checkpoint: that of a trial which has ended may have been on its way still.
    told, expected = best(output), best(undisturbed[0])
    assert told[:3] + told[4:] == expected[:3] + expected[4:]
    assert re.search(r"^copy: complete, in s3://bucket/demos/mine$", output, re.MULTILINE)
    assert "elsewhere:    python -m asynctune.demo s3://bucket/demos/mine\n" in output


def test_killed_while_it_is_closed_it_is_closed_by_the_next(undisturbed, directory):
    stopped = subprocess.run(
        [sys.executable, "-c", KILLED_AT_THE_CLOSE, str(directory), *SMALL], check=False, capture_output=True
    )
    assert stopped.returncode == 9, stopped.stderr.decode()
    again = in_process(directory)
    assert again.exit_code == 0, again.output
    assert again.output.startswith("Going on with 9 epochs in checkpoints; 3 of 3 trials ended before.\n")
    assert trials(directory) == trials(undisturbed[1])
    assert in_process(directory).output.startswith("This experiment is finished; nothing is left to run.\n")


def test_a_copy_in_a_directory_is_shown_and_gone_on_with(tmp_path, directory):
    copies = tmp_path / "copies"
    copies.mkdir()
    first = in_process(directory, "--trials", 1, "--epochs", 1, "--upload-dir", copies)
    assert first.exit_code == 0, first.output
    assert f"copy: complete, in {copies}/demo\n" in first.output
    shutil.rmtree(directory)
    again = in_process(directory, "--upload-dir", copies)
    assert again.exit_code == 0, again.output
    assert again.output.startswith("This experiment is finished; nothing is left to run.\n")
    assert best(again.output) == best(first.output)
    assert f"elsewhere:    python -m asynctune.demo demo --upload-dir {copies}\n" in again.output
    assert not directory.exists(), "nothing was to be done there"
    assert f"python -m asynctune.inspect {copies}/demo\n" in again.output
    assert f"search on:    python -m asynctune.demo demo --upload-dir {copies} --trials 13\n" in again.output
    more = in_process(directory, "--upload-dir", copies, "--trials", 2)
    assert more.output.startswith(f"Going on from {copies}/demo, with 1 epoch in checkpoints; 1 of 2 trials")
    assert [len(rows) for _, rows in trials(directory)] == [1, 1]


def test_a_copy_is_added_to_an_experiment_that_had_none(tmp_path, directory):
    copies = tmp_path / "copies"
    copies.mkdir()
    in_process(directory, "--trials", 1, "--epochs", 1)
    more = in_process(directory, "--trials", 2, "--upload-dir", f"file://{copies}")
    assert more.exit_code == 0, more.output
    assert f"copy: complete, in {copies}/demo\n" in more.output
    shutil.rmtree(directory)
    again = in_process(directory, "--upload-dir", f"file://{copies}")
    assert best(again.output) == best(more.output)


BAD: Final = {
    "a file": (["{}/file"], 1, "not a directory"),
    "other files": (["{}/files"], 1, "no experiment state"),
    "another experiment": (["{}/other"], 1, "not made by a Tuner"),
    "another number of epochs": (["{}/demo", "--epochs", "7"], 1, "begun with --epochs 3, not 7"),
    "another seed": (["{}/demo", "--seed", "7"], 1, "begun with --seed 1, not 7"),
    "no trials": (["{}/x", "--trials", "0"], 2, "Invalid value for '--trials'"),
    "two places of a copy": (["s3://b/x", "--upload-dir", "s3://b"], 1, "leave --upload-dir out"),
    "no copy there": (["memory://nowhere/x"], 1, "no experiment at memory://nowhere/x"),
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
    command = [sys.executable, *DEMO, *as_begun(directory)]
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
