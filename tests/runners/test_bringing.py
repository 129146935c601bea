"""What a trial saves on a node that does not see the driver's disk: what is sent, taken back, and removed there."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.homecoming import TreeReceiver
from asynctune.checkpoints.lending import TreeSource
from asynctune.checkpoints.staging import StagedCheckpoint, stage_for_adoption
from asynctune.checkpoints.trial_receiving import FileReceiver
from asynctune.checkpoints.trial_walking import own_files
from asynctune.errors import ConfigError, StorageError
from asynctune.runners import bringing as bringing_module
from asynctune.runners.bringing import Bringing, Settings, bringing_of
from asynctune.runners.orders import packed_task
from asynctune.runners.told_errors import FullDiskError
from asynctune.trial import Checkpoint
from tests.runners.world import task


class Head:
    """The driver's end, in this process."""

    def __init__(self, trial_dir, checkpoint=None):
        self.threads = DiskThreads(2)
        self.receiver = TreeReceiver(trial_dir, threads=self.threads)
        self.files = FileReceiver(trial_dir, threads=self.threads)
        self.source = None if checkpoint is None else TreeSource(checkpoint, threads=self.threads)
        self.own = TreeSource(trial_dir, threads=self.threads, look=own_files)
        self.asked: list[str] = []
        self.errors: dict[str, list[Exception]] = {}
        self.blocks: str | None = None

    async def call(self, op, arguments):
        self.asked.append(op)
        if op == self.blocks:
            await asyncio.Event().wait()
        if self.errors.get(op):
            raise self.errors[op].pop(0)
        match op.partition(".")[0]:
            case "home":
                return await self.receiver.handle(op, arguments)
            case "files":
                return await self.files.handle(op, arguments)
            case "away":
                assert self.source is not None
                return await self.source.handle(op, arguments)
            case "own":
                return await self.own.handle(op.replace("own.", "away."), arguments)
        raise AssertionError(op)

    async def aclose(self):
        await self.receiver.aclose()
        await self.files.aclose()
        await self.own.aclose()
        if self.source is not None:
            await self.source.aclose()
        self.threads.close()


@pytest.fixture
async def make(tmp_path, monkeypatch):
    """Makes what brings of a trial, its head, and the worker's task."""
    monkeypatch.setattr(bringing_module, "_BETWEEN_S", 0.01)
    made = []

    async def make(*, checkpoint=None, copy=None, has_files=False, **settings):
        here = task(tmp_path)
        if checkpoint is not None:
            here = type(here)(
                trial_id=here.trial_id,
                trial_name=here.trial_name,
                trial_dir=here.trial_dir,
                config={},
                checkpoint=Checkpoint(path=checkpoint),
            )
        head = Head(here.trial_dir, checkpoint)
        bringing = Bringing(
            head.call,
            packed_task(here),
            Settings(**settings),
            copy=copy,
            is_shared=False,
            scratch=str(tmp_path / "node"),
            has_files=has_files,
        )
        made.append((head, bringing))
        return head, bringing, await bringing.task()

    yield make
    for head, bringing in made:
        await bringing.aclose()
        await bringing.aclose()
        await head.aclose()
    assert not (tmp_path / "node").exists()


async def stage(told, content="x"):
    """As the worker does."""
    directory = Path(told["trial_dir"]).parent / "made"
    directory.mkdir(exist_ok=True)
    Path(directory, "file").write_text(content, "ascii")
    made = await stage_for_adoption(directory, told["trial_dir"])
    return await asyncio.to_thread(made.to_value)


def at_home(tmp_path):
    return [path.name for path in (tmp_path / "t1").iterdir()]


async def test_one_is_sent_home_and_removed_when_it_was_taken(make, tmp_path):
    _, bringing, told = await make()
    staged = await stage(told, "content")
    sent = await bringing.offer(staged)
    at = StagedCheckpoint.from_value(sent).path
    assert Path(at).parent == tmp_path / "t1"
    assert Path(at, "file").read_text("ascii") == "content"
    assert Path(staged["path"]).exists()
    await bringing.taken(staged)
    assert not Path(staged["path"]).exists()


