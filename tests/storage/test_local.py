"""A directory as a storage: the suite, other processes, a disk that fails at each step, and what lies on the disk."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from asynctune.errors import ConfigError, NotFoundError, StorageError
from asynctune.files import LocalFiles
from asynctune.storage.local import LocalStorage
from asynctune.storage.local_files import STAGING
from asynctune.storage.local_lock import LOCK_WAIT_S
from asynctune.storage.values import Always, Conflict, FileRange, IfVersion, OnlyCreate, Stored, Upload
from asynctune.testing import FaultyFiles, ManualClock, ObjectStorageTests
from asynctune.testing.storage_scenes import entries, get, version_of

DAY_S = 24 * 3600.0


class TestLocal(ObjectStorageTests):
    @pytest.fixture
    def make_storage(self, tmp_path):
        async def make():
            return LocalStorage(str(tmp_path / "storage"))

        return make


class Coarse(LocalFiles):
    """A filesystem that keeps whole seconds."""

    def set_time(self, fd, modified_ns):
        super().set_time(fd, modified_ns // 10**9 * 10**9)


def tree(path) -> list[str]:
    """All files below, and all empty directories."""
    found = []
    for directory, directories, files in os.walk(path):
        names = files or ([] if directories else [""])
        found += [os.path.relpath(os.path.join(directory, name), path) for name in names]
    return sorted(found)


# -- processes ---------------------------------------------------------------------------------------------


async def test_no_increment_of_several_processes_is_lost(tmp_path):
    storage = LocalStorage(str(tmp_path))
    await storage.put("number", b"0")
    script = Path(__file__).with_name("incrementing.py")
    processes = [
        subprocess.Popen([sys.executable, script, tmp_path, f"p{n}", "40"], stdout=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    said = await asyncio.to_thread(lambda: [process.communicate()[0].strip() for process in processes])
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(said) == ["created", "late", "late"]
    assert (await storage.read("number")).data == b"120"
    assert (await storage.read("deep/created")).data == b"p%d" % said.index("created")
    await storage.aclose()
    assert tree(tmp_path) == ["deep/created", "number"]


async def test_one_object_may_be_reached_from_several_roots(tmp_path):
    above, below = LocalStorage(str(tmp_path)), LocalStorage(str(tmp_path / "a/b"))
    version = version_of(await above.put("a/b/k", b"1"))
    assert isinstance(await below.put("k", b"2", condition=OnlyCreate()), Conflict)
    assert isinstance(await below.put("k", b"2", condition=IfVersion(version)), Stored)
    assert isinstance(await above.put("a/b/k", b"3", condition=IfVersion(version)), Conflict)
    await below.begin_upload("u", size_bytes=1, part_bytes=1)
    assert await entries(above) == ["a/b/k"]
    assert await entries(above, delimiter="/") == ["a/"]


# -- a disk that fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True], ids=["create", "replace"])
@pytest.mark.parametrize("applied", [False, True], ids=["refused", "applied"])
async def test_a_put_that_fails_at_any_step_stores_all_or_nothing(tmp_path, there, applied):
    step, failures = 0, []
    while True:
        step += 1
        root = tmp_path / str(step)
        files = FaultyFiles()
        storage = LocalStorage(str(root), files=files)
        await storage.put("other", b"0")
        condition: OnlyCreate | IfVersion = OnlyCreate()
        if there:
            condition = IfVersion(version_of(await storage.put("d/k", b"before")))
        fault = files.fail(errno.EIO, nth=step, applied=applied)
        try:
            await storage.put("d/k", b"after", condition=condition)
        except StorageError as error:
            failures.append((error.operation, error.retryable))
        struck = fault.hits
        files.heal()
        found = await storage.head("d/k")
        content = None if found is None else (await storage.read("d/k")).data
        assert content in ((b"before", b"after") if there else (None, b"after"))
        assert isinstance(await storage.put("d/k", b"again"), Stored)
        await storage.aclose()
        assert [name for name in tree(root) if not name.startswith(STAGING)] == ["d/k", "other"]
        if not struck:
            break
    assert step > 8
    assert set(failures) == {("put", False)}


async def test_what_is_written_is_synced_before_it_has_its_name(tmp_path):
    files = FaultyFiles()
    storage = LocalStorage(str(tmp_path), files=files)
    first = version_of(await storage.put("k", b"1"))
    await storage.put("k", b"2", condition=IfVersion(first))
    steps = [operation.kind for operation in files.log]
    link, rename = steps.index("link"), steps.index("rename")
    assert "sync" in steps[:link]
    assert "sync_dir" in steps[link:rename]
    assert "sync" in steps[link:rename]
    assert "sync_dir" in steps[rename:]
    assert steps.index("lock") < rename < steps.index("unlock")


async def test_a_link_whose_reply_is_lost_has_been_made(tmp_path):
    files = FaultyFiles()
    storage = LocalStorage(str(tmp_path), files=files)
    await storage.put("other", b"")
    files.fail(errno.EEXIST, on="link", applied=True)
    assert isinstance(await storage.put("k", b"1", condition=OnlyCreate()), Stored)
    assert (await storage.read("k")).data == b"1"


async def test_a_full_disk_is_worth_another_try(tmp_path):
    files = FaultyFiles()
    storage = LocalStorage(str(tmp_path), files=files)
    await storage.put("other", b"")
    files.fail(errno.ENOSPC, on="write")
    with pytest.raises(StorageError, match="free some space") as caught:
        await storage.put("k", b"1")
    assert caught.value.retryable
    await storage.aclose()
    assert tree(tmp_path) == ["other"]


async def test_without_locks_only_what_needs_them_is_refused(tmp_path):
    files = FaultyFiles()
    storage = LocalStorage(str(tmp_path), files=files)
    version = version_of(await storage.put("k", b"1"))
    files.fail(errno.ENOLCK, on="lock", lasting=True)
    with pytest.raises(StorageError, match="no working locks"):
        await storage.put("k", b"2", condition=IfVersion(version))
    assert isinstance(await storage.put("k", b"3", condition=OnlyCreate()), Conflict)
    assert isinstance(await storage.put("k", b"4"), Stored)
    await storage.delete(["k"])
    assert isinstance(await storage.put("k", b"5", condition=OnlyCreate()), Stored)


async def test_a_lock_that_somebody_keeps_is_not_waited_for_for_ever(tmp_path):
    files, clock = FaultyFiles(), ManualClock()
    storage = LocalStorage(str(tmp_path), files=files, clock=clock)
    version = version_of(await storage.put("k", b"1"))
    with open(tmp_path / "k", "r+b") as kept:
        fcntl.flock(kept.fileno(), fcntl.LOCK_EX)
        files.call(lambda _: clock.move(LOCK_WAIT_S / 4), on="lock", lasting=True)
        with pytest.raises(StorageError, match="locked by another process") as caught:
            await storage.put("k", b"2", condition=IfVersion(version))
        assert caught.value.retryable
        files.heal()
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        files.call(lambda _: loop.call_soon_threadsafe(asked.set), on="lock", nth=3)
        waiting = asyncio.create_task(storage.put("k", b"3", condition=IfVersion(version)))
        await asked.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert (await storage.read("k")).data == b"1"
    assert isinstance(await storage.put("k", b"4", condition=IfVersion(version)), Stored)


async def test_a_directory_that_vanishes_under_a_put_is_made_again(tmp_path):
    files = FaultyFiles()
    storage = LocalStorage(str(tmp_path), files=files)
    await storage.put("d/other", b"")
    files.call(lambda _: LocalFiles().remove_tree(str(tmp_path / "d")), on="link")
    assert isinstance(await storage.put("d/k", b"1"), Stored)
    assert await entries(storage) == ["d/k"]


# -- versions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [LocalFiles, Coarse])
async def test_versions_differ_though_the_clock_stands_still_or_is_coarse(tmp_path, files):
    clock = ManualClock()
    storage = LocalStorage(str(tmp_path), files=files(), clock=clock)
    seen = [version_of(await storage.put("k", b"0"))]
    for number in range(1, 8):
        if number == 4:
            clock.set_time(clock.time() - 3600)
        seen.append(version_of(await storage.put("k", b"%d" % number, condition=IfVersion(seen[-1]))))
    assert len(set(seen)) == len(seen)
    times = [int(version.split("-")[0], 16) for version in seen]
    assert times == sorted(times)
    assert len(set(times)) == len(times)


# -- what lies on the disk ---------------------------------------------------------------------------------


async def test_a_disk_that_is_not_mounted_is_no_empty_storage(tmp_path):
    storage = LocalStorage(str(tmp_path / "mount/point"))
    for call in (storage.head("k"), get(storage, "k"), storage.put("k", b""), entries(storage)):
        with pytest.raises(StorageError, match="mount what should be there") as caught:
            await call
        assert not isinstance(caught.value, NotFoundError)
    os.mkdir(tmp_path / "mount")
    assert await storage.head("k") is None
    assert await entries(storage) == []
    await storage.put("k", b"")
    await storage.aclose()
    assert tree(tmp_path) == ["mount/point/k"]


async def test_objects_are_plain_private_files(tmp_path):
    storage = LocalStorage(str(tmp_path))
    await storage.put("a/b", b"1")
    assert (tmp_path / "a/b").read_bytes() == b"1"
    assert stat.S_IMODE(os.stat(tmp_path / "a/b").st_mode) == 0o600
    assert os.stat(tmp_path / "a/b").st_nlink == 1
    (tmp_path / "a/c").write_bytes(b"23")
    assert await entries(storage) == ["a/b", "a/c"]
    assert (await storage.read("a/c")).data == b"23"
    await storage.delete(["a/b", "a/c"])
    await storage.aclose()
    assert os.listdir(tmp_path) == []


async def test_what_is_no_object_is_not_seen(tmp_path):
    storage = LocalStorage(str(tmp_path))
    await storage.put("a/k", b"1")
    os.symlink(tmp_path / "a/k", tmp_path / "link")
    os.symlink(tmp_path / "a", tmp_path / "linked")
    os.mkfifo(tmp_path / "fifo")
    os.makedirs(tmp_path / "empty/er")
    for name in (b"new\nline", b"latin-\xff"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    assert await entries(storage) == ["a/k"]
    assert await entries(storage, delimiter="/") == ["a/"]
    for key in ("fifo", "a", "empty", "link"):
        assert await storage.head(key) is None
        with pytest.raises(StorageError):
            await get(storage, key)


async def test_its_own_files_are_out_of_reach(tmp_path):
    storage = LocalStorage(str(tmp_path))
    for key in (f"{STAGING}/x", f"a/{STAGING}/x", STAGING):
        with pytest.raises(ConfigError, match="its own files"):
            await storage.put(key, b"")


async def test_a_key_that_goes_on_where_another_ends_is_refused(tmp_path):
    storage = LocalStorage(str(tmp_path))
    await storage.put("a/b", b"1")
    assert await storage.head("a/b/c") is None
    conditions: tuple[OnlyCreate | Always, ...] = (OnlyCreate(), Always())
    for key, condition in itertools.product(("a/b/c", "a"), conditions):
        with pytest.raises(StorageError, match="no key can"):
            await storage.put(key, b"2", condition=condition)
    assert await entries(storage) == ["a/b"]


async def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
    clock = ManualClock()
    storage = LocalStorage(str(tmp_path), clock=clock)
    upload = await storage.begin_upload("u", size_bytes=1, part_bytes=1)
    assert isinstance(upload, Upload)
    staging = tmp_path / STAGING
    (staging / "put-0123456789abcdef").write_bytes(b"half")
    (staging / "upload-0123456789abcdef").mkdir()
    for name, age_s in (("put-0123456789abcdef", DAY_S + 1), ("upload-0123456789abcdef", DAY_S + 1)):
        os.utime(staging / name, (clock.time() - age_s,) * 2)
    (staging / "put-fedcba9876543210").write_bytes(b"under way")
    os.utime(staging / "put-fedcba9876543210", (clock.time() - DAY_S / 2,) * 2)
    await LocalStorage(str(tmp_path), clock=clock).put("k", b"1")
    assert sorted(os.listdir(staging)) == ["put-fedcba9876543210", f"upload-{upload.upload_id}"]
    assert [pending.key async for pending in storage.list_uploads()] == ["u"]


# -- uploads in parts --------------------------------------------------------------------------------------


async def test_a_completed_upload_cannot_be_written_to_any_more(tmp_path):
    files = FaultyFiles()
    storage = LocalStorage(str(tmp_path), files=files)
    upload = await storage.begin_upload("k", size_bytes=4, part_bytes=2)
    assert isinstance(upload, Upload)
    parts = [await storage.put_part(upload, number, b"ab") for number in (1, 2)]
    files.fail(errno.EIO, on="unlink")  # the object is there, and its file has its name aside too
    with pytest.raises(StorageError):
        await storage.complete_upload(upload, parts)
    assert (await storage.read("k")).data == b"abab"
    with pytest.raises(NotFoundError):
        await storage.put_part(upload, 1, b"xx")
    assert (await storage.read("k")).data == b"abab"
    assert [pending.key async for pending in storage.list_uploads()] == ["k"]
    await storage.abort_upload(upload.key, upload.upload_id)
    await storage.aclose()
    assert tree(tmp_path) == ["k"]


async def test_a_part_counts_when_all_of_it_is_on_the_disk(tmp_path):
    files = FaultyFiles()
    storage = LocalStorage(str(tmp_path), files=files)
    upload = await storage.begin_upload("k", size_bytes=4, part_bytes=2)
    assert isinstance(upload, Upload)
    await storage.put_part(upload, 2, b"cd")
    for step in ("write", "sync_data", "create"):
        files.fail(errno.EIO, on=step)
        with pytest.raises(StorageError):
            await storage.put_part(upload, 2, b"ef")
        assert await storage.list_parts(upload) == []
    second = await storage.put_part(upload, 2, b"gh")
    first = await storage.put_part(upload, 1, FileRange(__file__, 0, 2))
    assert await storage.list_parts(upload) == [first, second]
    assert isinstance(await storage.complete_upload(upload, [second, first]), Stored)
    assert (await storage.read("k")).data == b'""gh'


@pytest.mark.parametrize("upload_id", ["", "../../etc", "0123456789abcdef"])
async def test_an_upload_id_is_no_path(tmp_path, upload_id):
    storage = LocalStorage(str(tmp_path))
    await storage.put("k", b"1")
    await storage.abort_upload("k", upload_id)
    with pytest.raises(NotFoundError):
        await storage.list_parts(Upload(key="k", upload_id=upload_id, size_bytes=1, part_bytes=1))
    assert await entries(storage) == ["k"]


def test_only_absolute_paths():
    with pytest.raises(ConfigError, match="absolute"):
        LocalStorage("runs")


# -- another host, behind a network filesystem ---------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE], ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", ["open_read", "open_update", "lock"])
async def test_a_file_that_another_host_replaces_is_not_missing(tmp_path, kind, number):
    """As a filesystem tells it that remembers to which file the name led: with a name that a listing has."""
    files = FaultyFiles()
    storage = LocalStorage(str(tmp_path), files=files)
    version = version_of(await storage.put("k", b"1"))
    faults = [files.fail(number, on=kind), files.fail(number, on=kind, nth=2)]
    assert isinstance(await storage.put("k", b"2", condition=IfVersion(version)), Stored)
    assert (await storage.read("k")).data == b"2"
    assert sum(fault.hits for fault in faults) == 2
    await storage.aclose()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE, errno.EBADF], ids=errno.errorcode.get)
async def test_an_object_that_another_host_replaces_while_it_is_read_is_read_again(
    tmp_path, monkeypatch, number
):
    storage = LocalStorage(str(tmp_path))
    await storage.put("k", b"1")
    errors = [OSError(number, os.strerror(number))] * 2

    def pread(fd: int, size: int, at: int) -> bytes:
        if errors:
            raise errors.pop()
        return b"1"

    monkeypatch.setattr(os, "pread", pread)
    assert (await storage.read("k")).data == b"1"
    assert not errors
    await storage.aclose()


async def test_what_is_not_listed_is_not_waited_for(tmp_path):
    files = FaultyFiles()
    storage = LocalStorage(str(tmp_path), files=files)
    await storage.put("d/k", b"1")
    before = files.count("open_read")
    for key in ("missing", "d/missing", "none/missing", "d/k/missing"):
        with pytest.raises(NotFoundError):
            await storage.read(key)
    assert files.count("open_read") == before + 4
    await storage.aclose()


async def test_a_name_that_leads_nowhere_is_given_up(tmp_path):
    clock = ManualClock()
    files = FaultyFiles()
    storage = LocalStorage(str(tmp_path), files=files, clock=clock)
    await storage.put("k", b"1")
    files.fail(errno.ENOENT, on="open_read", lasting=True)
    files.call(lambda _: clock.move(1.0), on="open_read", lasting=True)
    with pytest.raises(NotFoundError):
        await storage.read("k")
    await storage.aclose()
