from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import stat
import tempfile
import tracemalloc
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.homecoming import TreeReceiver
from asynctune.checkpoints.homeward import abandon_tree, send_tree
from asynctune.checkpoints.manifest import Manifest, ManifestFile
from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.errors import ConfigError, StorageError
from tests.checkpoints.fakes import CountingFiles, Room, read_tree, where
from tests.checkpoints.travel import Wire, left_in, open_below, staged_tree

CONTENT = {
    "model.bin": random.Random(1).randbytes(300_001),
    "a/b/deep.txt": b"deep",
    "a/other": b"",
    "z.json": b"{}",
}
CHUNK = 4096


@pytest.fixture
def wire(head):
    return Wire(head.handle)


async def test_a_tree_arrives_as_it_is(tmp_path, wire, threads):
    staged = await staged_tree(tmp_path, CONTENT, ("hollow/inner", "a/none"))
    (Path(staged.path) / "a").chmod(0o755)
    (Path(staged.path) / "z.json").chmod(0o755)
    progress: list[int] = []
    value = await send_tree(wire.call, staged, threads=threads, chunk_bytes=CHUNK, progress=progress.append)
    arrived = StagedCheckpoint.from_value(value)
    path = Path(arrived.path)
    assert path.parent == tmp_path / "head"
    assert path.name.startswith(".staged-")
    assert read_tree(path) == CONTENT
    assert (path / "hollow/inner").is_dir()
    assert (path / "a/none").is_dir()
    assert arrived.manifest == staged.manifest
    assert Manifest.decode((path / ".manifest.json").read_bytes()) == staged.manifest
    assert sum(progress) == sum(map(len, CONTENT.values()))
    assert stat.S_IMODE((path / "z.json").stat().st_mode) == 0o755
    assert stat.S_IMODE((path / "model.bin").stat().st_mode) & 0o022 == 0
    assert stat.S_IMODE((path / "a").stat().st_mode) == 0o755
    assert left_in(tmp_path / "head") == [path.name]
    assert read_tree(Path(staged.path)) == CONTENT  # the node's stays


async def test_it_is_adopted_like_any_other(tmp_path, threads):
    async with Room(tmp_path / "exp") as room:
        trial_dir = tmp_path / "exp/t"
        receiver = TreeReceiver(trial_dir, threads=threads)
        wire = Wire(receiver.handle)
        value = await send_tree(wire.call, await staged_tree(tmp_path, CONTENT), threads=threads)
        checkpoint = await room.catalog.adopt("t", StagedCheckpoint.from_value(value), trial_name="t")
        await receiver.aclose()
        assert read_tree(where(checkpoint)) == CONTENT
        assert (await room.verify())[0].intact
        assert not left_in(trial_dir)


async def test_it_has_threads_of_its_own(tmp_path, wire):
    value = await send_tree(wire.call, await staged_tree(tmp_path, CONTENT))
    assert read_tree(Path(value["path"])) == CONTENT


async def test_many_small_files_need_few_calls(tmp_path, wire, threads):
    content = {f"d{number % 7}/{number:04}": bytes([number % 251]) * 1000 for number in range(1000)}
    value = await send_tree(wire.call, await staged_tree(tmp_path, content), threads=threads)
    assert read_tree(Path(value["path"])) == content
    assert wire.count("home.chunks") <= 10
    assert wire.count("home.offer") == 1


async def test_a_long_offer_goes_in_pieces(tmp_path, wire, threads):
    content = {f"{number:04}": b"x" for number in range(100)}
    value = await send_tree(wire.call, await staged_tree(tmp_path, content), threads=threads, chunk_bytes=500)
    assert read_tree(Path(value["path"])) == content
    assert wire.count("home.offer") > 10


async def test_no_more_than_a_window_is_under_way(tmp_path, wire, threads):
    content = {"big": bytes(64 * CHUNK + 1)}
    staged = await staged_tree(tmp_path, content)
    await send_tree(wire.call, staged, threads=threads, chunk_bytes=CHUNK, window_bytes=5 * CHUNK)
    assert 2 <= wire.most <= 5
    assert wire.count("home.chunks") == 65


