from __future__ import annotations

import importlib.util
import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from asynctune.packing import pack, unpack
from asynctune.protocols import TrialScheduler
from tests.killing import ROOT, Ended, Moment, run_killed, run_whole

EXAMPLE: Final = ROOT / "docs" / "examples" / "own_driver"
SMALL: Final = ["5", "4"]


def command(directory: Path) -> list[str]:
    return [str(EXAMPLE), str(directory), *SMALL]


def table(ended: Ended) -> list[str]:
    return [line for line in ended.lines if re.match(r"trial_\d\d (terminated|error) |best: ", line)]


def rows(directory: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Epoch, loss and accuracy of each trial's result rows."""
    found = {}
    for path in sorted(directory.glob("trial_*/result.json")):
        results = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [(r["training_iteration"], r["loss"], r["accuracy"]) for r in results]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Ended, Path]:
    directory = tmp_path_factory.mktemp("undisturbed") / "experiment"
    return run_whole(command(directory)), directory


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "experiment"


def test_it_ends_with_the_table_and_the_best(undisturbed):
    ended, directory = undisturbed
    assert ended.code == 0, ended.output
    assert len(table(ended)) == 6
    assert re.search(r"best: trial_\d\d, accuracy 0\.9\d+$", ended.output)
    assert sorted(len(each) for each in rows(directory).values()) == [1, 1, 1, 2, 4]
    assert not (directory / ".own_driver").exists()


def test_killed_at_any_moment_it_ends_with_the_same_table(undisturbed, directory, rng):
    expected, expected_directory = undisturbed
    starts = []
    for _ in range(3):
        moment = Moment.draw(rng, lines=6, seconds=0.4)
        print(moment)
        starts.append(run_killed(command(directory), moment))
    starts.append(run_whole(command(directory)))
    print(*(start.output for start in starts), sep="\n---\n")
    assert starts[-1].code == 0
    assert table(starts[-1]) == table(expected)
    assert rows(directory) == rows(expected_directory)
    kept = [int(found[1]) for s in starts if (found := re.search(r"(\d+) trials were finished", s.output))]
    assert kept == sorted(kept)


def test_a_killed_worker_costs_its_epoch_and_no_more(undisturbed, directory):
    with running(directory) as process:
        assert process.stdout is not None
        head = process.stdout.readline()
        psutil.Process(process.pid).children()[0].kill()
        ended = Ended(process.wait(), head + process.stdout.read())
    assert ended.code == 0, ended.output
    assert "exit code -9" in ended.output
    assert table(ended) == table(undisturbed[0])
    assert rows(directory) == rows(undisturbed[1])


def test_workers_end_by_themselves_when_the_driver_is_killed(directory):
    with running(directory) as process:
        assert process.stdout is not None
        process.stdout.readline()
        workers = psutil.Process(process.pid).children()
        process.kill()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def running(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_ctrl_c_stops_it_cleanly(directory):
    stopped = run_killed(command(directory), Moment(lines=1, seconds=0), signal.SIGINT)
    assert stopped.code == 1
    assert "start it again, and it goes on" in stopped.output
    assert "Traceback" not in stopped.output
    again = run_killed(command(directory), Moment(lines=1, seconds=0))
    assert "go on from their checkpoints: []" in again.output, "none is left in status RUNNING"


def test_another_plan_is_refused(undisturbed):
    ended = run_whole([str(EXAMPLE), str(undisturbed[1]), "6", "4"])
    assert ended.code == 1
    assert "was begun with {'trials': 5, 'epochs': 4}" in ended.output


# -- the scheduler alone -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halving() -> Any:
    spec = importlib.util.spec_from_file_location("own_driver_halving", EXAMPLE / "halving.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class World:
    """Twelve trials that train as the scheduler says, in any order, some of them failing."""

    def __init__(self, halving: Any, failing: dict[str, int]) -> None:
        self.halving = halving
        self.failing = failing
        self.epochs = {f"t{number:02}": 0 for number in range(12)}
        self.scheduler = halving.SuccessiveHalving(halving.rungs_of(16))
        for trial_id in self.epochs:
            self.scheduler.add_scores(trial_id, {})

    def ready(self) -> list[str]:
        return [each for each in self.epochs if self.scheduler.verdict(each) == "RUN"]

    def train(self, trial_id: str) -> None:
        until = self.scheduler.next_rung(trial_id)
        for epoch in range(self.epochs[trial_id] + 1, until + 1):
            if self.failing.get(trial_id) == epoch:
                self.scheduler.on_trial_error(trial_id)
                return
            self.epochs[trial_id] = epoch
            accuracy = random.Random(f"{trial_id}:{epoch}").randrange(20) / 20
            result = {"training_iteration": epoch, "accuracy": accuracy}
            decision = self.scheduler.on_trial_result(trial_id, result)
            assert decision == ("STOP" if epoch == 16 else "PAUSE" if epoch == until else "CONTINUE")

    def restart(self) -> None:
        state = unpack(pack(self.scheduler.get_state()))
        self.scheduler = self.halving.SuccessiveHalving([1])
        self.scheduler.set_state(state)


@pytest.mark.parametrize("failing", [{}, {"t03": 1}, {"t00": 2, "t05": 9, "t11": 16}])
def test_the_outcome_depends_on_no_order_and_on_no_restart(halving, failing, rng):
    expected: Any = None
    for _ in range(20):
        world = World(halving, failing)
        while ready := world.ready():
            world.train(rng.choice(ready))
            if rng.random() < 0.3:
                world.restart()
        expected = expected or world.epochs
        assert world.epochs == expected
        assert {world.scheduler.verdict(each) for each in world.epochs} == {"STOP"}


def test_the_better_half_goes_on_when_the_rung_is_complete(halving):
    scheduler = halving.SuccessiveHalving([1, 2])
    for trial_id in "abcd":
        scheduler.add_scores(trial_id, {})
    for trial_id, score in zip("abc", [0.5, 0.7, 0.5], strict=True):
        scheduler.on_trial_result(trial_id, {"training_iteration": 1, "accuracy": score})
    assert [scheduler.verdict(each) for each in "abcd"] == ["WAIT", "WAIT", "WAIT", "RUN"]
    scheduler.on_trial_result("d", {"training_iteration": 1, "accuracy": 0.1})
    assert [scheduler.verdict(each) for each in "abcd"] == ["RUN", "RUN", "STOP", "STOP"]  # a tie: the first


def test_it_is_a_trial_scheduler(halving):
    assert isinstance(halving.SuccessiveHalving([1]), TrialScheduler)