async def test_a_full_disk_at_home_is_waited_out(make, caplog):
    head, bringing, told = await make()
    head.errors["home.offer"] = [FullDiskError("full", retryable=True) for _ in range(20)]
    assert "path" in await bringing.offer(await stage(told))
    assert caplog.text.count("trial t1 waits for space: full") == 1


async def test_what_may_work_later_is_tried_again_and_not_for_ever(make, tmp_path):
    head, bringing, told = await make()
    head.errors["home.chunks"] = [StorageError("damaged", retryable=True) for _ in range(2)]
    assert "path" in await bringing.offer(await stage(told))
    head.errors["home.chunks"] = [StorageError("damaged", retryable=True) for _ in range(20)]
    with pytest.raises(StorageError, match="damaged"):
        await bringing.offer(await stage(told, "another"))
    head.errors["home.offer"] = [StorageError("refused")]
    with pytest.raises(StorageError, match="refused"):
        await bringing.offer(await stage(told, "third"))
    assert len(at_home(tmp_path)) == 1, "what had come of the others was given up"


async def test_the_checkpoint_to_go_on_from_is_brought(make, tmp_path):
    source = tmp_path / "restored"
    (source / "deep").mkdir(parents=True)
    Path(source, "deep", "file").write_text("x", "ascii")
    _, _, told = await make(checkpoint=source)
    assert Path(told["checkpoint"], "deep", "file").read_text("ascii") == "x"
    assert Path(told["checkpoint"]).is_relative_to(tmp_path / "node")
    assert Path(told["trial_dir"]) == tmp_path / "node" / "t1"


async def test_late_ones_wait_here(make, tmp_path):
    _, bringing, told = await make(sync_on_checkpoint=False)
    staged = [await stage(told, str(n)) for n in range(3)]
    offered = [await bringing.offer(each) for each in staged]
    for each in staged:
        await bringing.taken(each)
    assert [each["waits"] for each in offered] == [1, 2, 3]
    assert not offered[0]["bucket"]
    assert at_home(tmp_path) == []
    value = await bringing.bring("bring", {"waits": 2})
    assert Path(value["path"], "file").read_text("ascii") == "1"
    assert not Path(staged[1]["path"]).exists()
    with pytest.raises(ConfigError, match="no checkpoint 2 waits"):
        await bringing.bring("bring", {"waits": 2})
    await bringing.drop(1)
    await bringing.drop(1)
    assert not Path(staged[0]["path"]).exists()
    bringing.refused(staged[2])
    with pytest.raises(ConfigError, match="no checkpoint 3 waits"):
        await bringing.bring("bring", {"waits": 3})
    await bringing.offer(await stage(told))
    with pytest.raises(ConfigError, match="was given no bucket"):
        await bringing.bring("upload", {"waits": 4})


@pytest.mark.parametrize("blocks", ["home.offer", "home.chunks", "home.finish"])
async def test_one_that_is_dropped_on_its_way_is_taken_back(make, tmp_path, blocks):
    head, bringing, told = await make(sync_on_checkpoint=False)
    await bringing.offer(await stage(told))
    head.blocks = blocks
    moving = asyncio.create_task(bringing.bring("bring", {"waits": 1}))
    while blocks not in head.asked:  # noqa: ASYNC110 - no event
        await asyncio.sleep(0.01)
    await bringing.drop(1)
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert head.asked[-1] == "home.abandon"
    assert at_home(tmp_path) == []


async def test_one_that_has_come_and_is_not_wanted_is_taken_back(make, tmp_path):
    """Its commit was cancelled in the moment when it had come."""
    _, bringing, told = await make(sync_on_checkpoint=False)
    await bringing.offer(await stage(told))
    await bringing.bring("bring", {"waits": 1})
    assert len(at_home(tmp_path)) == 1
    await bringing.drop(1)
    assert at_home(tmp_path) == []
    await bringing.drop(1)


