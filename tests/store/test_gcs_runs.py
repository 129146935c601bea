"""Whole runs with a copy on Google Cloud Storage: a fake that keeps to the protocol, and a real emulator."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil

import pytest

from asynctune.config import CheckpointConfig, SyncConfig
from asynctune.errors import FencedError, StorageError
from asynctune.store.store import ExperimentStore
from asynctune.trial import Checkpoint, TrialStatus
from tests.storage.fake_gcs import FakeGcs, refusal
from tests.storage.test_gcs import emulator, make_bucket

__all__ = ["emulator"]

BEST = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="loss", checkpoint_score_order="min")


@pytest.fixture
async def fake(monkeypatch):
    async with FakeGcs("tunes") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.fixture(params=["fake", "emulator"])
def bucket(request, monkeypatch):
    """An `upload_dir`."""
    if request.param == "fake":
        request.getfixturevalue("fake")
        return "gs://tunes/some/where"
    url = request.getfixturevalue("emulator")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    return f"gs://{make_bucket(url)}/some/where"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """GCS takes one replacement of CURRENT a second, which only the tests of it wait for."""
    monkeypatch.setattr("asynctune.state.mirror.health._GCS_INTERVAL_S", 0.0)
    monkeypatch.setattr("asynctune.store.reconcile.QUIET_S", 0.05)


async def run(store: ExperimentStore, *losses: float, trial_id: str = "t") -> None:
    """A trial that saves with each row."""
    if trial_id not in {trial.trial_id for trial in store.trials}:
        store.add_trial({"x": 1}, trial_id)
    store.set_status(trial_id, "RUNNING")
    for loss in losses:
        store.report(trial_id, {"loss": loss})
        await store.save_checkpoint(trial_id, Checkpoint.from_dict({"loss": loss, "weights": b"w" * 300_000}))


async def rows(store: ExperimentStore, trial_id: str = "t") -> list[float]:
    return [row["loss"] for row in await store.history(trial_id)]


async def test_a_run_its_reader_and_the_next_machine(location, bucket, tmp_path):
    config = SyncConfig(upload_dir=bucket)
    uri = f"{bucket}/{location.name}"
    async with ExperimentStore.open(location, sync_config=config, checkpoint_config=BEST) as store:
        assert store.upload_uri == uri
        await run(store, 3, 1, 2)
        seq = await store.flush(mirror=True)
        assert (store.stats().mirrored_seq or 0) >= seq
        async with ExperimentStore.open(uri, "read") as reader:
            assert await rows(reader) == [3, 1, 2]
            kept = [c.step for c in reader.checkpoints("t") if c.mirrored]
            assert {2, 3} <= set(kept)
        await run(store, 0.5)
        store.set_metadata("note", [1, 2])
    shutil.rmtree(location)
    async with ExperimentStore.open(uri, local_dir=tmp_path / "other") as store:
        assert store.metadata == {"note": [1, 2]}
        assert await rows(store) == [3, 1, 2, 0.5]
        assert [c.step for c in store.checkpoints("t")] == [2, 4]
        store.requeue()
        assert store.get_trial("t").status is TrialStatus.PENDING
        restored = await store.restore_checkpoint("t")
        assert (await asyncio.to_thread(restored.to_dict))["loss"] == 0.5
        await run(store, 0.25)
    async with ExperimentStore.open(uri, "read") as reader:
        assert await rows(reader) == [3, 1, 2, 0.5, 0.25]
        assert [(c.step, c.mirrored) for c in reader.checkpoints("t")] == [(4, True), (5, True)]


async def test_a_takeover_fences_the_old_driver(location, bucket, tmp_path):
    uri = f"{bucket}/{location.name}"
    loser = await ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket))
    await run(loser, 2)
    await loser.flush(mirror=True)
    async with ExperimentStore.open(uri, local_dir=tmp_path / "other") as winner:
        assert await rows(winner) == [2]
        loser.report("t", {"loss": 9})
        with pytest.raises(FencedError):
            await loser.flush(mirror=True)
        await run(winner, 1)
    with pytest.raises(FencedError):
        await loser.aclose()
    async with ExperimentStore.open(uri, "read") as reader:
        assert await rows(reader) == [2, 1]


async def test_what_retention_gave_up_goes_from_the_bucket(location, fake, tmp_path):
    config = SyncConfig(upload_dir="gs://tunes")
    async with ExperimentStore.open(location, sync_config=config, checkpoint_config=BEST) as store:
        for loss in (5, 4, 3, 2, 1):
            await run(store, loss)
            await store.flush(mirror=True)
    there = {name.split("/")[2] for name in fake.objects if "/t/checkpoint_" in name}
    assert there == {"checkpoint_000004", "checkpoint_000005"}


async def test_large_files_go_and_come_in_parts(location, bucket, tmp_path):
    content = os.urandom(1 << 20) * 20
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        store.add_trial({}, "t")
        await store.save_checkpoint("t", Checkpoint.from_dict({"weights": content}))
        await store.flush(mirror=True)
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other") as store:
        restored = await store.restore_checkpoint("t")
        assert (await asyncio.to_thread(restored.to_dict))["weights"] == content


def swaps_of(fake: FakeGcs, location) -> list[float]:
    """When CURRENT was stored, by the loop's clock: filled while the test runs."""
    times: list[float] = []
    name = f"{location.name}/.asynctune/CURRENT"
    store = fake._store

    def stored(key, content):
        if key == name:
            times.append(asyncio.get_running_loop().time())
        return store(key, content)

    fake._store = stored  # type: ignore[method-assign]
    return times


async def test_current_is_replaced_once_a_second_at_most(location, fake, monkeypatch):
    monkeypatch.setattr("asynctune.state.mirror.health._GCS_INTERVAL_S", 1.0)
    times = swaps_of(fake, location)
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir="gs://tunes")) as store:
        for number in range(2):
            store.set_metadata("number", number)
            await store.flush(mirror=True)
    assert len(times) >= 3
    assert all(later - before >= 1.0 for before, later in itertools.pairwise(times)), times


@pytest.mark.parametrize("status", [429, 503])
async def test_a_bucket_that_asks_for_patience(location, fake, status):
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir="gs://tunes")) as store:
        await store.flush(mirror=True)
        left = [7]

        async def busy(request):
            if left[0] and request.method != "GET":
                left[0] -= 1
                return refusal(status, "slow down")
            return None

        fake.faults.append(busy)
        await run(store, 1)
        await store.flush(mirror=True)
        assert left == [0]
        assert store.stats().uploads_failed == 0
    async with ExperimentStore.open(f"gs://tunes/{location.name}", "read") as reader:
        assert await rows(reader) == [1]


async def test_a_bucket_that_is_not_there(location, fake):
    with pytest.raises(StorageError, match="there is no bucket"):
        await ExperimentStore.open(location, sync_config=SyncConfig(upload_dir="gs://another"))
    assert not (location / ".asynctune").exists()
