from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import shutil
import stat
import threading
from functools import partial
from pathlib import Path

import google_crc32c
import pytest

from asynctune.checkpoints import arrival
from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.homecoming import TreeReceiver
from asynctune.checkpoints.homeward import send_tree
from asynctune.checkpoints.manifest import Manifest
from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.errors import ConfigError, StorageError
from asynctune.packing import pack, unpack
from asynctune.testing import FaultyFiles
from tests.checkpoints.buckets import quiet
from tests.checkpoints.fakes import CountingFiles, Room, read_tree
from tests.checkpoints.travel import Wire, left_in, open_below, staged_tree

CHUNK = 4096
BIG = random.Random(4).randbytes(5 * CHUNK + 7)
CONTENT = {"big": BIG, "a/small": b"small", "a/none": b"", "other": b"other"}


def offer_of(*paths: str, data: bytes = b"x", **other: object) -> bytes:
    """An offer that no sender of ours would make."""
    files = [
        {
            "path": path,
            "size_bytes": len(data),
            "crc32c": f"{google_crc32c.value(data):08x}",
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        for path in paths
    ]
    plain = Manifest(step=0, epoch=0, attempt=0, files=()).encode().decode()
    text = plain.replace('"files":[\n\n]', f'"files":{files!r}'.replace("'", '"'))
    return pack(
        {"manifest": text.encode(), "modes": bytes(2 * len(files)), "directories": {}, "mode": 0o700} | other
    )


def announcing(encoded: bytes) -> dict[str, object]:
    return {"id": "x", "size": len(encoded), "offset": 0, "data": encoded}


def chunks(*pieces: list[object]) -> dict[str, object]:
    return {"id": "x", "pieces": list(pieces)}


def piece(data: bytes, index: int = 0, offset: int = 0) -> list[object]:
    return [index, offset, google_crc32c.value(data), data]


# -- what nobody should send -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["../out", "/etc/passwd", "a/../../out", "", ".", "a//b", "nul\0", ".manifest.json", "a/.MANIFEST.json"],
    ids=["up", "absolute", "up-inside", "empty", "dot", "double", "nul", "manifest", "manifest-folded"],
)
async def test_paths_that_lead_elsewhere_are_refused(tmp_path, head, path):
    value = unpack(offer_of("fine"))
    value["manifest"] = value["manifest"].replace(b"fine", path.replace("\0", "\\u0000").encode())
    encoded = pack(value)
    with pytest.raises(ConfigError, match="that a node offers cannot be taken"):
        await head.handle("home.offer", announcing(encoded))
    assert not (tmp_path / "head").exists() or not left_in(tmp_path / "head")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"directories": {"..": 0o700}}, id="directory-up"),
        pytest.param({"directories": {"/tmp": 0o700}}, id="directory-absolute"),
        pytest.param({"directories": {"unknown": 0o700}}, id="directory-unknown"),
        pytest.param({"directories": [1]}, id="directories"),
        pytest.param({"directories": {"a": "x"}}, id="directory-mode"),
        pytest.param({"modes": b""}, id="modes"),
        pytest.param({"modes": 7}, id="modes-number"),
        pytest.param({"mode": "x"}, id="mode"),
        pytest.param({"manifest": b"{}"}, id="manifest"),
        pytest.param({"manifest": "text"}, id="manifest-text"),
        pytest.param({"more": 1}, id="more"),
    ],
)
async def test_offers_that_make_no_sense_are_refused(tmp_path, head, other):
    encoded = pack(unpack(offer_of("a/f")) | other)
    with pytest.raises(ConfigError, match="a node offers"):
        await head.handle("home.offer", announcing(encoded))
    assert not (tmp_path / "head").exists() or not left_in(tmp_path / "head")


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        pytest.param("home.offer", {"id": "y", "size": 5, "offset": 1, "data": b"x"}, id="offer-gap"),
        pytest.param("home.offer", {"id": "y", "size": 5, "offset": 0, "data": b"123456"}, id="offer-long"),
        pytest.param("home.offer", {"id": "y", "size": 5, "offset": 0, "data": b""}, id="offer-nothing"),
        pytest.param("home.offer", {"id": "y", "size": 1 << 40, "offset": 0, "data": b"x"}, id="offer-huge"),
        pytest.param("home.offer", {"id": "y", "size": 4, "offset": 0, "data": b"\xc1xyz"}, id="offer-junk"),
        pytest.param("home.offer", {"id": "i" * 300, "size": 4, "offset": 0, "data": b"x"}, id="long-id"),
        pytest.param("home.chunks", {"id": "x"}, id="no-pieces"),
        pytest.param("home.chunks", chunks([0, 0, 0]), id="short-piece"),
        pytest.param("home.chunks", chunks([0, 0, 0, "text"]), id="text-piece"),
        pytest.param("home.chunks", chunks([True, 0, 0, b"x"]), id="bool-piece"),
        pytest.param("home.chunks", chunks(piece(b"x", index=9)), id="no-such-file"),
        pytest.param("home.chunks", chunks(piece(b"x", index=-1)), id="negative-file"),
        pytest.param("home.chunks", chunks(piece(b"x", offset=1)), id="beyond"),
        pytest.param("home.chunks", chunks(piece(b"x", offset=-1)), id="before"),
        pytest.param("home.chunks", chunks(piece(b"xy")), id="too-long"),
        pytest.param("home.chunks", chunks(piece(b"")), id="empty-piece"),
        pytest.param("home.chunks", {"pieces": []}, id="no-id"),
        pytest.param("home.format", {"id": "x"}, id="no-such-operation"),
    ],
)
async def test_calls_that_make_no_sense_are_refused(tmp_path, head, op, arguments):
    await head.handle("home.offer", announcing(offer_of("f")))
    with pytest.raises(ConfigError):
        await head.handle(op, arguments)
    await head.handle("home.chunks", chunks(piece(b"x")))
    path = (await head.handle("home.finish", {"id": "x"}))["path"]
    assert read_tree(Path(path)) == {"f": b"x"}


