from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import Final

import pytest

from asynctune import ExperimentStore, TrialStatus
from tests.killing import ROOT, Ended, Moment, run_killed, run_whole

SCRIPT: Final = ROOT / "docs" / "examples" / "population_based.py"
KILLS: Final = 3


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Ended:
    return run_whole([str(SCRIPT), str(tmp_path_factory.mktemp("population") / "experiment")])


def outcome(ended: Ended) -> list[str]:
    return [line for line in ended.lines if line.startswith(("member_", "best:"))]


def test_it_learns(undisturbed):
    assert undisturbed.code == 0, undisturbed.output
    found = re.search(r"best: member_\d, accuracy (0\.\d+)", undisturbed.output)
    assert found is not None
    assert float(found[1]) > 0.9
    assert len(outcome(undisturbed)) == 9
    assert undisturbed.output.count("trained ") == 8 * 6
    assert undisturbed.output.count("cloned ") == 2 * 6


def test_killed_drivers_end_where_an_undisturbed_one_does(undisturbed, tmp_path, rng):
    directory = str(tmp_path / "experiment")
    drivers = []
    for _ in range(KILLS):
        moment = Moment.draw(rng, lines=25, seconds=0.1)
        print(moment)
        drivers.append(run_killed([str(SCRIPT), directory], moment))
    drivers.append(run_whole([str(SCRIPT), directory]))
    print(*(driver.output for driver in drivers), sep="\n---\n")
    assert drivers[-1].code == 0
    assert outcome(drivers[-1]) == outcome(undisturbed)

    # A generation that was printed as trained had its checkpoint: nobody trains it again.
    trained = Counter(
        re.findall(r"trained (\S+ generation \d+ accuracy \S+)", "".join(d.output for d in drivers))
    )
    assert set(trained.values()) == {1}
    assert set(trained) <= set(re.findall(r"trained (\S+ generation \d+ accuracy \S+)", undisturbed.output))
    asyncio.run(check(directory))


async def check(directory: str) -> None:
    async with ExperimentStore.open(directory, mode="read") as store:
        assert len(store.trials) == 8
        for trial in store.trials:
            assert trial.status is TrialStatus.TERMINATED
            assert trial.last_result["training_iteration"] == 12
            assert len(trial.checkpoints) == 1


def test_a_finished_experiment_trains_nothing_more(tmp_path):
    command = [str(SCRIPT), str(tmp_path / "experiment")]
    first = run_whole(command)
    again = run_whole(command)
    assert again.code == 0, again.output
    assert "trained" not in again.output
    assert outcome(again) == outcome(first)
