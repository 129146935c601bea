"""The first look of an opening: whether the place can be, what the copy holds, and a bucket that does not answer."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random

import pytest

from asynctune.checkpoints.catalog import TrialCheckpoints
from asynctune.config import SyncConfig
from asynctune.errors import (
    AuthenticationError,
    ConfigError,
    ExperimentExistsError,
    ExperimentNotFoundError,
    FencedError,
    StorageError,
    UploadError,
)
from asynctune.files import LocalFiles
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.retry import Retry
from asynctune.storage.uri import open_storage, parse_uri
from asynctune.store.access import BucketAccess
from asynctune.store.looking import look_at_copy, may_do_without
from asynctune.store.place import Place, Remote
from asynctune.store.store import ExperimentStore
from asynctune.testing import FaultyStorage, ManualClock
from asynctune.trial import Checkpoint
from tests.store.scenes import mirroring_of


@pytest.fixture
def bucket():
    """The URI of a bucket in this process's memory."""
    name = f"bucket-{os.urandom(6).hex()}"
    yield f"memory://{name}/some/where"
    MemoryStorage.forget(name)


@pytest.fixture
async def scene(bucket, tmp_path):
    made = Scene(bucket, tmp_path / "exp")
    yield made
    await made.access.aclose()


class Scene:
    """A copy that can fail, and time that is moved by hand."""

    def __init__(self, bucket, path):
        uri = parse_uri(f"{bucket}/exp")
        self.clock = ManualClock()
        self.storage = FaultyStorage(MemoryStorage.named(uri.bucket, uri.prefix))
        self.remote = Remote.at(uri, SyncConfig(upload_dir=bucket), {})
        self.place = Place(path=str(path), remote=self.remote)
        self.access = BucketAccess(
            self.storage, str(path), timeout_s=60, clock=self.clock, files=LocalFiles()
        )

    def look(self, *, known, mode="auto", place=None):
        return asyncio.create_task(
            look_at_copy(self.access, self.remote, place or self.place, mode, clock=self.clock, known=known)
        )


def told(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


async def test_a_bucket_without_which_the_experiment_goes_on_is_not_asked_for_long(scene, caplog):
    scene.storage.hang(lasting=True)
    looking = scene.look(known=True)
    await scene.clock.advance(4.9)
    assert not told(caplog)
    await scene.clock.advance(0.2)
    (message,) = told(caplog)
    assert str(scene.remote) in message
    assert "for 25 s in all" in message
    assert scene.place.path in message
    await scene.clock.advance(19)
    assert not looking.done()
    await scene.clock.advance(1)
    seen = await looking
    assert (seen.exists, seen.position) == (False, None)
    assert "no answer within 25 s" in str(seen.away)
    assert told(caplog) == [message]
    assert scene.clock.sleepers == 0


async def test_a_bucket_that_may_hold_the_experiment_is_asked_as_long_as_requests_are(scene, caplog):
    scene.storage.hang(lasting=True)
    looking = scene.look(known=False)
    await scene.clock.advance(110)
    assert not looking.done()
    (message,) = told(caplog)
    assert "for 120 s in all, then this opening fails" in message
    scene.storage.heal()
    assert (await looking).away is None
    assert scene.clock.sleepers == 0


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
async def test_it_is_said_why_a_bucket_is_away(scene, caplog, known):
    # as the storages of buckets do: they repeat by themselves
    retry = Retry(clock=scene.clock, rng=random.Random(1))

    async def refused():
        raise StorageError("get in the bucket: connection refused", retryable=True)

    scene.storage.call(lambda _: retry.run(refused, operation="get", key="k"), lasting=True)
    looking = scene.look(known=known)
    await scene.clock.advance(6)
    (message,) = told(caplog)
    assert "does not answer (get in the bucket: connection refused)" in message
    await scene.clock.advance(20 if known else 120)
    assert "connection refused" in str((await looking).away)
    assert told(caplog) == [message]


async def test_a_bucket_that_answers_in_time_is_not_spoken_of(scene, caplog):
    scene.storage.hang()
    looking = scene.look(known=True)
    await scene.clock.advance(4)
    scene.storage.heal()
    assert (await looking).away is None
    await scene.clock.advance(100)
    assert not told(caplog)


async def test_a_look_that_is_cancelled_leaves_nothing_behind(scene, caplog):
    scene.storage.hang(lasting=True)
    looking = scene.look(known=True)
    await scene.clock.advance(3)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    await scene.clock.advance(100)
    assert scene.clock.sleepers == 0
    assert not told(caplog)


async def test_a_refusal_is_raised_at_once(scene):
    scene.storage.fail(AuthenticationError("no"), lasting=True)
    with pytest.raises(AuthenticationError):
        await scene.look(known=True)


async def test_what_is_there_has_to_fit_the_mode(scene, location, bucket):
    by_uri = Place(path=scene.place.path, remote=scene.remote, by_uri=True)
    with pytest.raises(ExperimentNotFoundError):
        await scene.look(known=False, place=by_uri)
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        await store.flush(mirror=True)
    seen = await scene.look(known=False)
    assert seen.position is not None
    assert seen.position.seq > 0
    assert (await scene.look(known=False, place=by_uri)).exists
    with pytest.raises(ExperimentExistsError):
        await scene.look(known=False, mode="create")


async def test_which_experiments_can_go_on_without_the_bucket(location, bucket):
    files = LocalFiles()

    def may(mode, *, by_uri=False):
        return asyncio.to_thread(may_do_without, Place(path=str(location), by_uri=by_uri), mode, files)

    assert not await may("auto")
    async with ExperimentStore.open(location):
        pass
    assert await may("auto")
    assert await may("resume")
    assert not await may("create")
    assert not await may("resume", by_uri=True), "the URI names the copy"


async def test_who_did_not_wait_for_the_bucket_is_fenced_all_the_same(
    location, bucket, tmp_path, monkeypatch
):
    storages: list[FaultyStorage] = []

    async def open_hanging(uri, options):
        storages.append(FaultyStorage(await open_storage(uri, options)))
        storages[-1].hang(lasting=True)
        return storages[-1]

    monkeypatch.setattr("asynctune.store.reconcile.QUIET_S", 0.05)
    monkeypatch.setattr("asynctune.store.looking._KNOWN_S", 0.05)
    config = SyncConfig(upload_dir=bucket)
    async with ExperimentStore.open(location, sync_config=config) as store:
        store.set_metadata("by", "both")
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other") as other:
        other.set_metadata("by", "the other")
    with monkeypatch.context() as patched:
        patched.setattr("asynctune.store.access.open_storage", open_hanging)
        store = await ExperimentStore.open(location, sync_config=config)
    assert store.metadata["by"] == "both"
    store.set_metadata("by", "who did not wait")
    await store.flush()
    for storage in storages:
        storage.heal()
    with pytest.raises(FencedError):
        await store.flush(mirror=True)
    with pytest.raises(FencedError):
        await store.aclose()
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "third") as third:
        assert third.metadata["by"] == "the other"