async def test_calls_out_of_order_say_what_is_missing(head):
    for op in ("home.chunks", "home.finish"):
        with pytest.raises(StorageError, match="was not offered") as caught:
            await head.handle(op, chunks())
        assert caught.value.retryable
    data = b"0123456789"
    await head.handle("home.offer", announcing(offer_of("f", "g", data=data)))
    with pytest.raises(StorageError, match="at 5 came before the one at 0") as caught:
        await head.handle("home.chunks", chunks(piece(data[5:], offset=5)))
    assert caught.value.retryable
    await head.handle("home.chunks", chunks(piece(data[:5]), piece(data[5:], offset=5)))
    with pytest.raises(StorageError, match="1 files are not complete, such as g") as caught:
        await head.handle("home.finish", {"id": "x"})
    assert caught.value.retryable
    await head.handle("home.chunks", chunks(piece(data[5:], offset=5), piece(data, index=1)))  # again: fine
    await head.handle("home.finish", {"id": "x"})


async def test_modes_give_nobody_more_than_a_staged_copy_has(head):
    value = unpack(offer_of("f", "d/g"))
    value |= {"modes": (0o7777).to_bytes(2, "little") * 2, "directories": {"d": 0o7777}, "mode": 0o7777}
    told = await head.handle("home.offer", announcing(pack(value)))
    assert told == {"complete": [], "partial": []}
    await head.handle("home.chunks", chunks(piece(b"x"), piece(b"x", index=1)))
    path = Path((await head.handle("home.finish", {"id": "x"}))["path"])
    for each in (path, path / "f", path / "d", path / "d/g"):
        assert stat.S_IMODE(each.stat().st_mode) == 0o755


