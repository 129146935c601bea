from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
from functools import partial
from pathlib import Path

import google_crc32c
import pytest

from asynctune.checkpoints import copying
from asynctune.checkpoints.copying import FileTask, read_files
from asynctune.checkpoints.disk import SourceError
from asynctune.files import LocalFiles
from tests.checkpoints.fakes import CountingFiles


@pytest.fixture
def small(monkeypatch):
    """Everything above 64 bytes is big and comes in chunks of 100."""
    monkeypatch.setattr(copying, "SMALL_BYTES", 64)
    monkeypatch.setattr(copying, "CHUNK_BYTES", 100)
    monkeypatch.setattr(copying, "SYNC_BYTES", 300)


def tasks_for(root: Path, target: Path | None, *, seal: bool = False) -> list[FileTask]:
    return [
        FileTask(
            path=path.name,
            source=str(path),
            size=path.stat().st_size,
            target=None if target is None else str(target / path.name),
            mode=0o640,
            seal=seal,
        )
        for path in sorted(root.iterdir())
    ]


def files_of(tmp_path: Path, rng: random.Random) -> Path:
    root = tmp_path / "src"
    root.mkdir()
    for size in (0, 1, 63, 64, 65, 99, 100, 101, 1000):
        (root / f"f{size}").write_bytes(rng.randbytes(size))
    return root


def check(root: Path, read, target: Path | None) -> None:
    assert sorted(file.path for file in read) == sorted(path.name for path in root.iterdir())
    for file in read:
        data = (root / file.path).read_bytes()
        assert file.size_bytes == len(data)
        assert file.crc32c == google_crc32c.value(data)
        assert file.sha256 == hashlib.sha256(data).hexdigest()
        if target is not None:
            assert (target / file.path).read_bytes() == data
            assert (target / file.path).stat().st_mode & 0o7777 == 0o640
            assert not (target / file.path).samefile(root / file.path)


async def test_copies_are_hashed_and_private(tmp_path, rng, small, threads):
    root, target = files_of(tmp_path, rng), tmp_path / "to"
    target.mkdir()
    check(root, await read_files(threads, LocalFiles(), tasks_for(root, target), durable=True), target)


async def test_reading_in_place(tmp_path, rng, small, threads):
    root = files_of(tmp_path, rng)
    files = CountingFiles()
    check(root, await read_files(threads, files, tasks_for(root, None), durable=False), None)
    assert not files.calls


async def test_sealing_gives_bits_and_syncs(tmp_path, rng, small, threads):
    root = files_of(tmp_path, rng)
    files = CountingFiles()
    check(root, await read_files(threads, files, tasks_for(root, None, seal=True), durable=True), None)
    assert files.calls.count("sync") == len(list(root.iterdir()))
    assert {path.stat().st_mode & 0o7777 for path in root.iterdir()} == {0o640}


async def test_a_big_copy_is_synced_on_the_way(tmp_path, small, threads):
    (tmp_path / "src").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "src/big").write_bytes(b"x" * 1000)
    files = CountingFiles()
    await read_files(threads, files, tasks_for(tmp_path / "src", tmp_path / "to"), durable=True)
    assert files.calls.count("sync_data") == 3
    assert files.calls[-2:] == ["sync", "close"]
    files.calls.clear()
    shutil.rmtree(tmp_path / "to")
    (tmp_path / "to").mkdir()
    await read_files(threads, files, tasks_for(tmp_path / "src", tmp_path / "to"), durable=False)
    assert "sync" not in files.calls
    assert "sync_data" not in files.calls


async def test_where_blocks_can_be_shared_nothing_is_written(tmp_path, rng, small, threads):
    root, target = files_of(tmp_path, rng), tmp_path / "to"
    target.mkdir()

    class Reflinks(CountingFiles):
        def clone(self, source_fd: int, target_fd: int) -> bool:
            os.sendfile(target_fd, source_fd, 0, os.fstat(source_fd).st_size)
            return True

    files = Reflinks()
    check(root, await read_files(threads, files, tasks_for(root, target), durable=True), target)
    big = [path for path in root.iterdir() if path.stat().st_size > 64]
    assert files.calls.count("clone") == len(big)
    assert files.calls.count("write") == len([p for p in root.iterdir() if 0 < p.stat().st_size <= 64])