# -- going on after a break --------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(
    content=st.dictionaries(
        st.sampled_from(["a", "b", "c/x", "c/y", "d/e/f", "g"]),
        st.tuples(st.integers(0, 5000), st.integers(0, 255)).map(lambda pair: bytes([pair[1]]) * pair[0]),
        min_size=1,
    ),
    breaks=st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=5),
)
async def test_what_was_acknowledged_is_not_sent_again(content, breaks):
    directory = Path(tempfile.mkdtemp(prefix="homeward-"))
    threads = DiskThreads()
    receiver = TreeReceiver(directory / "head", files=CountingFiles(), threads=threads)
    wire = Wire(receiver.handle)
    try:
        staged = await staged_tree(directory, content)
        there: dict[int, set[tuple[int, int]]] = {}
        value = None
        for break_at, answer_lost in [*breaks, (0, False)]:
            wire.mended()
            wire.break_at, wire.answer_lost = break_at or None, answer_lost
            try:
                value = await send_tree(
                    wire.call, staged, threads=threads, chunk_bytes=700, window_bytes=2000
                )
            except ConnectionError:
                assert break_at
            for index, ranges in wire.sent().items():
                assert not ranges & there.get(index, set())
            for index, ranges in wire.sent(wire.acknowledged).items():
                there.setdefault(index, set()).update(ranges)
        assert value is not None
        assert read_tree(Path(value["path"])) == content
        assert left_in(directory / "head") == [Path(value["path"]).name]
    finally:
        await receiver.aclose()
        threads.close()
        shutil.rmtree(directory)


async def test_a_lost_last_answer_is_given_again(tmp_path, wire, threads):
    staged = await staged_tree(tmp_path, CONTENT)
    first = await send_tree(wire.call, staged, threads=threads)
    wire.mended()
    assert await send_tree(wire.call, staged, threads=threads) == first
    assert wire.count("home.chunks") == 0
    shutil.move(first["path"], tmp_path / "head/checkpoint_000001")  # as adoption does
    again = await send_tree(wire.call, staged, threads=threads)
    assert again["path"] != first["path"]
    assert read_tree(Path(again["path"])) == CONTENT


async def test_what_is_given_up_leaves_nothing(tmp_path, wire, head, threads):
    staged = await staged_tree(tmp_path, CONTENT)
    wire.break_at = 4
    with pytest.raises(ConnectionError):
        await send_tree(wire.call, staged, threads=threads, chunk_bytes=CHUNK)
    assert len(left_in(tmp_path / "head")) == 1
    wire.mended()
    await abandon_tree(wire.call, staged)
    assert not left_in(tmp_path / "head")
    value = await send_tree(wire.call, staged, threads=threads)
    await abandon_tree(wire.call, staged)
    assert not Path(value["path"]).exists()
    await abandon_tree(wire.call, staged)


async def test_it_can_be_cancelled_anywhere(tmp_path, threads):
    content = {"big": random.Random(2).randbytes(5 * CHUNK), "small": b"x", "none": b""}
    staged = await staged_tree(tmp_path, content)
    for steps in range(10_000):
        receiver = TreeReceiver(tmp_path / "head", files=CountingFiles(), threads=threads)
        wire = Wire(receiver.handle)
        task = asyncio.create_task(
            send_tree(wire.call, staged, threads=threads, chunk_bytes=CHUNK, window_bytes=2 * CHUNK)
        )
        for _ in range(steps):
            await asyncio.sleep(0)
            if task.done():
                break
        if steps % 3 == 0:
            await asyncio.sleep(0.001)
        task.cancel()
        done = (await asyncio.gather(task, return_exceptions=True))[0]
        if not isinstance(done, dict):
            assert isinstance(done, asyncio.CancelledError)
        await receiver.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        if isinstance(done, dict):
            assert left_in(tmp_path / "head") == [Path(done["path"]).name]
            if steps > 150:
                break
            shutil.rmtree(done["path"])
        elif (tmp_path / "head").exists():
            for name in left_in(tmp_path / "head"):
                # finished on the head, only the answer was not waited for
                assert (tmp_path / "head" / name / ".manifest.json").exists()
                shutil.rmtree(tmp_path / "head" / name)
    else:
        pytest.fail("it never ended")
    assert not open_below(tmp_path)


# -- what is wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.write_bytes(b"short"), id="shorter"),
        pytest.param(lambda path: path.write_bytes(bytes(len(CONTENT["model.bin"]))), id="other-content"),
        pytest.param(lambda path: path.unlink(), id="removed"),
        pytest.param(lambda path: (path.parent / "new").write_bytes(b""), id="added"),
        pytest.param(lambda path: (path.parent / "newdir").mkdir(), id="directory"),
    ],
)
async def test_a_source_that_changed_is_not_sent(tmp_path, wire, head, threads, change):
    staged = await staged_tree(tmp_path, CONTENT)
    change(Path(staged.path) / "model.bin")
    with pytest.raises(StorageError, match="not what it was when it was staged") as caught:
        await send_tree(wire.call, staged, threads=threads, chunk_bytes=CHUNK)
    assert not caught.value.retryable
    assert wire.count("home.finish") == 0