async def test_its_other_files_go_now_and_then_and_at_the_end(make, tmp_path, caplog):
    head, bringing, told = await make(sync_period_s=0.05)
    Path(told["trial_dir"], "log.txt").write_text("one\n", "ascii")
    while not Path(tmp_path, "t1", "log.txt").exists():  # noqa: ASYNC110 - no event
        await asyncio.sleep(0.01)
    head.errors["files.look"] = [OSError(errno.EIO, "broken"), ValueError("odd")]
    Path(told["trial_dir"], "log.txt").write_text("one\ntwo\n", "ascii")
    Path(told["trial_dir"], "new.txt").write_text("new", "ascii")
    while head.errors["files.look"]:  # noqa: ASYNC110 - no event
        await asyncio.sleep(0.01)
    await bringing.finish()
    assert Path(tmp_path, "t1", "log.txt").read_text("ascii") == "one\ntwo\n"
    assert Path(tmp_path, "t1", "new.txt").read_text("ascii") == "new"
    assert "files of trial t1 could not be sent" in caplog.text


async def test_files_of_earlier_starts_are_brought_and_sent_back_only_if_they_change(make, tmp_path):
    """Also two that are one name where case is folded; the driver's side may go on with one meanwhile."""
    (tmp_path / "t1").mkdir(exist_ok=True)
    for name in ("README", "readme", "driver.csv", "stdout"):
        Path(tmp_path, "t1", name).write_text(f"{name}\n", "ascii")
    head, bringing, told = await make(has_files=True)
    here = Path(told["trial_dir"])
    assert sorted(path.name for path in here.iterdir()) == ["README", "driver.csv", "readme"]
    Path(tmp_path, "t1", "driver.csv").write_text("driver.csv\nmore\n", "ascii")
    Path(here, "readme").write_text("changed", "ascii")
    await bringing.finish()
    assert [op for op in head.asked if op.startswith("files.")] == ["files.look", "files.whole"]
    assert Path(tmp_path, "t1", "driver.csv").read_text("ascii") == "driver.csv\nmore\n"
    assert Path(tmp_path, "t1", "readme").read_text("ascii") == "changed"


# -- which way -------------------------------------------------------------------------------------------------------


async def ways(tmp_path, *, marker, **settings):
    arguments = {"task": packed_task(task(tmp_path)), "copy": None, "marker": str(marker)}
    return await bringing_of(Head(tmp_path).call, arguments, Settings(**settings), str(tmp_path / "agent"))


async def test_a_node_that_sees_the_marker_writes_where_the_driver_does(tmp_path):
    (tmp_path / "marker").touch()
    bringing = await ways(tmp_path, marker=tmp_path / "marker", must_be_shared=True)
    assert bringing.is_shared
    assert bringing.is_allowed
    told = await bringing.task()
    assert told["trial_dir"] == str(tmp_path / "t1")
    staged = await stage(told)
    assert await bringing.offer(staged) == staged
    await bringing.taken(staged)
    assert Path(staged["path"]).exists(), "it is the driver's now"
    await bringing.finish()
    await bringing.aclose()
    assert not (tmp_path / "agent").exists()


async def test_a_filesystem_may_be_late_to_show_the_marker(tmp_path, monkeypatch):
    monkeypatch.setattr(bringing_module, "_LOOK_AGAIN_S", 0.02)
    asyncio.get_running_loop().call_later(0.1, (tmp_path / "marker").touch)
    assert (await ways(tmp_path, marker=tmp_path / "marker", must_be_shared=True)).is_shared


async def test_one_that_does_not_see_it_may_have_to(tmp_path, monkeypatch):
    monkeypatch.setattr(bringing_module, "_PATIENCE_S", 0.1)
    bringing = await ways(tmp_path, marker=tmp_path / "marker", must_be_shared=True)
    assert not bringing.is_allowed
    bringing = await ways(tmp_path, marker=tmp_path / "marker")
    assert bringing.is_allowed
    assert not bringing.is_shared


def test_settings_travel_and_show_no_credentials():
    settings = Settings(storage_options={"secret": "hunter2"}, sync_period_s=3.0)
    assert Settings.of(settings.to_value()) == settings
    assert "hunter2" not in f"{settings!r} {settings}"
