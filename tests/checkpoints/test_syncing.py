"""A syncer carries committed checkpoints and frozen result files, and brings them back."""

from __future__ import annotations

import asyncio
import os

import pytest
from google_crc32c import value as crc32c

from asynctune.checkpoints.bucket import TreeCopies
from asynctune.checkpoints.syncer_calls import SyncerCalls
from asynctune.checkpoints.syncing import SyncedResults, SyncedTrees, tell_unfenced
from asynctune.clock import SystemClock
from asynctune.errors import StorageError, UploadError
from asynctune.files import LocalFiles
from asynctune.testing import DirectorySyncer
from tests.checkpoints.fakes import TREE, Events, Room, read_tree


class Failing(DirectorySyncer):
    """Fails as often as it is told to."""

    failures = 0

    def sync_up(self, local_dir, remote_dir, exclude=None):
        if self.failures:
            self.failures -= 1
            return False
        return super().sync_up(local_dir, remote_dir, exclude)


def calls_of(syncer):
    return SyncerCalls(syncer, timeout_s=60, clock=SystemClock())


def trees_of(syncer, remote, threads) -> TreeCopies:
    return SyncedTrees(calls_of(syncer), f"{remote}/", files=LocalFiles(), threads=threads)


async def committed(room):
    saved = await room.save("t")
    record = room.catalog._context.records.get("t", saved.step)
    return record, room.catalog._context.path_of(record)


# -- checkpoints -------------------------------------------------------------------------------------------


async def test_a_checkpoint_goes_there_and_comes_back(tmp_path, threads):
    remote = tmp_path / "remote"
    progress: list[int] = []
    copies = trees_of(DirectorySyncer(), remote, threads)
    async with Room(tmp_path / "exp") as room:
        record, path = await committed(room)
        sent = await copies.put_tree(record, path, new=True, progress=progress.append)
        assert sent == sum(progress) == record.size_bytes
        assert progress[0] == 0
        assert (remote / record.directory / ".manifest.json").is_file()
        assert read_tree(remote / record.directory) == TREE

        (tmp_path / "to").mkdir()
        report = await copies.fetch_tree(record, str(tmp_path / "to"))
        assert report.ok
        assert read_tree(tmp_path / "to") == TREE
        assert not (tmp_path / "to" / ".manifest.json").exists()
        assert sorted(os.listdir(tmp_path)) == ["exp", "remote", "src-t", "to"]

        await copies.delete_tree(record)
        await copies.delete_tree(record)
        assert not (remote / record.directory).exists()
        assert (remote / "t").is_dir()


async def test_a_directory_that_is_not_what_was_recorded_is_not_uploaded(tmp_path, threads):
    async with Room(tmp_path / "exp") as room:
        record, path = await committed(room)
        os.chmod(os.path.join(path, "model.bin"), 0o600)
        with open(os.path.join(path, "model.bin"), "r+b") as file:
            file.write(b"X")
        with pytest.raises(UploadError, match=r"checkpoint 1 of trial t is not uploaded.*model\.bin"):
            await trees_of(DirectorySyncer(), tmp_path / "remote", threads).put_tree(
                record, path, new=True, progress=lambda _: None
            )
        assert not (tmp_path / "remote").exists()


async def test_damage_and_absence_are_found_out_on_the_way_back(tmp_path, threads):
    copies = trees_of(DirectorySyncer(), tmp_path / "remote", threads)
    async with Room(tmp_path / "exp") as room:
        record, path = await committed(room)
        (tmp_path / "to").mkdir()
        report = await copies.fetch_tree(record, str(tmp_path / "to"))
        assert [(each.kind, each.path) for each in report.problems] == [("manifest", ".manifest.json")]
        await copies.put_tree(record, path, new=True, progress=lambda _: None)
        damaged = tmp_path / "remote" / record.directory / "model.bin"
        damaged.chmod(0o600)
        damaged.write_bytes(b"X" + damaged.read_bytes()[1:])
        report = await copies.fetch_tree(record, str(tmp_path / "to"))
        assert [(each.kind, each.path) for each in report.problems] == [("content", "model.bin")]
        assert not report.intact


async def test_a_syncer_that_fails_leaves_nothing_half_known(tmp_path, threads):
    syncer = Failing()
    syncer.failures = 1
    copies = trees_of(syncer, tmp_path / "remote", threads)
    async with Room(tmp_path / "exp") as room:
        record, path = await committed(room)
        with pytest.raises(StorageError, match="sync_up returned False"):
            await copies.put_tree(record, path, new=True, progress=lambda _: None)
        await copies.put_tree(record, path, new=False, progress=lambda _: None)
        assert read_tree(tmp_path / "remote" / record.directory) == TREE
    assert copies.location == str(tmp_path / "remote")


