from __future__ import annotations

import asyncio
import os
import random
import shutil
import stat
import tempfile
import tracemalloc
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asynctune.checkpoints.borrowing import fetch_tree
from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.lending import TreeSource
from asynctune.checkpoints.trial_paths import check_trial_path
from asynctune.checkpoints.trial_walking import own_files
from asynctune.errors import ConfigError, StorageError
from tests.checkpoints.fakes import CountingFiles, Room, read_tree, where
from tests.checkpoints.travel import Wire, cancelled_after, open_below, write_tree

CHUNK = 4096
CONTENT = {
    "model.bin": random.Random(5).randbytes(20 * CHUNK + 1),
    "a/b/deep.txt": b"deep",
    "a/other": b"",
    "z.json": b"{}",
}


@pytest.fixture
async def source(tmp_path, threads):
    made = TreeSource(write_tree(tmp_path / "private", CONTENT, ("hollow/inner",)), threads=threads)
    yield made
    await made.aclose()


@pytest.fixture
def wire(source):
    return Wire(source.handle)


async def test_a_private_copy_arrives_as_it_is(tmp_path, wire, threads):
    (tmp_path / "private/a").chmod(0o755)
    (tmp_path / "private/z.json").chmod(0o755)
    progress: list[int] = []
    size = await fetch_tree(
        wire.call, tmp_path / "node/copy", threads=threads, chunk_bytes=CHUNK, progress=progress.append
    )
    assert read_tree(tmp_path / "node/copy") == CONTENT
    assert (tmp_path / "node/copy/hollow/inner").is_dir()
    assert size == sum(progress) == sum(map(len, CONTENT.values()))
    assert stat.S_IMODE((tmp_path / "node/copy/z.json").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "node/copy/a").stat().st_mode) == 0o755


async def test_a_committed_one_arrives_without_its_manifest(tmp_path, threads):
    async with Room(tmp_path / "exp") as room:
        saved = where(await room.save("t", write_tree(tmp_path / "src", CONTENT)))
        lent = TreeSource(saved, threads=threads)
        (tmp_path / "copy").mkdir()
        await fetch_tree(Wire(lent.handle).call, tmp_path / "copy")
        assert read_tree(tmp_path / "copy") == CONTENT
        assert not (tmp_path / "copy/.manifest.json").exists()
        (saved / "model.bin").write_bytes(bytes(len(CONTENT["model.bin"])))
        for to in ("copy", "other"):
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            with pytest.raises(StorageError, match=r"model.bin is not what the head has recorded"):
                await fetch_tree(Wire(lent.handle).call, tmp_path / to, threads=threads)
            assert not (tmp_path / to).exists()
        await lent.aclose()


@settings(max_examples=25)
@given(
    content=st.dictionaries(
        st.sampled_from(["a", "b", "c/x", "c/y", "d/e/f", "g", "h/i"]), st.binary(max_size=3000)
    ),
    empty=st.sets(st.sampled_from(["k", "d/l", "m/n/o"])),
    chunk=st.integers(1, 2000),
)
async def test_any_tree_arrives(content, empty, chunk):
    directory = Path(tempfile.mkdtemp(prefix="borrowing-"))
    threads = DiskThreads()
    source = TreeSource(write_tree(directory / "private", content, tuple(empty)), threads=threads)
    try:
        await fetch_tree(
            Wire(source.handle).call, directory / "copy", threads=threads, chunk_bytes=max(chunk, 50)
        )
        assert read_tree(directory / "copy") == content
        assert all((directory / "copy" / name).is_dir() for name in empty)
    finally:
        await source.aclose()
        threads.close()
        shutil.rmtree(directory)


async def test_many_files_are_listed_in_pages(tmp_path, threads):
    content = {f"d{number % 9}/{number:05}": b"%d" % number for number in range(4500)}
    source = TreeSource(write_tree(tmp_path / "many", content), threads=threads)
    wire = Wire(source.handle)
    await fetch_tree(wire.call, tmp_path / "copy", threads=threads)
    assert read_tree(tmp_path / "copy") == content
    assert wire.count("away.list") == 3
    assert wire.count("away.read") <= 4500 // 128 + 1
    await source.aclose()