async def test_another_offer_of_the_same_name_replaces_the_first(tmp_path, head):
    await head.handle("home.offer", announcing(offer_of("f")))
    (first,) = left_in(tmp_path / "head")
    await head.handle("home.offer", announcing(offer_of("g")))
    (second,) = left_in(tmp_path / "head")
    assert first != second


async def test_a_closed_one_takes_nothing(tmp_path, head):
    await head.handle("home.offer", announcing(offer_of("f")))
    assert left_in(tmp_path / "head")
    await head.aclose()
    await head.aclose()
    assert not left_in(tmp_path / "head")
    with pytest.raises(StorageError, match="does not run on this node any more"):
        await head.handle("home.offer", announcing(offer_of("f")))


async def test_what_is_under_way_at_the_close_leaves_nothing(tmp_path, threads):
    for steps in range(60):
        receiver = TreeReceiver(tmp_path / "head", files=CountingFiles(), threads=threads)
        calls = [
            asyncio.create_task(receiver.handle(op, arguments))
            for op, arguments in (
                ("home.offer", announcing(offer_of("f", "g"))),
                ("home.chunks", chunks(piece(b"x"))),
                ("home.abandon", {"id": "x"}),
                ("home.offer", announcing(offer_of("h"))),
                ("home.chunks", chunks(piece(b"x"))),
            )
        ]
        for _ in range(steps):
            await asyncio.sleep(0 if steps % 2 else 0.0005)
        await receiver.aclose()
        await asyncio.gather(*calls, return_exceptions=True)
        assert not (tmp_path / "head").exists() or not left_in(tmp_path / "head")


async def test_finished_ones_that_nobody_claims_can_be_removed(tmp_path, threads):
    receiver = TreeReceiver(tmp_path / "head", files=CountingFiles(), threads=threads)
    paths = []
    for number in range(3):
        await receiver.handle("home.offer", announcing(offer_of("f")) | {"id": str(number)})
        await receiver.handle("home.chunks", chunks(piece(b"x")) | {"id": str(number)})
        paths.append(Path((await receiver.handle("home.finish", {"id": str(number)}))["path"]))
    shutil.move(paths[0], tmp_path / "head/checkpoint_000001")
    await receiver.aclose(claimed={str(paths[1])})
    assert left_in(tmp_path / "head") == [paths[1].name]


async def test_a_directory_that_cannot_be_removed_is_told(tmp_path, threads, caplog):
    files = FaultyFiles()
    receiver = TreeReceiver(tmp_path / "head", files=files, threads=threads)
    for name in ("finished", "begun"):
        await receiver.handle("home.offer", announcing(offer_of("f")) | {"id": name})
    await receiver.handle("home.chunks", chunks(piece(b"x")) | {"id": "finished"})
    await receiver.handle("home.finish", {"id": "finished"})
    files.fail(errno.EIO, on="remove_tree", lasting=True)
    await receiver.aclose(claimed=())
    assert caplog.text.count("could not be removed") == 2


async def test_finished_paths_have_no_links_in_them(tmp_path, threads):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    receiver = TreeReceiver(tmp_path / "link/t", files=CountingFiles(), threads=threads)
    await receiver.handle("home.offer", announcing(offer_of("f")))
    await receiver.handle("home.chunks", chunks(piece(b"x")))
    path = Path((await receiver.handle("home.finish", {"id": "x"}))["path"])
    assert path.parent == tmp_path / "real/t"
    await receiver.aclose()


async def test_finished_ones_are_forgotten_in_the_end(head):
    for number in range(40):
        await head.handle("home.offer", announcing(offer_of("f")) | {"id": str(number)})
        await head.handle("home.chunks", chunks(piece(b"x")) | {"id": str(number)})
        await head.handle("home.finish", {"id": str(number)})
    assert len(head._incoming) < 20


