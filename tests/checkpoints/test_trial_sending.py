from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.trial_receiving import FileReceiver
from asynctune.checkpoints.trial_sending import FileSender
from asynctune.errors import ConfigError, StorageError
from asynctune.testing import FaultyFiles, ManualClock
from tests.checkpoints.fakes import CountingFiles, read_tree
from tests.checkpoints.travel import Wire, cancelled_after, left_in, open_below, write_tree

CHUNK = 4096


class Ends:
    """A trial's directory on a node, and the head's."""

    def __init__(self, root: Path) -> None:
        self.threads = DiskThreads()
        self.node = write_tree(root / "node", {})
        self.head = root / "head"
        self.receiver = FileReceiver(self.head, threads=self.threads)
        self.wire = Wire(self.handle)
        self.clock = ManualClock()
        self.sender = self.another_sender()

    async def handle(self, op: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self.receiver.handle(op, arguments)

    def another_sender(self) -> FileSender:
        # a clock of long ago: no file has changed just now
        return FileSender(
            self.node, threads=self.threads, clock=self.clock, chunk_bytes=CHUNK, window_bytes=3 * CHUNK
        )

    async def send(self) -> int:
        self.wire.mended()
        return await self.sender.send_changed(self.wire.call)

    def append(self, name: str, data: bytes) -> None:
        with (self.node / name).open("ab") as file:
            file.write(data)

    async def aclose(self) -> None:
        await self.receiver.aclose()
        self.threads.close()


@pytest.fixture
async def ends(tmp_path):
    made = Ends(tmp_path)
    yield made
    await made.aclose()


async def test_what_is_the_trials_own_arrives(ends, tmp_path):
    own = {
        "stdout": b"hello\n",
        "stderr": b"",
        "plots/loss.png": random.Random(1).randbytes(5 * CHUNK + 3),
        "exact": bytes(2 * CHUNK),
        "a/b/c/notes.txt": b"n",
    }
    stores = {
        "result.json": b"{}",
        "progress.csv": b"",
        ".staged-1/weights": b"w",
        "checkpoint_000001/weights": b"w",
        "a/.cache/x": b"x",
    }
    write_tree(ends.node, own | stores)
    (tmp_path / "secret").write_bytes(b"secret")
    (ends.node / "link").symlink_to(tmp_path / "secret")
    (ends.node / "linked").symlink_to(tmp_path)
    (ends.node / "plots/loss.png").chmod(0o755)
    os.mkfifo(ends.node / "pipe")
    assert await ends.send() == sum(map(len, own.values()))
    assert read_tree(ends.head) == own
    assert stat.S_IMODE((ends.head / "plots/loss.png").stat().st_mode) == 0o755
    assert await ends.send() == 0
    assert not ends.wire.calls
    await ends.receiver.aclose()
    assert not left_in(ends.head)


async def test_a_log_sends_its_tail_and_an_artifact_all_of_itself(ends):
    write_tree(ends.node, {"stdout": b"1" * 10_000, "table.csv": b"2" * 10_000, "model": b"3" * 10_000})
    await ends.send()
    ends.append("stdout", b"more")
    ends.append("table.csv", b"rows")
    (ends.node / "model").write_bytes(b"4" * 10_000)
    assert await ends.send() == 4 + 4 + 10_000
    (ends.node / "table.csv").write_bytes(b"5")
    (ends.node / "model").unlink()
    assert await ends.send() == 1
    assert read_tree(ends.head) == {
        "stdout": b"1" * 10_000 + b"more",
        "table.csv": b"5",
        "model": b"4" * 10_000,
    }


async def test_a_file_that_changed_just_now_is_looked_at_again(ends):
    await ends.clock.advance((ends.node.stat().st_mtime) - ends.clock.time())
    write_tree(ends.node, {"f": b"1"})
    modified = (ends.node / "f").stat()
    await ends.clock.advance(modified.st_mtime - ends.clock.time())
    await ends.send()
    (ends.node / "f").write_bytes(b"2")
    os.utime(ends.node / "f", ns=(modified.st_atime_ns, modified.st_mtime_ns))
    await ends.send()
    assert read_tree(ends.head) == {"f": b"2"}


async def test_what_another_run_printed_stays(ends):
    write_tree(ends.head, {"stdout": b"first run\n", "table.csv": b"1\n2\n", "model": b"old"})
    write_tree(ends.node, {"stdout": b"second\n", "table.csv": b"1\n2\n3\n", "model": b"new"})
    assert await ends.send() == 7 + 2 + 3
    ends.append("stdout", b"run\n")
    await ends.send()
    assert read_tree(ends.head) == {
        "stdout": b"first run\nsecond\nrun\n",
        "table.csv": b"1\n2\n3\n",
        "model": b"new",
    }
    (ends.node / "stdout").write_bytes(b"rotated\n")
    await ends.send()
    assert (ends.head / "stdout").read_bytes() == b"first run\nsecond\nrun\nrotated\n"


async def test_a_sender_that_knows_nothing_sends_nothing_again(ends):
    write_tree(ends.node, {"table.csv": b"1" * 10_000, "model": b"3" * 10_000, "d/none": b""})
    await ends.send()
    ends.append("table.csv", b"!")
    ends.sender = ends.another_sender()
    assert await ends.send() == 1
    assert read_tree(ends.head) == read_tree(ends.node)


async def test_who_else_writes_there_is_told_apart(ends):
    write_tree(ends.node, {"stdout": b"1111", "table.csv": b"2222"})
    await ends.send()
    write_tree(ends.head, {"stdout": b"1111 somebody", "table.csv": b"a mess"})
    ends.append("stdout", b"more")
    ends.append("table.csv", b"rows")
    await ends.send()
    assert read_tree(ends.head) == {"stdout": b"1111 somebodymore", "table.csv": b"2222rows"}
    (ends.head / "stdout").unlink()
    ends.append("stdout", b"!")
    await ends.send()
    assert (ends.head / "stdout").read_bytes() == b"1111more!"


async def test_a_file_that_shrinks_while_it_is_sent_is_no_error(ends):
    write_tree(ends.node, {"big": b"1" * (8 * CHUNK), "gone": b"2", "stdout": b"3" * 10})

    in_order = asyncio.Lock()

    async def shrinking(op, arguments):
        async with in_order:
            if op == "files.whole":
                await asyncio.to_thread(os.truncate, ends.node / "big", 2 * CHUNK)
                await asyncio.to_thread((ends.node / "gone").unlink, missing_ok=True)
            return await ends.receiver.handle(op, arguments)

    ends.wire.handle = shrinking
    await ends.send()
    arrived = (ends.head / "big").stat().st_size
    assert 2 * CHUNK <= arrived < 8 * CHUNK
    ends.wire.handle = ends.receiver.handle
    await ends.send()
    assert (ends.head / "big").read_bytes() == b"1" * (2 * CHUNK)
    assert (ends.head / "stdout").read_bytes() == b"3" * 10


async def test_a_log_that_grows_while_it_is_sent_follows(ends):
    write_tree(ends.node, {"stdout": b"1" * (4 * CHUNK)})

    async def growing(op, arguments):
        await asyncio.to_thread(ends.append, "stdout", b"2" * 100)
        return await ends.receiver.handle(op, arguments)

    ends.wire.handle = growing
    assert await ends.send() >= 4 * CHUNK
    ends.wire.handle = ends.receiver.handle
    await ends.send()
    assert read_tree(ends.head) == read_tree(ends.node)


@settings(max_examples=60)
@given(
    rounds=st.lists(
        st.tuples(
            st.lists(
                st.tuples(
                    st.sampled_from(["stdout", "table", "d/model"]),
                    st.booleans(),
                    st.binary(min_size=1, max_size=3).map(lambda data: data * 2000),
                ),
                max_size=3,
            ),
            st.integers(0, 6),
            st.booleans(),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    )
)
async def test_breaks_lose_and_double_nothing(rounds):
    root = Path(tempfile.mkdtemp(prefix="trial-sending-"))
    ends = Ends(root)
    (ends.node / "d").mkdir()
    try:
        for changes, break_at, answer_lost, new_receiver in rounds:
            for name, whole, data in changes:
                if whole and name != "stdout":
                    (ends.node / name).write_bytes(data)
                else:
                    ends.append(name, data)
            ends.wire.mended()
            ends.wire.break_at, ends.wire.answer_lost = break_at or None, answer_lost
            try:
                await ends.sender.send_changed(ends.wire.call)
            except ConnectionError:
                assert break_at
            if new_receiver:
                await ends.receiver.aclose()
                ends.receiver = FileReceiver(ends.head, threads=ends.threads)
        await ends.send()
        assert read_tree(ends.node) == (read_tree(ends.head) if ends.head.exists() else {})
        assert await ends.send() == 0
    finally:
        await ends.aclose()
        shutil.rmtree(root)


async def test_it_can_be_cancelled_anywhere(ends, tmp_path):
    write_tree(ends.node, {"stdout": b"1" * (2 * CHUNK), "model": b"2" * (3 * CHUNK)})
    for steps in range(10_000):
        ends.sender = ends.another_sender()
        done = await cancelled_after(steps, ends.send())
        assert asyncio.all_tasks() == {asyncio.current_task()}
        if isinstance(done, int):
            break
        assert isinstance(done, asyncio.CancelledError)
    else:
        pytest.fail("it never ended")
    await ends.send()
    assert (ends.head / "model").read_bytes() == b"2" * (3 * CHUNK)
    await ends.receiver.aclose()
    assert not open_below(tmp_path)
    assert not left_in(ends.head)


async def test_a_disk_that_fails_is_gone_on_from(ends):
    write_tree(ends.node, {"stdout": b"1" * (2 * CHUNK), "d/model": b"2" * (3 * CHUNK), "small": b"3"})
    number, worked = 0, False
    while not worked:
        number += 1
        await ends.receiver.aclose()
        shutil.rmtree(ends.head, ignore_errors=True)
        files = CountingFiles(fail_at=number)
        ends.receiver, ends.sender = (
            FileReceiver(ends.head, files=files, threads=ends.threads),
            ends.another_sender(),
        )
        try:
            await ends.send()
            worked = len(files.calls) < number
        except StorageError as error:
            assert "cannot take a trial's files from its node" in str(error)  # noqa: PT017
            await ends.send()
        assert read_tree(ends.head) == read_tree(ends.node) | read_tree(ends.head / "nothing")
    assert number > 15


async def test_a_start_that_prints_the_same_as_the_one_before_is_there_too(ends):
    write_tree(ends.head, {"stdout": b"hello\n", "stderr": b""})
    write_tree(ends.node, {"stdout": b"hello\n", "stderr": b"hello\n"})
    await ends.send()
    assert read_tree(ends.head) == {"stdout": b"hello\nhello\n", "stderr": b"hello\n"}
    ends.append("stdout", b"more\n")
    await ends.send()
    assert (ends.head / "stdout").read_bytes() == b"hello\nhello\nmore\n"


async def test_names_that_no_other_system_has_stay_here(ends, caplog):
    write_tree(ends.node, {"fine": b"1"})
    (Path(os.fsdecode(os.fsencode(ends.node) + b"/bad\xff"))).write_bytes(b"2")
    for _ in range(2):
        await ends.send()
    assert read_tree(ends.head) == {"fine": b"1"}
    assert caplog.text.count("stays on this node") == 1


async def test_a_file_that_cannot_be_read_holds_up_no_other(ends, caplog):
    write_tree(ends.node, {"a-secret": b"1", "stdout": b"2"})
    files = FaultyFiles()
    ends.sender = FileSender(ends.node, files=files, threads=ends.threads, clock=ends.clock)
    for _ in range(2):
        files.fail(errno.EACCES, on="open_read")  # the first by name
        await ends.send()
    assert read_tree(ends.head) == {"stdout": b"2"}
    assert caplog.text.count("stays on this node: [Errno 13]") == 1


async def test_what_follows_a_refused_piece_is_sent_again(ends):
    write_tree(ends.node, {"table.csv": b"1" * CHUNK})
    await ends.send()
    ends.append("table.csv", b"2" * CHUNK + b"3")
    looked = asyncio.Event()

    async def another_writes(op, arguments):
        answer = await ends.receiver.handle(op, arguments)
        if op == "files.look" and not looked.is_set():
            looked.set()
            await asyncio.to_thread((ends.head / "table.csv").write_bytes, b"?" * (2 * CHUNK))
        return answer

    ends.sender._sent["table.csv"] = replace(ends.sender._sent["table.csv"], sure=False)
    ends.wire.handle = another_writes
    await ends.send()
    assert looked.is_set()
    assert read_tree(ends.head) == read_tree(ends.node)


async def test_a_head_where_nothing_fits_is_an_error(ends):
    write_tree(ends.node, {"stdout": b"1"})
    await ends.send()
    ends.append("stdout", b"2")

    async def refusing(op, arguments):
        if op == "files.append":
            await asyncio.to_thread(write_tree, ends.head, {"stdout": b"?" * len(ends.wire.calls) * 100})
        return await ends.receiver.handle(op, arguments)

    ends.wire.handle = refusing
    with pytest.raises(StorageError, match="cannot be brought up to date") as caught:
        await ends.send()
    assert caught.value.retryable

    async def nonsense(op, arguments):
        return {"found": []}

    ends.wire.handle = nonsense
    with pytest.raises(ConfigError):
        await ends.another_sender().send_changed(ends.wire.call)


async def test_what_came_from_the_head_is_not_sent_before_it_changes_here(ends):
    """The driver's side may go on with a file there: an older copy here is none of its business."""
    for root in (ends.node, ends.head):
        write_tree(root, {"driver.csv": b"1\n", "diary": b"a" * (2 * CHUNK), "same": b"s"})
    await ends.sender.take_stock()
    write_tree(ends.head, {"driver.csv": b"1\n2\n"})
    assert await ends.send() == 0
    assert not ends.wire.calls
    ends.append("diary", b"b")
    assert await ends.send() == 1, "the tail, for the head has what is before"
    write_tree(ends.node, {"new": b"n"})
    assert await ends.send() == 1
    assert read_tree(ends.head) == {
        "driver.csv": b"1\n2\n",
        "diary": b"a" * (2 * CHUNK) + b"b",
        "same": b"s",
        "new": b"n",
    }


async def test_a_file_that_is_as_it_came_again_is_sent_again(ends):
    for root in (ends.node, ends.head):
        write_tree(root, {"f": b"old"})
    (ends.node / "f").rename(ends.node / ".kept")
    (ends.node / ".kept").rename(ends.node / "f")
    await ends.sender.take_stock()
    (ends.node / "f").rename(ends.node / ".kept")
    write_tree(ends.node, {"f": b"new"})
    assert await ends.send() == 3
    (ends.node / ".kept").replace(ends.node / "f")
    assert await ends.send() == 3
    assert read_tree(ends.head) == {"f": b"old"}


async def test_a_file_may_become_a_directory_and_a_directory_a_file(ends):
    write_tree(ends.node, {"a": b"1", "b/c/d": b"2", "b/e": b"3", "z": b"4"})
    await ends.send()
    (ends.node / "a").unlink()
    shutil.rmtree(ends.node / "b")
    now = {"a/x/y": b"5", "b": b"6", "z": b"77"}
    write_tree(ends.node, now)
    await ends.send()
    assert read_tree(ends.head) == now
    (ends.node / "b").unlink()
    write_tree(ends.node, {"b/c/d": b"8"})
    await ends.send()
    assert read_tree(ends.head) == {"a/x/y": b"5", "b/c/d": b"8", "z": b"77"}


async def test_what_the_head_cannot_take_holds_up_no_other(ends, tmp_path, caplog):
    (tmp_path / "elsewhere").mkdir()
    write_tree(ends.head, {})
    (ends.head / "data").symlink_to(tmp_path / "elsewhere")
    write_tree(ends.node, {"a": b"1", "data/x": b"2", "data/y": b"3" * (2 * CHUNK), "z": b"4"})
    await ends.send()
    assert {name: (ends.head / name).read_bytes() for name in ("a", "z")} == {"a": b"1", "z": b"4"}
    assert await ends.send() == 0
    assert caplog.text.count("data is no directory here") == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []
    ends.append("data/x", b"2")
    ends.append("z", b"4")
    await ends.send()
    assert (ends.head / "z").read_bytes() == b"44"
    assert caplog.text.count("data is no directory here") == 2, "once for each file"