async def test_no_more_than_a_window_is_under_way(tmp_path, wire, threads):
    await fetch_tree(
        wire.call, tmp_path / "copy", threads=threads, chunk_bytes=CHUNK, window_bytes=4 * (CHUNK + 512)
    )
    assert 2 <= wire.most <= 4


# -- what leaves nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [pytest.param(True, id="empty"), pytest.param(False, id="new")])
async def test_a_break_leaves_it_as_it_was_found(tmp_path, wire, threads, exists):
    if exists:
        (tmp_path / "copy").mkdir()
    for break_at in range(1, 12):
        wire.mended()
        wire.break_at = break_at
        with pytest.raises(ConnectionError):
            await fetch_tree(wire.call, tmp_path / "copy", threads=threads, chunk_bytes=CHUNK)
        assert (tmp_path / "copy").exists() == exists
        assert not exists or not list((tmp_path / "copy").iterdir())
    wire.mended()
    await fetch_tree(wire.call, tmp_path / "copy", threads=threads, chunk_bytes=CHUNK)
    assert read_tree(tmp_path / "copy") == CONTENT


async def test_it_can_be_cancelled_anywhere(tmp_path, threads):
    content = {"big": random.Random(6).randbytes(4 * CHUNK), "small": b"x", "d/none": b""}
    write_tree(tmp_path / "private", content)
    for steps in range(10_000):
        source = TreeSource(tmp_path / "private", threads=threads)
        wire = Wire(source.handle)
        fetching = fetch_tree(
            wire.call, tmp_path / "copy", threads=threads, chunk_bytes=CHUNK, window_bytes=3 * CHUNK
        )
        done = await cancelled_after(steps, fetching)
        await source.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        if isinstance(done, int):
            shutil.rmtree(tmp_path / "copy")
            if steps > 100:
                break
        else:
            assert isinstance(done, asyncio.CancelledError)
            assert not (tmp_path / "copy").exists()
    else:
        pytest.fail("it never ended")
    assert not open_below(tmp_path)


async def test_any_failure_of_the_disk_leaves_nothing(tmp_path, wire, threads):
    number, worked = 0, False
    while not worked:
        number += 1
        files = CountingFiles(fail_at=number)
        try:
            await fetch_tree(wire.call, tmp_path / "copy", files=files, threads=threads, chunk_bytes=CHUNK)
        except StorageError as error:
            assert "cannot fetch a checkpoint from the head" in str(error)  # noqa: PT017
            assert not (tmp_path / "copy").exists()
        else:
            worked = True
    assert number > 30


async def test_only_an_empty_directory_will_do(tmp_path, wire, threads):
    for to in (tmp_path / "private", tmp_path / "private/z.json"):
        with pytest.raises((ConfigError, StorageError)):
            await fetch_tree(wire.call, to, threads=threads)
    assert read_tree(tmp_path / "private") == CONTENT


# -- a head that makes no sense ----------------------------------------------------------------------------


def changed(op: str, **fields: object):
    def change(asked: str, answer: dict[str, object]) -> None:
        if asked == op:
            answer |= fields

    return change