async def test_of_many_that_are_begun_only_the_last_can_go_on(tmp_path, head):
    for number in range(7):
        await head.handle("home.offer", announcing(offer_of("f")) | {"id": str(number)})
    assert len(left_in(tmp_path / "head")) == 4
    with pytest.raises(StorageError, match="was not offered"):
        await head.handle("home.chunks", chunks(piece(b"x")) | {"id": "2"})
    for number in range(3, 7):
        await head.handle("home.chunks", chunks(piece(b"x")) | {"id": str(number)})
        await head.handle("home.finish", {"id": str(number)})


# -- what is on this disk already --------------------------------------------------------------------------


async def committed(tmp_path: Path, threads: DiskThreads, content: dict[str, bytes], step: int = 1) -> Path:
    """A checkpoint that was sent here and committed."""
    receiver = TreeReceiver(tmp_path / "head", files=CountingFiles(), threads=threads)
    value = await send_tree(
        Wire(receiver.handle).call, await staged_tree(tmp_path, content), threads=threads, chunk_bytes=CHUNK
    )
    target = tmp_path / f"head/checkpoint_{step:06}"
    shutil.move(value["path"], target)
    return target


async def test_what_the_newest_checkpoint_has_is_not_sent(tmp_path, head, threads):
    await committed(tmp_path, threads, {"old": b"older" * 100}, 9)
    earlier = await committed(tmp_path, threads, {"before": BIG, "other": b"other", "same": b"1"}, 10)
    (tmp_path / "head/checkpoint_000011").write_bytes(b"")
    shutil.move(tmp_path / "head/checkpoint_000011", tmp_path / "head/checkpoint_none")
    wire = Wire(head.handle)
    staged = await staged_tree(tmp_path, CONTENT | {"same": b"2", "old": b"older" * 100})
    value = await send_tree(wire.call, staged, threads=threads, chunk_bytes=CHUNK)
    arrived = Path(value["path"])
    assert read_tree(arrived) == CONTENT | {"same": b"2", "old": b"older" * 100}
    paths = [file.path for file in staged.manifest.files]
    assert {paths[index] for index in wire.sent()} == {"a/small", "same", "old"}
    assert not (arrived / "big").samefile(earlier / "before")
    assert (earlier / "before").stat().st_nlink == 1


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: (path / "big").write_bytes(bytes(len(BIG))), id="content"),
        pytest.param(lambda path: (path / "big").write_bytes(b"short"), id="size"),
        pytest.param(lambda path: (path / "big").unlink(), id="missing"),
        pytest.param(lambda path: (path / ".manifest.json").write_bytes(b"{"), id="manifest"),
        pytest.param(lambda path: (path / ".manifest.json").unlink(), id="no-manifest"),
        pytest.param(shutil.rmtree, id="all"),
    ],
)
@pytest.mark.parametrize("small", [pytest.param(False, id="whole"), pytest.param(True, id="streamed")])
async def test_what_is_damaged_there_is_not_taken(tmp_path, head, threads, damage, small, monkeypatch):
    if small:
        monkeypatch.setattr("asynctune.checkpoints.copying.SMALL_BYTES", 64)
    damage(await committed(tmp_path, threads, CONTENT))
    wire = Wire(head.handle)
    staged = await staged_tree(tmp_path, CONTENT)
    value = await send_tree(wire.call, staged, threads=threads, chunk_bytes=CHUNK)
    assert read_tree(Path(value["path"])) == CONTENT
    assert [file.path for file in staged.manifest.files].index("big") in wire.sent()


async def test_retention_may_take_it_away_meanwhile(tmp_path, threads):
    earlier = await committed(tmp_path, threads, CONTENT)
    files = CountingFiles()
    receiver = TreeReceiver(tmp_path / "head", files=files, threads=threads)
    for number in range(1, 15):
        files.at[number] = partial(shutil.rmtree, earlier, ignore_errors=True)
        value = await send_tree(
            Wire(receiver.handle).call, await staged_tree(tmp_path, CONTENT), threads=threads
        )
        assert read_tree(Path(value["path"])) == CONTENT
        shutil.rmtree(tmp_path / "head")
        files.calls.clear()
        files.at.clear()
        earlier = await committed(tmp_path, threads, CONTENT)
    await receiver.aclose()


