from __future__ import annotations

import asyncio
import importlib.util
import re
import subprocess
import sys
from typing import Any, Final

import pytest

from asynctune import ExperimentStore, TrialStatus
from tests.killing import ROOT, Moment, run_killed, run_whole

SCRIPT: Final = ROOT / "docs" / "examples" / "remote_jobs.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("remote_jobs_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def port():
    command = [sys.executable, str(SCRIPT), "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        yield int(service.stdout.readline().split()[-1])
        service.kill()


def test_killed_drivers_neither_lose_nor_repeat_a_job(example, port, tmp_path, rng):
    directory = str(tmp_path / "experiment")
    command = [str(SCRIPT), "run", directory, "--port", str(port)]
    drivers = []
    for _ in range(4):
        moment = Moment.draw(rng, lines=4, seconds=0.4)
        print(moment)
        drivers.append(run_killed(command, moment))
    drivers.append(run_whole(command))
    print(*(driver.output for driver in drivers), sep="\n---\n")
    assert drivers[-1].code == 0

    stats = asyncio.run(example.call(port, "GET", "/stats"))
    assert stats["jobs"] == example.TRIALS
    assert len(set(stats["posts"])) == example.TRIALS
    asyncio.run(check(example, directory, stats["posts"]))

    # What one driver has finished and committed, the next one finds finished.
    finished = [int(driver.lines[0].split()[0]) for driver in drivers if driver.output]
    assert finished == sorted(finished)
    again = run_whole(command)
    assert again.code == 0
    assert again.lines[0] == "12 trials were finished, 0 run elsewhere: []"
    assert asyncio.run(example.call(port, "GET", "/stats")) == stats


async def check(example: Any, directory: str, posts: list[str]) -> None:
    async with ExperimentStore.open(directory, mode="read") as store:
        assert len(store.trials) == example.TRIALS
        jobs = {trial.metadata["job"] for trial in store.trials}
        assert len(jobs) == example.TRIALS
        assert {trial.trial_id for trial in store.trials} == set(posts)
        for trial in store.trials:
            assert trial.status is TrialStatus.TERMINATED
            assert trial.num_results == 1
            assert trial.last_result["loss"] == example.branin(**trial.config)


def test_a_driver_killed_after_the_post_finds_the_job_by_its_key(example, port, tmp_path):
    # The one moment that matters most: the service has the job, and the driver's note of it is not on disk.
    directory = str(tmp_path / "experiment")

    async def post_and_forget() -> str:
        async with ExperimentStore.open(directory) as store:
            trial = store.add_trial({"x": 1.0, "y": 2.0})
            store.set_status(trial.trial_id, TrialStatus.RUNNING)
            await store.flush()
            config = dict(trial.config)
            reply = await example.call(port, "POST", "/jobs", config, Idempotency_Key=trial.trial_id)
            return str(reply["job"])

    job = asyncio.run(post_and_forget())
    ended = run_whole([str(SCRIPT), "run", directory, "--port", str(port)])
    assert ended.code == 0, ended.output
    assert re.search(rf"_00000 {job} loss", ended.output)
    assert "1 run elsewhere" in ended.lines[0]
    stats = asyncio.run(example.call(port, "GET", "/stats"))
    assert stats["jobs"] == example.TRIALS
    assert len(stats["posts"]) == example.TRIALS + 1


def test_a_refused_request_is_an_error(example, port):
    with pytest.raises(RuntimeError, match="404"):
        asyncio.run(example.call(port, "GET", "/jobs/none"))