EMPTY = {"directories": [], "mode": 0o700, "next": -1}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(changed("away.list", **EMPTY, files=[["../f", 0, 0, -1]]), id="up"),
        pytest.param(changed("away.list", **EMPTY, files=[["/f", 0, 0, -1]]), id="absolute"),
        pytest.param(changed("away.list", **EMPTY, files=[["f", 0, 0, -1]] * 2), id="twice"),
        pytest.param(changed("away.list", **EMPTY, files=[["d/f", 0, 0, -1]]), id="no-directory"),
        pytest.param(changed("away.list", **EMPTY, files=[["f", -1, 0, -1]]), id="negative"),
        pytest.param(changed("away.list", **EMPTY, files=[["f", 0, 0]]), id="short-row"),
        pytest.param(
            changed("away.list", **EMPTY | {"directories": [["..", 0]]}, files=[]), id="directory-up"
        ),
        pytest.param(changed("away.list", **EMPTY | {"next": 99}), id="gap"),
        pytest.param(changed("away.list", **EMPTY | {"next": 0}, files=[]), id="no-end"),
        pytest.param(changed("away.list", mode="x"), id="mode"),
        pytest.param(changed("away.read", pieces=[]), id="no-pieces"),
        pytest.param(changed("away.read", pieces=[[0, b"", 0]] * 3), id="empty-pieces"),
        pytest.param(changed("away.read", pieces=7), id="number"),
    ],
)
async def test_a_head_that_makes_no_sense_is_refused(tmp_path, wire, threads, change):
    wire.change_answer = change
    with pytest.raises(ConfigError):
        await fetch_tree(wire.call, tmp_path / "copy", threads=threads)
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("field", [pytest.param(0, id="piece"), pytest.param(2, id="whole")])
async def test_damage_on_the_way_is_found(tmp_path, wire, threads, field):
    def damage(op, answer):
        if op == "away.read" and wire.count("away.read") > 20:
            answer["pieces"][0][field] ^= 1

    wire.change_answer = damage
    with pytest.raises(StorageError) as caught:
        await fetch_tree(wire.call, tmp_path / "copy", threads=threads, chunk_bytes=CHUNK)
    assert caught.value.retryable
    assert not (tmp_path / "copy").exists()


# -- memory ------------------------------------------------------------------------------------------------


class NoWrites(CountingFiles):
    def write(self, fd, data):
        os.ftruncate(fd, os.lseek(fd, len(data), os.SEEK_CUR))
        return len(data)


async def test_a_huge_file_needs_little_memory(tmp_path, threads):
    (tmp_path / "private").mkdir()
    with (tmp_path / "private/huge").open("wb") as file:
        file.truncate(256 << 20)
    source = TreeSource(tmp_path / "private", threads=threads)
    wire = Wire(source.handle)
    wire.remember = False
    tracemalloc.start()
    try:
        await fetch_tree(wire.call, tmp_path / "copy", files=NoWrites(), threads=threads)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    await source.aclose()
    assert (tmp_path / "copy/huge").stat().st_size == 256 << 20


async def test_pieces_say_what_they_hold(source):
    listed = await source.handle("away.list", {"from": 0})
    index = [path for path, *_ in listed["files"]].index("z.json")
    answer = await source.handle("away.read", {"pieces": [[index, 0, 1], [index, 1, 1]]})
    whole = google_crc32c.value(b"{}")
    assert answer == {
        "pieces": [[google_crc32c.value(b"{"), b"{", -1], [google_crc32c.value(b"}"), b"}", whole]]
    }


async def test_files_that_are_no_checkpoint_are_checked_one_by_one(tmp_path, threads):
    """Names that differ in case only may be there; paths that lead elsewhere may not."""
    lent = write_tree(tmp_path / "own", {"README": b"1", "readme": b"2", "A/x": b"3", "a/y": b"4"})
    source = TreeSource(lent, threads=threads, look=own_files)
    wire = Wire(source.handle)
    with pytest.raises(ConfigError, match="differ only in case"):
        await fetch_tree(wire.call, tmp_path / "checkpoint")
    await fetch_tree(wire.call, tmp_path / "files", check=check_trial_path)
    assert read_tree(tmp_path / "files") == read_tree(lent)
    for path in ("../out", "result.json", ".hidden"):
        answer = {"files": [[path, 1, 0o600, -1]], "next": -1, "directories": [], "mode": 0o700}
        with pytest.raises(ConfigError, match="cannot be taken"):
            await fetch_tree(_always(answer), tmp_path / "other", check=check_trial_path)
        assert not (tmp_path / "other").exists()
    await source.aclose()


def _always(answer):
    async def call(op, arguments):
        return answer

    return call
