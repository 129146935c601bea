"""An experiment whose copy a `Syncer` of the user's keeps: there, and back on another machine."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time

import pytest

from asynctune.config import CheckpointConfig, SyncConfig
from asynctune.errors import ConfigError, ExperimentNotFoundError, UploadError
from asynctune.store.store import ExperimentStore
from asynctune.trial import Checkpoint


class Copying:
    """A syncer to directories below a root; places are `vault://...`."""

    def __init__(self, root) -> None:
        self.root = root
        self.fails = False
        self.calls: list[str] = []

    def _path(self, place: str) -> str:
        assert place.startswith("vault://")
        return os.path.join(self.root, place.removeprefix("vault://"))

    def sync_up(self, local_dir, remote_dir, exclude=None):
        self.calls.append(f"up {remote_dir}")
        if self.fails:
            return False
        time.sleep(0.001)  # as a plain method it may block
        target = self._path(remote_dir)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(local_dir, target)
        return True

    async def sync_down(self, remote_dir, local_dir, exclude=None):
        source = self._path(remote_dir)
        if await asyncio.to_thread(os.path.isdir, source):
            await asyncio.to_thread(shutil.copytree, source, local_dir, dirs_exist_ok=True)

    def delete(self, remote_dir):
        self.calls.append(f"delete {remote_dir}")
        shutil.rmtree(self._path(remote_dir), ignore_errors=True)


@pytest.fixture
def syncer(tmp_path):
    root = tmp_path / "vault"
    root.mkdir()
    return Copying(root)


def config(syncer: Copying, **settings) -> SyncConfig:
    return SyncConfig(upload_dir="vault://some/where", syncer=syncer, **settings)


async def run(store: ExperimentStore, *losses: float) -> None:
    if not store.trials:
        store.add_trial({"x": 1}, "t")
    store.set_status("t", "RUNNING")
    for loss in losses:
        store.report("t", {"loss": loss})
    await store.save_checkpoint("t", Checkpoint.from_dict({"losses": list(losses)}))


async def rows(store: ExperimentStore) -> list[float]:
    return [row["loss"] for row in await store.history("t")]


async def test_there_and_back(location, syncer, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        async with ExperimentStore.open(location, sync_config=config(syncer)) as store:
            assert store.upload_uri == f"vault://some/where/{location.name}"
            await run(store, 3, 2)
            assert await store.flush(mirror=True) == store.stats().mirrored_seq
            assert store.stats().uploads_done == 1
    assert caplog.text.count("cannot keep two machines") == 1
    shutil.rmtree(location)
    place = f"vault://some/where/{location.name}"
    async with ExperimentStore.open(place, "read", sync_config=config(syncer)) as reader:
        assert await rows(reader) == [3, 2]
        (checkpoint,) = reader.checkpoints("t")
        assert checkpoint.mirrored
        fetched = await reader.fetch(checkpoint, tmp_path / "fetched")
        assert await asyncio.to_thread(os.listdir, fetched)
    async with ExperimentStore.open(place, local_dir=tmp_path / "other", sync_config=config(syncer)) as store:
        assert await rows(store) == [3, 2]
        restored = await store.restore_checkpoint("t")
        assert await asyncio.to_thread(restored.to_dict) == {"losses": [3, 2]}
        await run(store, 1)
    async with ExperimentStore.open(place, "read", sync_config=config(syncer)) as reader:
        assert await rows(reader) == [3, 2, 1]
        assert [c.step for c in reader.checkpoints("t")] == [1, 2]


async def test_a_syncer_that_fails_where_nothing_is(location, syncer, tmp_path, monkeypatch):
    monkeypatch.setattr("asynctune.store.reconcile.QUIET_S", 0.1)
    there, bring = [], syncer.sync_down

    async def strict(remote_dir, local_dir, exclude=None):
        there.append(await asyncio.to_thread(os.path.isdir, syncer._path(remote_dir)))
        return there[-1] and await bring(remote_dir, local_dir)

    syncer.sync_down = strict
    async with ExperimentStore.open(location, sync_config=config(syncer)) as store:
        await run(store, 3)
        await store.flush(mirror=True)
        shutil.copytree(syncer.root, tmp_path / "killed")
    assert not there[0]
    for root in (syncer.root, tmp_path / "killed"):  # once with result files there, once without
        syncer.root = root
        place = f"vault://some/where/{location.name}"
        other = tmp_path / f"other-{root.name}"
        async with ExperimentStore.open(place, local_dir=other, sync_config=config(syncer)) as store:
            assert await rows(store) == [3]


async def test_retention_deletes_there_too(location, syncer):
    keep = CheckpointConfig(num_to_keep=1)
    async with ExperimentStore.open(location, sync_config=config(syncer), checkpoint_config=keep) as store:
        for loss in (3, 2, 1):
            await run(store, loss)
            await store.flush(mirror=True)
    there = sorted(path.name for path in (syncer.root / "some" / "where" / location.name / "t").iterdir())
    assert there == ["checkpoint_000003"]


async def test_one_that_is_not_given_again_is_asked_for(location, syncer):
    async with ExperimentStore.open(location, sync_config=config(syncer)) as store:
        await run(store, 1)
    with pytest.raises(ConfigError, match=r"kept by a Copying.*give it again"):
        await ExperimentStore.open(location)
    async with ExperimentStore.open(location, sync_config=config(syncer)) as store:
        await run(store, 0)


async def test_nothing_is_made_of_a_place_where_nothing_is(syncer, tmp_path):
    for mode in ("read", "auto", "resume"):
        with pytest.raises(ExperimentNotFoundError):
            await ExperimentStore.open(
                "vault://some/where/nobody",
                mode,
                local_dir=None if mode == "read" else tmp_path / "other",
                sync_config=config(syncer),
            )


async def test_one_that_fails_is_said_to_and_tried_again(location, syncer):
    store = await ExperimentStore.open(location, sync_config=config(syncer))
    await run(store, 1)
    syncer.fails = True
    await run(store, 0)
    with pytest.raises(UploadError):
        await store.drain()
    left = r"not everything is in vault://.*; 2 checkpoints \(1 of trial t, 2 of trial t\): the first: sync_up of"
    with pytest.raises(UploadError, match=left):
        await store.aclose(drain_timeout_s=0.2)
    syncer.fails = False
    async with ExperimentStore.open(location, sync_config=config(syncer)) as store:
        await store.flush(mirror=True)
        assert [c.mirrored for c in store.checkpoints("t")] == [True, True]