async def test_names_with_an_epoch_are_newer_ones(tmp_path, head, threads):
    await committed(tmp_path, threads, {"f": b"1"}, 5)
    shutil.move(await committed(tmp_path, threads, {"f": b"2"}, 6), tmp_path / "head/checkpoint_000005-12.1")
    wire = Wire(head.handle)
    await send_tree(wire.call, await staged_tree(tmp_path, {"f": b"2"}), threads=threads)
    assert not wire.sent()


# -- a disk that fails -------------------------------------------------------------------------------------


async def test_any_failure_of_the_disk_can_be_gone_on_from(tmp_path, threads, monkeypatch):
    monkeypatch.setattr(arrival, "_SYNC_BYTES", 2 * CHUNK)
    staged = await staged_tree(tmp_path, CONTENT)
    number = 0
    while True:
        number += 1
        files = CountingFiles(fail_at=number)
        receiver = TreeReceiver(tmp_path / "head", files=files, threads=threads)
        wire = Wire(receiver.handle)
        try:
            value = await send_tree(wire.call, staged, threads=threads, chunk_bytes=CHUNK)
        except StorageError as error:
            assert "cannot take a checkpoint from its node" in str(error)  # noqa: PT017
            value = await send_tree(wire.call, staged, threads=threads, chunk_bytes=CHUNK)
        assert read_tree(Path(value["path"])) == CONTENT
        assert left_in(tmp_path / "head") == [Path(value["path"]).name]
        await receiver.aclose()
        assert not open_below(tmp_path)
        shutil.rmtree(tmp_path / "head")
        if len(files.calls) < number:
            break
    assert number > 40


async def test_a_disk_that_stays_broken_leaves_nothing(tmp_path, threads):
    staged = await staged_tree(tmp_path, CONTENT)
    number, worked = 0, False
    while not worked:
        number += 1
        files = FaultyFiles()
        receiver = TreeReceiver(tmp_path / "head", files=files, threads=threads)
        files.fail(errno.ENOSPC, on=("write", "create", "sync_data", "sync"), nth=number, lasting=True)
        try:
            await send_tree(Wire(receiver.handle).call, staged, threads=threads, chunk_bytes=CHUNK)
        except StorageError as error:
            assert error.retryable  # noqa: PT017
            assert "No space left" in str(error)  # noqa: PT017
            await receiver.aclose()
            assert not left_in(tmp_path / "head")
        else:
            worked = True
            await receiver.aclose()
        assert not open_below(tmp_path)
    assert number > 15


async def test_many_files_are_synced_together(tmp_path, threads):
    content = {f"{number:03}": bytes([number]) for number in range(100)}
    staged = await staged_tree(tmp_path, content)
    files = FaultyFiles()
    receiver = TreeReceiver(tmp_path / "head", files=files, threads=threads)
    trusted = await asyncio.to_thread(_trusted, tmp_path)
    await send_tree(Wire(receiver.handle).call, staged, threads=threads)
    kinds = [each.kind for each in files.log]
    assert kinds.count("sync_filesystem") == 1
    assert kinds.count("sync_data") == (0 if trusted else 100)
    await receiver.aclose()


async def test_where_that_fails_they_are_synced_one_by_one(tmp_path, threads):
    content = {f"{number:03}": bytes([number]) for number in range(100)}
    staged = await staged_tree(tmp_path, content)
    files = FaultyFiles()
    files.fail(errno.EIO, on="sync_filesystem")
    receiver = TreeReceiver(tmp_path / "head", files=files, threads=threads)
    value = await send_tree(Wire(receiver.handle).call, staged, threads=threads)
    assert read_tree(Path(value["path"])) == content
    assert [each.kind for each in files.log].count("sync_data") == 100
    await receiver.aclose()


def _trusted(path: Path) -> bool:
    files = FaultyFiles()
    fd = os.open(path, os.O_RDONLY)
    try:
        return files.sync_filesystem(fd)
    finally:
        os.close(fd)