def test_that_two_machines_are_not_kept_apart_is_told(caplog):
    events = Events()
    tell_unfenced(calls_of(DirectorySyncer()), "s3://me:hunter2@bucket/x", events)
    (event,) = events
    assert (event["kind"], event["syncer"]) == ("mirror_unfenced", "DirectorySyncer")
    assert "s3://bucket/x" in event["message"]
    assert event["message"] in caplog.text
    assert "hunter2" not in f"{event}{caplog.text}"


# -- result files ------------------------------------------------------------------------------------------


def results_of(syncer, tmp_path, threads, experiment="exp"):
    (tmp_path / experiment / ".asynctune").mkdir(parents=True, exist_ok=True)
    return SyncedResults(
        calls_of(syncer),
        str(tmp_path / "remote"),
        str(tmp_path / experiment),
        files=LocalFiles(),
        threads=threads,
    )


async def send(results, tmp_path, key, data):
    frozen = tmp_path / "frozen"
    frozen.write_bytes(data)
    await results.send(key, str(frozen), size_bytes=len(data), crc32c=crc32c(data))
    assert not frozen.exists(), "taken away, not copied"


async def test_results_of_all_trials_go_in_one_call(tmp_path, threads):
    syncer = DirectorySyncer()
    results = results_of(syncer, tmp_path, threads)
    assert not await results.begin()
    await results.finish()
    assert not (tmp_path / "remote").exists(), "nothing was to be sent"
    await send(results, tmp_path, "t1/result.json", b"1\n")
    await send(results, tmp_path, "t2/result.json", b"2\n")
    assert syncer.sent == []
    await results.finish()
    assert syncer.sent == ["t1/result.json", "t2/result.json"]
    await send(results, tmp_path, "t1/result.json", b"1\n11\n")
    await results.finish()
    await results.finish()
    assert syncer.sent[2:] == ["t1/result.json"]
    remote = tmp_path / "remote" / ".asynctune" / "results"
    assert read_tree(remote) == {"t1/result.json": b"1\n11\n", "t2/result.json": b"2\n"}


async def test_what_a_failed_call_did_not_carry_the_next_one_does(tmp_path, threads):
    syncer = Failing()
    results = results_of(syncer, tmp_path, threads)
    await results.begin()
    await send(results, tmp_path, "t1/result.json", b"1\n")
    syncer.failures = 1
    with pytest.raises(StorageError):
        await results.finish()
    await results.finish()
    assert syncer.sent == ["t1/result.json"]


async def test_what_a_killed_process_did_not_carry_the_next_one_does(tmp_path, threads):
    syncer = DirectorySyncer()
    results = results_of(syncer, tmp_path, threads)
    await results.begin()
    await send(results, tmp_path, "t1/result.json", b"1\n")
    again = results_of(syncer, tmp_path, threads)  # killed, and opened again
    assert await again.begin()
    await again.finish()
    assert syncer.sent == ["t1/result.json"]


async def test_no_results_are_told_from_a_mirror_that_is_away(tmp_path, threads):
    """For a syncer that fails in either case."""

    class Strict(Failing):
        def sync_down(self, remote_dir, local_dir, exclude=None):
            return os.path.isdir(remote_dir) and super().sync_down(remote_dir, local_dir)

    syncer = Strict()
    results = results_of(syncer, tmp_path, threads)
    with pytest.raises(StorageError, match="sync_down returned False"):
        await results.fetch()
    syncer.failures = 1
    with pytest.raises(StorageError, match="sync_up returned False"):
        await results.fetch(may_make=True)
    assert await results.fetch(may_make=True) == 0
    assert os.listdir(tmp_path / "exp") == [".asynctune"]
    await send(results, tmp_path, "t1/result.json", b"1\n")
    await results.finish()
    assert await results_of(syncer, tmp_path, threads, "other").fetch() == 1


async def test_results_come_back_to_where_trials_go_on_writing_them(tmp_path, threads):
    results = results_of(DirectorySyncer(), tmp_path, threads)
    await results.begin()
    await send(results, tmp_path, "t1/result.json", b"1\n")
    await send(results, tmp_path, "t2/params.json", b"{}")
    await results.finish()

    (tmp_path / "remote/.asynctune/results/.hidden").mkdir()
    (tmp_path / "remote/.asynctune/results/.hidden/params.json").write_bytes(b"")
    syncer = DirectorySyncer()
    other = results_of(syncer, tmp_path, threads, "other")
    assert await other.fetch() == 2
    assert read_tree(tmp_path / "other/t1") == {"result.json": b"1\n"}
    assert (tmp_path / "other/t2/params.json").read_bytes() == b"{}"
    assert not (tmp_path / "other/.hidden").exists()
    with open(tmp_path / "other/t1/result.json", "ab") as file:
        await asyncio.to_thread(file.write, b"2\n")
    await other.begin()
    await send(other, tmp_path, "t2/params.json", b"{1}")
    await other.finish()
    remote = read_tree(tmp_path / "remote/.asynctune/results/t1")
    assert remote["result.json"] == b"1\n", "what is appended to is not what is kept"