@pytest.mark.parametrize("back", ["in the close", "before a flush", "never"])
async def test_an_emptied_bucket_that_was_away_at_the_opening_is_not_said_to_have_checkpoints(
    location, bucket, monkeypatch, back
):
    storages: list[FaultyStorage] = []

    async def open_hanging(uri, options):
        storages.append(FaultyStorage(await open_storage(uri, options)))
        storages[-1].hang(lasting=True)
        return storages[-1]

    async def heal(after_s):
        await asyncio.sleep(after_s)
        for storage in storages:
            storage.heal()

    monkeypatch.setattr("asynctune.store.reconcile.QUIET_S", 0.05)
    monkeypatch.setattr("asynctune.store.looking._KNOWN_S", 0.05)
    config = SyncConfig(upload_dir=bucket)
    async with ExperimentStore.open(location, sync_config=config) as store:
        store.add_trial({}, "t")
        await store.save_checkpoint("t", Checkpoint.from_dict({"epoch": 1}))
    MemoryStorage.forget(bucket.split("/")[2])
    with monkeypatch.context() as patched:
        patched.setattr("asynctune.store.access.open_storage", open_hanging)
        store = await ExperimentStore.open(location, sync_config=config)
    if back == "never":
        impatient = dataclasses.replace(config, sync_timeout=0.05)
        monkeypatch.setattr(
            mirroring_of(store), "remote", dataclasses.replace(mirroring_of(store).remote, sync=impatient)
        )
        with pytest.raises(UploadError, match=r"not been reached since the opening, and not for 0\.05 s"):
            await store.drain()
        with pytest.raises(UploadError):
            await store.aclose()
        await heal(0)
    elif back == "in the close":
        healing = asyncio.create_task(heal(0.1))
        await store.aclose()
        await healing
    else:
        compare, compared = TrialCheckpoints.reconcile, asyncio.Event()

        async def held(*arguments, **named):
            await compared.wait()
            return await compare(*arguments, **named)

        monkeypatch.setattr(TrialCheckpoints, "reconcile", held)
        await heal(0)
        flushing = asyncio.create_task(store.flush(mirror=True))
        await mirroring_of(store).owned()
        await asyncio.sleep(0.05)
        assert store.stats().mirrored_seq == 0, "nothing is said before it was compared"
        compared.set()
        await flushing
        await store.aclose()
    if back == "never":
        async with ExperimentStore.open(location, sync_config=config):
            pass
    async with ExperimentStore.open(f"{bucket}/{location.name}", "read") as reader:
        (there,) = reader.checkpoints("t")
        assert there.mirrored
        restored = await reader.restore_checkpoint("t")
        assert await asyncio.to_thread(restored.to_dict) == {"epoch": 1}


# -- the place ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upload_dir", [".", "link", "exp", "exp/some/where", "above/.."])
async def test_the_copy_is_not_kept_in_the_experiment_itself(location, tmp_path, upload_dir):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="choose another upload_dir"):
        await ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=str(tmp_path / upload_dir)))
    assert not location.exists(), "nothing was made"


async def test_a_copy_is_not_kept_in_a_bucket_as_if_it_were_the_experiment(location, bucket, tmp_path):
    (tmp_path / "copies").mkdir()
    async with ExperimentStore.open(
        location, sync_config=SyncConfig(upload_dir=str(tmp_path / "copies"))
    ) as store:
        store.set_metadata("any", 1)
    with pytest.raises(ConfigError, match="is the copy of an experiment"):
        await ExperimentStore.open(
            tmp_path / "copies" / location.name, sync_config=SyncConfig(upload_dir=bucket)
        )