async def test_many_small_files_take_few_hops(tmp_path, threads, monkeypatch):
    (tmp_path / "src").mkdir()
    (tmp_path / "to").mkdir()
    for number in range(200):
        (tmp_path / f"src/{number}").write_bytes(b"%d" % number)
    hops = 0
    run = threads.run

    async def counted(*args):
        nonlocal hops
        hops += 1
        return await run(*args)

    monkeypatch.setattr(threads, "run", counted)
    await read_files(threads, LocalFiles(), tasks_for(tmp_path / "src", tmp_path / "to"), durable=False)
    assert hops == 4


@pytest.mark.parametrize("size", [10, 1000])
@pytest.mark.parametrize("actual", [0, 5, 11, 999, 1001, 5000])
async def test_another_size_than_expected_is_an_error(tmp_path, small, threads, size, actual):
    (tmp_path / "f").write_bytes(b"x" * actual)
    for target in (None, str(tmp_path / "copy")):
        with pytest.raises(SourceError, match="changed while it was read") as caught:
            await read_files(
                threads,
                LocalFiles(),
                [FileTask("f", str(tmp_path / "f"), size, target)],
                durable=False,
            )
        assert caught.value.error is None


@pytest.mark.parametrize("size", [10, 1000])
async def test_sources_that_cannot_be_read(tmp_path, small, threads, size):
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real").write_bytes(b"x" * size)
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")
    names = ["gone", "link", "dir", "fifo"]
    tasks = [FileTask(name, str(tmp_path / name), size) for name in names]
    for task in tasks:
        with pytest.raises(SourceError) as caught:
            await read_files(threads, LocalFiles(), [task], durable=False)
        assert caught.value.path == task.source
    unreadable: list[SourceError] = []
    good = FileTask("real", str(tmp_path / "real"), size)
    read = await read_files(threads, LocalFiles(), [*tasks, good], durable=False, unreadable=unreadable)
    assert [file.path for file in read] == ["real"]
    assert [Path(error.path).name for error in unreadable] == names


async def test_no_descriptor_is_left_open_by_a_failure(tmp_path, rng, small, threads):
    root = files_of(tmp_path, rng)
    counting = CountingFiles()
    (tmp_path / "all").mkdir()
    await read_files(threads, counting, tasks_for(root, tmp_path / "all"), durable=True)
    before = sorted(os.listdir("/proc/self/fd"))
    for number in range(1, len(counting.calls) + 1):
        target = tmp_path / f"{number}"
        target.mkdir()
        with pytest.raises(OSError, match="Input/output error"):
            await read_files(threads, CountingFiles(number), tasks_for(root, target), durable=True)
    assert sorted(os.listdir("/proc/self/fd")) == before


async def test_a_cancelled_stream_has_closed_its_files(tmp_path, small, threads):
    (tmp_path / "big").write_bytes(b"x" * 2000)
    before = sorted(os.listdir("/proc/self/fd"))
    counting = CountingFiles()
    loop = asyncio.get_running_loop()
    for number in range(1, 30):
        target = tmp_path / f"copy-{number}"
        task = asyncio.ensure_future(
            read_files(
                threads, counting, [FileTask("big", str(tmp_path / "big"), 2000, str(target))], durable=True
            )
        )
        counting.calls.clear()
        counting.at = {number: partial(loop.call_soon_threadsafe, task.cancel)}
        try:
            await task
        except asyncio.CancelledError:
            continue
        assert len(counting.calls) < number + 1
        break
    assert number > 10
    assert sorted(os.listdir("/proc/self/fd")) == before