async def test_a_big_file_is_synced_as_it_comes(tmp_path, threads, monkeypatch):
    monkeypatch.setattr(arrival, "_SYNC_BYTES", 4 * CHUNK)
    files = FaultyFiles()
    receiver = TreeReceiver(tmp_path / "head", files=files, threads=threads)
    staged = await staged_tree(tmp_path, {"big": bytes(16 * CHUNK)})
    await send_tree(Wire(receiver.handle).call, staged, threads=threads, chunk_bytes=CHUNK)
    assert [each.kind for each in files.log].count("sync_data") == 4
    await receiver.aclose()


class HeldSyncs(FaultyFiles):
    """Those of files wait until they may go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.may_go = threading.Event()

    def sync_data(self, fd: int) -> None:
        self.begun.release()
        assert self.may_go.wait(10)
        super().sync_data(fd)


@pytest.fixture
async def syncing(tmp_path, threads, monkeypatch):
    """What a receiver has of a checkpoint is being synced: its disk, itself, and the call that brought it."""
    monkeypatch.setattr(arrival, "_SYNC_BYTES", 1)
    files = HeldSyncs()
    receiver = TreeReceiver(tmp_path / "head", files=files, threads=threads)
    await receiver.handle("home.offer", announcing(offer_of("f")))
    taking = asyncio.create_task(receiver.handle("home.chunks", chunks(piece(b"x"))))
    assert await asyncio.to_thread(files.begun.acquire, timeout=10)
    yield files, receiver, taking
    files.may_go.set()
    await receiver.aclose()
    assert not open_below(tmp_path)


@pytest.mark.parametrize("given_up", [False, True], ids=["waited-for", "given-up"])
@pytest.mark.parametrize("fails", [False, True], ids=["synced", "lost"])
async def test_a_finish_waits_for_what_is_being_synced(syncing, given_up, fails):
    files, receiver, taking = syncing
    if fails:
        files.fail(errno.EIO, on="sync_data")
    if given_up:
        taking.cancel()
    finishing = asyncio.create_task(receiver.handle("home.finish", {"id": "x"}))
    await quiet()
    assert not finishing.done()
    assert not files.begun.acquire(blocking=False)
    files.may_go.set()
    taken = (await asyncio.gather(taking, return_exceptions=True))[0]
    assert isinstance(taken, asyncio.CancelledError if given_up else StorageError if fails else dict)
    if fails:
        with pytest.raises(StorageError, match="1 files are not complete"):
            await finishing
        await receiver.handle("home.chunks", chunks(piece(b"x")))
        finishing = asyncio.create_task(receiver.handle("home.finish", {"id": "x"}))
    assert read_tree(Path((await finishing)["path"])) == {"f": b"x"}


async def test_a_close_waits_for_what_is_being_synced(tmp_path, syncing):
    files, receiver, taking = syncing
    closing = asyncio.create_task(receiver.aclose())
    await quiet()
    assert not closing.done()
    files.may_go.set()
    await closing
    assert not left_in(tmp_path / "head")
    await taking


# -- in an experiment --------------------------------------------------------------------------------------


async def test_an_adopted_one_is_the_next_ones_source(tmp_path, threads):
    async with Room(tmp_path / "exp") as room:
        receiver = TreeReceiver(tmp_path / "exp/t", files=CountingFiles(), threads=threads)
        wire = Wire(receiver.handle)
        for _ in range(3):
            staged = await staged_tree(tmp_path, CONTENT)
            value = await send_tree(wire.call, staged, threads=threads)
            await room.catalog.adopt("t", StagedCheckpoint.from_value(value), trial_name="t")
        assert wire.count("home.chunks") == 1
        assert room.steps() == [1, 2, 3]
        assert all(report.intact for report in await room.verify())
        await receiver.aclose()
        assert not left_in(tmp_path / "exp/t")
