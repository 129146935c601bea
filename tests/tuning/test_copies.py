"""A Tuner whose experiment has a copy: restored from a URI, by a syncer, on another disk."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal

import pytest

from asynctune.config import FailureConfig, RunConfig, SyncConfig, TuneConfig
from asynctune.errors import ConfigError, ExperimentExistsError
from asynctune.state.mirror.swapping import Swapper
from asynctune.storage.memory import MemoryStorage
from asynctune.testing import DirectorySyncer
from asynctune.trial import TrialStatus
from asynctune.tuning.progress import Progress
from asynctune.tuning.result_grid import ResultGrid
from asynctune.tuning.space import uniform
from asynctune.tuning.tuner import Tuner
from tests.tuning import trainables


@pytest.fixture
def bucket():
    name = f"bucket-{os.urandom(6).hex()}"
    yield f"memory://{name}/some/where"
    MemoryStorage.forget(name)


def run_config(tmp_path, sync: SyncConfig, **settings) -> RunConfig:
    given = {"verbose": 0, **settings}
    return RunConfig(name="exp", local_dir=tmp_path / "runs", sync_config=sync, **given)


def tuner(tmp_path, sync: SyncConfig, trainable=trainables.coroutine, **settings) -> Tuner:
    return Tuner(
        trainable,
        param_space={"x": uniform(0, 1)},
        tune_config=TuneConfig(num_samples=3, metric="loss", mode="min"),
        run_config=run_config(tmp_path, sync, **settings),
    )


async def test_failed_trials_go_on_from_the_bucket(tmp_path, bucket):
    sync = SyncConfig(upload_dir=bucket)
    results = await tuner(tmp_path, sync, trainables.failing_once).fit()
    assert results.num_errors == 3
    await asyncio.to_thread(shutil.rmtree, tmp_path / "runs")
    restored = await Tuner.restore(f"{bucket}/exp", resume_errored=True, local_dir=tmp_path / "other")
    assert restored.location == tmp_path / "other" / "exp"
    results = await restored.fit()
    assert [result.status for result in results] == [TrialStatus.TERMINATED] * 3
    for result in results:
        rows = await result.history()
        assert [row["training_iteration"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]


async def test_results_are_read_from_the_bucket(tmp_path, bucket):
    local = await tuner(tmp_path, SyncConfig(upload_dir=bucket)).fit()
    await asyncio.to_thread(shutil.rmtree, tmp_path / "runs")
    results = await ResultGrid.load(f"{bucket}/exp")
    assert [r.metrics for r in results] == [r.metrics for r in local]
    best = results.get_best_result()
    assert best.path == f"{bucket}/exp/coroutine_{best.trial_id}"
    assert [row["training_iteration"] for row in await best.history()] == list(range(1, 11))
    directory = await best.fetch_checkpoint(tmp_path / "best")
    assert sorted(await asyncio.to_thread(os.listdir, directory))


async def test_what_is_told_last_is_the_copy_as_it_was_closed(tmp_path, bucket, capsys, monkeypatch):
    """While it is brought up to date, what is left of it is not told as if that were the end."""
    held, swap = asyncio.Event(), Swapper.swap

    async def late(self, *arguments, closed, **named):
        if not closed:
            await held.wait()
        return await swap(self, *arguments, closed=closed, **named)

    made = tuner(tmp_path, SyncConfig(upload_dir=bucket), verbose=1)
    told = Progress.aclose

    async def then_go_on(self):
        await told(self)
        held.set()

    monkeypatch.setattr(Swapper, "swap", late)
    monkeypatch.setattr(Progress, "aclose", then_go_on)
    await made.fit()
    *before, last = [line for line in capsys.readouterr().err.splitlines() if line.startswith("copy: ")]
    assert re.fullmatch(rf"copy: being completed, \d+ commits.* to go, in {bucket}/exp", before[-1])
    assert last == f"copy: complete, in {bucket}/exp"
    assert not any("behind" in line for line in before)


@pytest.mark.parametrize("behind", [False, True], ids=["whole", "behind"])
async def test_who_stops_it_is_sent_to_another_machine_only_with_a_whole_copy(
    tmp_path, bucket, capsys, monkeypatch, behind
):
    monkeypatch.setattr("asynctune.tuning.running._DRAIN_S", 0.1 if behind else 30.0)
    swap = Swapper.swap

    async def hang(swapper, upto, *args, **kwargs):
        if behind:
            await asyncio.Event().wait()
        return await swap(swapper, upto, *args, **kwargs)

    trials = iter(range(3))

    async def stopped(config):
        if next(trials) == 0:  # a second signal would end this process
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    monkeypatch.setattr(Swapper, "swap", hang)
    with pytest.raises(KeyboardInterrupt) as caught:
        await tuner(tmp_path, SyncConfig(upload_dir=bucket), stopped).fit()
    here = f"stopped; to go on: Tuner.restore({str(tmp_path / 'runs' / 'exp')!r}), on "
    rest = "this machine: the copy is behind" if behind else f"another machine Tuner.restore('{bucket}/exp')"
    assert str(caught.value) == here + rest
    assert here + rest in capsys.readouterr().err


async def test_a_name_that_is_taken_in_the_bucket_is_refused(tmp_path, bucket):
    await tuner(tmp_path, SyncConfig(upload_dir=bucket)).fit()
    await asyncio.to_thread(shutil.rmtree, tmp_path / "runs")
    with pytest.raises(ExperimentExistsError, match="memory://"):
        await tuner(tmp_path, SyncConfig(upload_dir=bucket)).fit()


async def test_a_copy_that_a_syncer_keeps(tmp_path):
    syncer = DirectorySyncer()
    sync = SyncConfig(upload_dir=str(tmp_path / "vault"), syncer=syncer)
    await asyncio.to_thread((tmp_path / "vault").mkdir)
    await tuner(tmp_path, sync).fit()
    await asyncio.to_thread(shutil.rmtree, tmp_path / "runs")
    again = RunConfig(sync_config=sync, failure_config=FailureConfig(max_failures=1))
    restored = await Tuner.restore(
        str(tmp_path / "vault" / "exp"), run_config=again, local_dir=tmp_path / "other"
    )
    assert len(restored.get_results()) == 3
    best = restored.get_results().get_best_result("loss", "min")
    assert len(await best.history()) == 10
    assert await best.fetch_checkpoint(tmp_path / "best") == tmp_path / "best"


async def test_a_syncer_has_to_be_given_again(tmp_path):
    sync = SyncConfig(upload_dir=str(tmp_path / "vault"), syncer=DirectorySyncer())
    await asyncio.to_thread((tmp_path / "vault").mkdir)
    await tuner(tmp_path, sync, trainables.failing_once).fit()
    restored = await Tuner.restore(tmp_path / "runs" / "exp", resume_errored=True)
    with pytest.raises(ConfigError, match="DirectorySyncer"):
        await restored.fit()
