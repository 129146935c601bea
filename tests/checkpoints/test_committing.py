"""From a filled stage to a record: what fails before the record leaves nothing, what fails after it no doubt."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from asynctune.checkpoints.committing import MAX_COPIES, Wanted
from asynctune.checkpoints.stage import Stage
from asynctune.config import CheckpointConfig
from asynctune.errors import CheckpointExistsError, ConfigError, StorageError
from asynctune.files import LocalFiles
from tests.checkpoints.fakes import TREE, Room, disk_full, read_tree, tree


class Watched(LocalFiles):
    """Calls back, in the thread, before a directory gets its place."""

    def __init__(self) -> None:
        self.placing: Callable[[], object] = lambda: None
        self.refuses_to_remove = ""

    def rename(self, source: str, target: str) -> None:
        if os.path.basename(target).startswith("checkpoint_"):
            self.placing()
        super().rename(source, target)

    def remove_tree(self, path: str) -> None:
        if path == self.refuses_to_remove:
            raise PermissionError(13, "not yours", path)
        super().remove_tree(path)


@pytest.fixture
def files():
    return Watched()


@pytest.fixture
async def room(tmp_path, files):
    async with Room(tmp_path / "exp", files=files) as made:
        yield made


def wanted(trial_id: str = "t", **options) -> Wanted:
    chosen: dict[str, Any] = {
        "attempt": 3,
        "plain": True,
        "metrics": {"acc": 0.5},
        "timeline": None,
    } | options
    return Wanted.of(trial_id, trial_id, **chosen)


async def staged(room: Room) -> Stage:
    source = tree(room.path.parent / "source")
    return await room.catalog._staging.of_directory(str(source), move=False)


# -- what is wanted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/", "a\0b"], ids=repr)
def test_a_name_that_is_no_directorys_is_refused(name):
    with pytest.raises(ConfigError, match="trial_name"):
        Wanted.of("t", name, attempt=0, plain=True, metrics=None, timeline=None)


@pytest.mark.parametrize("attempt", [-1, 1.0, "1", None, True], ids=repr)
def test_an_attempt_that_is_no_number_is_refused(attempt):
    with pytest.raises(ConfigError, match="attempt"):
        wanted(attempt=attempt)


@pytest.mark.parametrize("metrics", [[("acc", 1)], "acc", 7, {"acc": print}], ids=str)
def test_metrics_that_cannot_be_stored_are_refused(metrics):
    with pytest.raises(ConfigError, match="metrics"):
        wanted(metrics=metrics)


def test_what_the_caller_changes_later_changes_nothing():
    metrics, timeline = {"eval": {"acc": [1]}}, {"rows": [1]}
    taken = wanted(metrics=metrics, timeline=timeline)
    metrics["eval"]["acc"].append(2)
    timeline["rows"].append(2)
    assert taken.metrics == {"eval": {"acc": [1]}}
    assert taken.timeline == {"rows": [1]}
    assert wanted(metrics=None).metrics == {}


# -- a commit ----------------------------------------------------------------------------------------------


async def test_a_commit_is_recorded_durably_and_told(room):
    committed = await room.catalog._committer.commit(wanted(), 7, await staged(room))
    assert committed.path == room.path / "t/checkpoint_000007"
    assert read_tree(committed.path) == TREE
    assert room.sink.crashed().steps("t") == [7]
    record = room.catalog._context.records.get("t", 7)
    assert (record.directory, record.epoch, record.attempt) == ("t/checkpoint_000007", 1, 3)
    assert record.metrics == {"acc": 0.5}
    [report] = await room.verify()
    assert report.intact
    [event] = room.events.of("checkpoint_saved")
    assert (event["trial_id"], event["step"], event["how"], event["files"]) == ("t", 7, "copy", len(TREE))
    assert event["path"] == str(committed.path)
    assert event["size_bytes"] == sum(map(len, TREE.values()))
    assert not room.leftovers()


async def test_the_plain_name_is_used_where_it_is_wanted_and_free(room):
    commit = room.catalog._committer.commit
    (room.path / "t/checkpoint_000002").mkdir(parents=True)
    await commit(wanted(), 1, await staged(room))
    await commit(wanted(), 2, await staged(room))
    await commit(wanted(plain=False), 3, await staged(room))
    assert room.directories() == [
        "checkpoint_000001",
        "checkpoint_000002",
        "checkpoint_000002-1.3",
        "checkpoint_000003-1.3",
    ]
    assert not list((room.path / "t/checkpoint_000002").iterdir())


async def test_both_names_are_known_while_a_directory_has_no_record(room, files):
    committer, seen = room.catalog._committer, []
    files.placing = lambda: seen.append(set(committer.being_placed))
    await committer.commit(wanted(), 1, await staged(room))
    assert seen == [{"t/checkpoint_000001", "t/checkpoint_000001-1.3"}]
    assert committer.being_placed == set()


async def test_what_it_replaces_is_retired_in_the_same_commit(tmp_path):
    async with Room(tmp_path / "exp", config=CheckpointConfig(num_to_keep=1), deleting=False) as room:
        for step in (1, 2):
            await room.catalog._committer.commit(wanted(), step, await staged(room))
        found = Room(tmp_path / "exp", sink=room.sink.crashed()).catalog._context.records
        assert [(record.step, record.deleting) for record in found.all("t")] == [(1, True), (2, False)]
        assert room.sink.commits == 2


# -- failures ----------------------------------------------------------------------------------------------


async def test_without_a_record_nothing_stays(room):
    stage = await staged(room)
    room.sink.put_error = disk_full()
    with pytest.raises(StorageError):
        await room.catalog._committer.commit(wanted(), 1, stage)
    assert room.directories() == []
    assert not room.leftovers()
    assert not room.events.of("checkpoint_saved")
    assert not room.catalog._committer.being_placed


async def test_without_a_place_nothing_stays(room, files):
    stage = await staged(room)

    def fail() -> None:
        raise OSError(5, "broken")

    files.placing = fail
    with pytest.raises(OSError, match="broken"):
        await room.catalog._committer.commit(wanted(), 1, stage)
    assert (room.directories(), room.steps(), room.leftovers()) == ([], [], [])
    assert not room.catalog._committer.being_placed


async def test_a_commit_in_doubt_keeps_the_files(room):
    # The record may be on the disk or not: its files must be there if it is.
    stage = await staged(room)
    stage.source = str(tree(room.path.parent / "given"))
    room.sink.commit_error = disk_full()
    with pytest.raises(StorageError):
        await room.catalog._committer.commit(wanted(), 1, stage)
    assert room.directories() == ["checkpoint_000001"]
    assert read_tree(room.path.parent / "given") == TREE
    assert not room.events.of("checkpoint_saved")


async def test_cancelled_before_the_record_nothing_stays(room, files):
    stage, loop = await staged(room), asyncio.get_running_loop()
    reached, go_on = asyncio.Event(), threading.Event()

    def hold() -> None:
        loop.call_soon_threadsafe(reached.set)
        go_on.wait()

    files.placing = hold
    task = asyncio.create_task(room.catalog._committer.commit(wanted(), 1, stage))
    await reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (room.directories(), room.steps(), room.leftovers()) == ([], [], [])
    assert not room.catalog._committer.being_placed


async def test_cancelled_after_the_record_it_stands(room):
    stage = await staged(room)
    room.sink.gate.clear()
    task = asyncio.create_task(room.catalog._committer.commit(wanted(), 1, stage))
    await room.sink.asked.acquire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    room.sink.gate.set()
    assert room.steps() == [1]
    [report] = await room.verify()
    assert report.intact


# -- a source that was given away --------------------------------------------------------------------------


async def test_a_copied_source_goes_only_when_the_record_is_durable(room):
    stage, given = await staged(room), tree(room.path.parent / "given")
    stage.source = str(given)
    room.sink.gate.clear()
    task = asyncio.create_task(room.catalog._committer.commit(wanted(), 1, stage))
    await room.sink.asked.acquire()
    assert read_tree(given) == TREE
    room.sink.gate.set()
    await task
    assert not given.exists()


async def test_a_source_that_cannot_be_removed_does_not_undo_the_commit(room, files, caplog):
    stage, given = await staged(room), tree(room.path.parent / "given")
    stage.source = files.refuses_to_remove = str(given)
    with caplog.at_level(logging.WARNING, "asynctune"):
        await room.catalog._committer.commit(wanted(), 1, stage)
    assert str(given) in caplog.text
    assert room.sink.crashed().steps("t") == [1]
    assert room.events.of("checkpoint_saved")


# -- turns -------------------------------------------------------------------------------------------------


async def test_a_step_is_promised_before_its_turn(room):
    committer = room.catalog._committer
    async with committer.turn(wanted(), None) as first:
        assert first == 1
        with pytest.raises(CheckpointExistsError, match="is being saved"):
            await committer.turn(wanted(), 1).__aenter__()
        second = committer.turn(wanted(), None)
        waiting = asyncio.ensure_future(second.__aenter__())
        await asyncio.sleep(0)
        assert not waiting.done()
        async with committer.turn(wanted("other"), 5, at_least=9) as other:
            assert other == 5
    assert await waiting == 2
    await second.__aexit__(None, None, None)
    async with committer.turn(wanted(), None, at_least=40) as later:
        assert later == 40


@pytest.mark.parametrize("step", [-1, 1.0, "1", True, 10**12 + 1], ids=repr)
async def test_a_step_that_is_none_is_refused_and_promises_nothing(room, step):
    with pytest.raises(ConfigError, match="step must be"):
        await room.catalog._committer.turn(wanted(), step).__aenter__()
    async with room.catalog._committer.turn(wanted(), None) as turn:
        assert turn == 1


async def test_only_so_many_trials_copy_at_once(room):
    committer = room.catalog._committer
    async with contextlib.AsyncExitStack() as held:
        for number in range(MAX_COPIES):
            await held.enter_async_context(committer.turn(wanted(f"t{number}"), None))
        assert committer.slots.locked()
        last = committer.turn(wanted("last"), None)
        waiting = asyncio.ensure_future(last.__aenter__())
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting == 1
    await last.__aexit__(None, None, None)
    assert not committer.slots.locked()