async def test_a_source_that_vanishes_meanwhile_is_an_error(tmp_path, wire, head, threads):
    staged = await staged_tree(tmp_path, CONTENT)

    async def vanish(op, arguments):
        await asyncio.to_thread(shutil.rmtree, staged.path, ignore_errors=True)
        return await head.handle(op, arguments)

    wire.handle = vanish
    with pytest.raises(StorageError, match="cannot send a checkpoint to the head"):
        await send_tree(wire.call, staged, threads=threads)


async def test_a_source_that_changes_between_two_attempts_is_noticed(tmp_path, wire, threads):
    staged = await staged_tree(tmp_path, CONTENT)
    wire.break_at = 20
    with pytest.raises(ConnectionError):
        await send_tree(wire.call, staged, threads=threads, chunk_bytes=CHUNK)
    wire.mended()
    path = Path(staged.path) / "model.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StorageError, match="not what it was when it was staged"):
        await send_tree(wire.call, staged, threads=threads, chunk_bytes=CHUNK)


@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_piece_damaged_on_its_way_is_sent_again(tmp_path, wire, threads, attempts):
    staged = await staged_tree(tmp_path, CONTENT)
    damaged: list[object] = []

    def damage(op, arguments):
        if op == "home.chunks" and len(wire.calls) >= 10 and not damaged:
            piece = arguments["pieces"][0]
            piece[3] = piece[3][:-1] + bytes([piece[3][-1] ^ 1])
            damaged.append(piece)

    wire.change = damage
    if attempts == 1:
        with pytest.raises(StorageError, match=r"a piece of .* was damaged on its way") as caught:
            await send_tree(wire.call, staged, threads=threads, chunk_bytes=CHUNK, attempts=1)
        assert caught.value.retryable
    value = await send_tree(wire.call, staged, threads=threads, chunk_bytes=CHUNK, attempts=attempts)
    assert read_tree(Path(value["path"])) == CONTENT
    assert damaged
    assert wire.count("home.offer") == 2


@pytest.mark.parametrize("size", [pytest.param(50, id="one-piece"), pytest.param(3 * CHUNK, id="pieces")])
async def test_a_wrong_manifest_is_found_by_the_head(tmp_path, wire, threads, size):
    staged = await staged_tree(tmp_path, {"f": random.Random(3).randbytes(size), "g": b""})
    (file, empty) = staged.manifest.files
    wrong = ManifestFile(file.path, file.size_bytes, file.crc32c, "0" * 64)
    bad = StagedCheckpoint(staged.path, Manifest(step=0, epoch=0, attempt=0, files=(wrong, empty)))
    with pytest.raises(StorageError, match="f has other content than its manifest says") as caught:
        await send_tree(wire.call, bad, threads=threads, chunk_bytes=CHUNK)
    assert caught.value.retryable
    assert not [path for path in (tmp_path / "head").rglob("*") if path.name == "f"]


@pytest.mark.parametrize(
    "told",
    [
        pytest.param({"complete": [[0, 99]], "partial": []}, id="too-many"),
        pytest.param({"complete": [], "partial": [[0, 10**9, 0]]}, id="too-far"),
        pytest.param({"complete": [], "partial": [["x", 1, 0]]}, id="text"),
        pytest.param({"complete": 7, "partial": []}, id="number"),
        pytest.param({"partial": []}, id="missing"),
    ],
)
async def test_a_head_that_makes_no_sense_is_refused(tmp_path, threads, told):
    staged = await staged_tree(tmp_path, CONTENT)

    async def call(op, arguments):
        return told

    with pytest.raises(ConfigError, match="use the same release"):
        await send_tree(call, staged, threads=threads)


# -- memory ------------------------------------------------------------------------------------------------


class SparseFiles(CountingFiles):
    """Writes nothing but lengths."""

    def write(self, fd, data):
        os.ftruncate(fd, os.lseek(fd, len(data), os.SEEK_CUR))
        return len(data)


async def test_a_huge_file_needs_little_memory(tmp_path, threads):
    size = 256 << 20
    source = tmp_path / "node/.staged-1"
    source.mkdir(parents=True)
    with (source / "huge").open("wb") as file:
        file.truncate(size)
    sha256, crc32c, block = hashlib.sha256(), 0, bytes(1 << 20)
    for _ in range(256):
        sha256.update(block)
        crc32c = google_crc32c.extend(crc32c, block)
    manifest = Manifest(
        step=0, epoch=0, attempt=0, files=(ManifestFile("huge", size, crc32c, sha256.hexdigest()),)
    )
    (source / ".manifest.json").write_bytes(manifest.encode())
    receiver = TreeReceiver(tmp_path / "head", files=SparseFiles(), threads=threads)
    wire = Wire(receiver.handle)
    wire.remember = False
    tracemalloc.start()
    try:
        value = await send_tree(wire.call, StagedCheckpoint(str(source), manifest), threads=threads)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    assert (Path(value["path"]) / "huge").stat().st_size == size
