"""Each command on the copy of an experiment: in a bucket, and in a directory that is one."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asynctune import Checkpoint, CheckpointConfig, ExperimentStore, SyncConfig, TrialStatus
from asynctune.errors import AuthenticationError, StorageError, UploadError
from asynctune.inspect.answers import answer_summary
from asynctune.inspect.directory import list_experiments
from asynctune.inspect.reading import Query, experiment, follow_trials
from asynctune.inspect.report import Presence, TrialsReport
from asynctune.inspect.verifying import verify
from asynctune.state.codec import decode_frame
from asynctune.state.mirror.current import CURRENT_KEY
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.uri import open_storage
from asynctune.testing import FaultyStorage, ManualClock
from asynctune.testing.storage_faults import StorageCall
from tests.inspect_cli.stores import ask, build, build_here, show, tree


@pytest.fixture(params=["bucket", "directory"])
def upload_dir(request, tmp_path, bucket):
    if request.param == "bucket":
        return bucket
    (tmp_path / "copies").mkdir()
    return str(tmp_path / "copies")


@pytest.fixture
def made(tmp_path, upload_dir):
    """Where the copy is, and the ids of the trials; the experiment itself is lost."""
    ids = build(tmp_path / "digits", upload_dir)
    shutil.rmtree(tmp_path / "digits")
    return f"{upload_dir}/digits", ids


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")


class Faults:
    """Every storage that is opened, with faults in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[FaultyStorage] = []
        self.no_checkpoints = False
        self.on_read: list[Callable[[StorageCall], Awaitable[None] | None]] = []
        monkeypatch.setattr("asynctune.store.access.open_storage", self._open)

    async def _open(self, location: Any, options: Any = None) -> FaultyStorage:
        storage = FaultyStorage(await open_storage(location, options))
        storage.call(self._refuse, on="put", lasting=True)
        for each in self.on_read:
            storage.call(each, on="read", lasting=True)
        self.opened.append(storage)
        return storage

    def _refuse(self, call: StorageCall) -> None:
        if self.no_checkpoints and "/checkpoint_" in call.key:
            raise StorageError("the bucket takes no checkpoint")


@pytest.fixture
def faults(monkeypatch):
    return Faults(monkeypatch)


# -- what is said ----------------------------------------------------------------------------------------------


def test_a_summary_is_told_from_the_copy_alone(made, capsys):
    location, ids = made
    code, text, errors = show(capsys, location)
    assert (code, errors) == (0, "")
    what = "" if "://" in location else ", a copy"
    assert f"location    {location}{what}\n" in text
    assert "last change just now" in text
    assert f"the last, pid {os.getpid()} on " in text
    assert "closed just now; 1 RUNNING trial has no live driver" in text
    assert "trials      5: 1 PENDING, 1 RUNNING, 2 TERMINATED, 1 ERROR" in text
    assert ids[0] in text
    code, document = ask(capsys, location)
    assert (code, document["problems"]) == (0, [])
    head = document["experiment"]
    assert (head["location"], head["copy_uri"], head["from_copy"]) == (location, location, True)
    assert (head["name"], head["writer"]["state"], head["metadata"]) == (
        "digits",
        "closed",
        {"note": "first try"},
    )
    assert [trial["checkpoint_presence"] for trial in document["trials"]] == ["in_bucket"] * 2 + [None] * 3


def test_the_last_change_is_that_of_current(made, capsys):
    location, _ = made

    async def changed() -> float:
        storage = await open_storage(location)
        info = await storage.head(CURRENT_KEY)
        await storage.aclose()
        assert info is not None
        return info.modified_at

    _, document = ask(capsys, location, "trials")
    assert document["experiment"]["last_change_at"] == asyncio.run(changed())


def test_checkpoints_are_where_the_records_say(made, capsys):
    location, ids = made
    code, document = ask(capsys, location, "checkpoints", ids[1])
    assert code == 0
    assert [(each["presence"], each["path"], each["uri"]) for each in document["checkpoints"]] == [
        ("in_bucket", None, f"{location}/{ids[1]}/checkpoint_00000{step}") for step in (1, 2)
    ]
    code, text, _ = show(capsys, location, "checkpoints")
    assert code == 0
    assert text.count("in the bucket") == 4
    assert f"{location}/{ids[0]}/checkpoint_000001" in text
    code, text, _ = show(capsys, location, "trial", ids[0])
    assert code == 0
    assert f"directory   {location}/{ids[0]}\n" in text
    assert text.count("in the bucket") == 2
    code, text, _ = show(capsys, location, "best", "--metric", "loss", "--mode", "min")
    assert code == 0
    assert "best        loss = 0.2500" in text
    assert text.count("in the bucket") == 2


def test_an_experiment_says_where_its_copy_is(tmp_path, upload_dir, capsys):
    ids = build(tmp_path / "digits", upload_dir)
    code, text, _ = show(capsys, tmp_path / "digits")
    assert code == 0
    assert f"location    {tmp_path}/digits\n" in text
    assert f"copy        {upload_dir}/digits\n" in text
    _, document = ask(capsys, tmp_path / "digits")
    assert document["experiment"]["from_copy"] is False
    assert document["experiment"]["copy_uri"] == f"{upload_dir}/digits"
    code, text, _ = show(capsys, tmp_path / "digits", "checkpoints")
    assert code == 0
    assert text.splitlines()[1].split()[:4] == [ids[0], "1", "ok", "yes"]
    # one that only the bucket has is no problem
    shutil.rmtree(tmp_path / "digits" / ids[0] / "checkpoint_000002")
    code, document = ask(capsys, tmp_path / "digits", "checkpoints", ids[0])
    assert (code, [each["presence"] for each in document["checkpoints"]]) == (0, ["present", "elsewhere"])
    assert document["checkpoints"][1]["uri"] == f"{upload_dir}/digits/{ids[0]}/checkpoint_000002"
    code, document = ask(capsys, tmp_path / "digits", "verify")
    assert (code, document["intact"], document["checkpoints"]) == (0, True, 3)
    (note,) = document["notes"]
    assert f"checkpoint 2 of trial {ids[0]} is not on this disk" in note
    assert f"{upload_dir}/digits" in note


def test_a_note_of_the_copy_that_cannot_be_read_is_found(tmp_path, upload_dir, capsys):
    build(tmp_path / "digits", upload_dir)
    note = tmp_path / "digits" / ".asynctune" / "MIRROR"
    note.write_text("{")
    assert ask(capsys, tmp_path / "digits")[0] == 0
    code, document = ask(capsys, tmp_path / "digits", "verify")
    assert (code, document["intact"]) == (1, False)
    assert str(note) in document["problems"][0]["message"]


def test_looking_changes_nothing(tmp_path, capsys):
    (tmp_path / "copies").mkdir()
    build(tmp_path / "digits", str(tmp_path / "copies"))
    before = tree(tmp_path)
    for command in ("summary", "trials", "checkpoints", "verify", "gc"):
        assert ask(capsys, tmp_path / "copies" / "digits", command)[0] == 0
    assert tree(tmp_path) == before


# -- a driver at work ------------------------------------------------------------------------------------------


async def test_what_a_driver_has_not_brought_yet_is_no_problem(tmp_path, bucket, faults, monkeypatch):
    faults.no_checkpoints = True
    location = f"{bucket}/digits"

    async def look() -> tuple[str, list[Presence], list[str]]:
        async with experiment(location) as opened:
            report, summary = await opened.checkpoints(None, 0), await opened.trials(Query())
        assert [each.kind for each in summary.problems] == [each.kind for each in report.problems]
        entries = [entry.presence for entry in report.entries]
        return report.head.writer.state, entries, [problem.message for problem in report.problems]

    store = await ExperimentStore.open(tmp_path / "digits", sync_config=SyncConfig(upload_dir=bucket))
    try:
        store.add_trial({}, "t")
        store.set_status("t", TrialStatus.RUNNING)
        events = store.events()
        await store.save_checkpoint("t", Checkpoint.from_dict({"x": 1}))
        seq = await store.flush()
        async for event in events:
            if event.kind == "mirrored" and (event.seq or 0) >= seq:
                break
        assert await look() == ("live", ["pending"], [])
        verified = await verify(location)
        assert (verified.checkpoints, verified.problems) == (0, ())
        assert verified.notes == ("1 checkpoint is not in the bucket yet",)
        with monkeypatch.context() as patch:
            patch.setattr("asynctune.state.epochs.socket.gethostname", lambda: "elsewhere")
            assert await look() == ("unknown", ["pending"], [])
    finally:
        with pytest.raises(UploadError):
            await store.aclose()
    state, entries, (message,) = await look()
    assert (state, entries) == ("closed", ["missing"])
    assert "checkpoint 1 of trial t is not in the bucket" in message
    assert f"its files are on {store.opening.hostname}, if anywhere" in message
    verified = await verify(location)
    assert [problem.kind for problem in verified.problems] == ["missing_checkpoint"]


async def test_following_shows_what_reaches_the_bucket(tmp_path, bucket):
    clock = ManualClock()
    async with ExperimentStore.open(tmp_path / "digits", sync_config=SyncConfig(upload_dir=bucket)) as store:
        trial_id = store.add_trial({}).trial_id
        store.set_status(trial_id, TrialStatus.RUNNING)
        await store.flush(mirror=True)
        reports = follow_trials(f"{bucket}/digits", Query(), 1.0, clock)
        report = await anext(reports)
        assert report.head.writer.state == "live"
        assert [row.trial.num_results for row in report.rows] == [0]
        for count in (1, 2):
            store.report(trial_id, {"loss": 1 / count})
            await store.flush(mirror=True)
            following = asyncio.create_task(anext(reports))
            await clock.advance(1.0)
            report = await following
            assert [row.trial.num_results for row in report.rows] == [count]
        await reports.aclose()


async def test_ten_thousand_trials_are_a_handful_of_requests(tmp_path, bucket, faults):
    async with ExperimentStore.open(tmp_path / "digits", sync_config=SyncConfig(upload_dir=bucket)) as store:
        for number in range(10_000):
            store.add_trial({"lr": number})
            if number % 1000 == 0:
                await asyncio.sleep(0)
        await store.flush(mirror=True)
        faults.opened.clear()
        _, report, _ = await answer_summary(f"{bucket}/digits", Query(limit=20))
        assert isinstance(report, TrialsReport)
        assert report.head.trials_total == 10_000
        (storage,) = faults.opened
        assert {call.operation for call in storage.log} <= {"read", "list_objects"}
        assert len(storage.log) <= 5
        assert not any("/checkpoint_" in call.key for call in storage.log)


async def test_a_look_for_checkpoints_asks_for_none_of_them(tmp_path, bucket, faults):
    await build_here(tmp_path / "digits", bucket)
    faults.opened.clear()
    async with experiment(f"{bucket}/digits") as opened:
        checkpoints, best = await opened.checkpoints(None, 0), await opened.best("loss", "min", 5)
    assert (len(checkpoints.entries), len(best.checkpoints)) == (4, 2)
    asked = [call.key for storage in faults.opened for call in storage.log]
    assert len(asked) <= 5
    assert not any("/checkpoint_" in key for key in asked)


# -- is it intact ----------------------------------------------------------------------------------------------


def test_an_intact_copy_is_said_to_be(made, capsys, monkeypatch, tmp_path):
    location, _ = made
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    code, document = ask(capsys, location, "verify")
    assert (code, document["intact"], document["problems"], document["notes"]) == (0, True, [], [])
    assert (document["checkpoints"], document["files"], document["checkpoint_bytes"]) == (4, 8, 4 * 3005)
    assert document["frames"] > 2
    assert document["location"] == location
    assert list((tmp_path / "scratch").iterdir()) == []
    code, text, errors = show(capsys, location, "verify")
    assert (code, errors) == (0, "")
    assert "intact: everything matches its checksums" in text


def test_the_state_is_counted_as_it_is_in_the_bucket(tmp_path, capsys):
    (tmp_path / "copies").mkdir()
    build(tmp_path / "digits", str(tmp_path / "copies"))
    _, document = ask(capsys, tmp_path / "copies" / "digits", "verify")
    objects = [
        each.read_bytes()
        for each in (tmp_path / "copies" / "digits" / ".asynctune").iterdir()
        if each.name.startswith(("CURRENT", "seg-", "snap-"))
    ]
    frames = 0
    for data in objects:
        end = 0
        while end < len(data):
            end = decode_frame(data, end).end
            frames += 1
    assert (document["frames"], document["snapshots"]) == (frames, 0)
    assert document["state_bytes"] == sum(map(len, objects))


@pytest.mark.parametrize("kind", ["flipped", "gone", "manifest", "no manifest"])
def test_a_damaged_checkpoint_in_the_bucket_is_named(tmp_path, capsys, kind):
    (tmp_path / "copies").mkdir()
    ids = build(tmp_path / "digits", str(tmp_path / "copies"))
    location = tmp_path / "copies" / "digits"
    checkpoint = location / ids[0] / "checkpoint_000001"
    if kind == "gone":
        (checkpoint / "sub" / "note.txt").unlink()
    elif kind == "no manifest":
        (checkpoint / ".manifest.json").unlink()
    else:
        path = checkpoint / ("weights.bin" if kind == "flipped" else ".manifest.json")
        data = bytearray(path.read_bytes())
        data[10] ^= 0x10
        path.write_bytes(data)
    code, document = ask(capsys, location, "verify")
    assert (code, document["intact"], document["checkpoints"]) == (1, False, 4)
    (problem,) = document["problems"]
    assert (problem["kind"], problem["trial_id"], problem["step"]) == ("damaged_checkpoint", ids[0], 1)
    assert str(checkpoint) in problem["message"]
    assert ask(capsys, location, "checkpoints")[0] == 0  # nobody looked


@pytest.mark.parametrize("command", ["summary", "verify"])
def test_a_damaged_state_is_a_problem(tmp_path, capsys, command):
    (tmp_path / "copies").mkdir()
    build(tmp_path / "digits", str(tmp_path / "copies"))
    location = tmp_path / "copies" / "digits"
    current = location / ".asynctune" / "CURRENT"
    data = bytearray(current.read_bytes())
    data[len(data) // 2] ^= 0x10
    current.write_bytes(data)
    code, document = ask(capsys, location, command)
    assert code == 1
    if command == "summary":
        assert document["error"]["type"] == "CorruptStateError"
        message = document["error"]["message"]
    else:
        assert (document["intact"], document["experiment"], document["location"]) == (
            False,
            None,
            str(location),
        )
        message = document["problems"][0]["message"]
    assert str(current) in message


async def test_a_bucket_that_is_away_ends_the_verification(tmp_path, bucket, faults):
    await build_here(tmp_path / "digits", bucket)

    def refuse(call: StorageCall) -> None:
        if "/checkpoint_" in call.key:
            raise AuthenticationError("the token has expired")

    faults.on_read.append(refuse)
    with pytest.raises(AuthenticationError, match="expired"):
        await verify(f"{bucket}/digits")


async def test_a_checkpoint_that_is_deleted_while_it_is_read_is_no_damage(tmp_path, bucket, faults):
    config = CheckpointConfig(num_to_keep=1)
    async with ExperimentStore.open(
        tmp_path / "digits", sync_config=SyncConfig(upload_dir=bucket), checkpoint_config=config
    ) as store:
        store.add_trial({}, "t")
        await store.save_checkpoint("t", Checkpoint.from_dict({"x": 1}))
        await store.flush(mirror=True)
        replaced = asyncio.Event()

        async def replace(_call: StorageCall) -> None:
            events = store.events()
            await store.save_checkpoint("t", Checkpoint.from_dict({"x": 2}))
            await store.flush(mirror=True)
            async for event in events:
                if event.kind == "bucket_copy_deleted":
                    break
            await store.flush(mirror=True)
            replaced.set()

        def at_the_manifest(call: StorageCall) -> Awaitable[None] | None:
            return replace(call) if call.key == "t/checkpoint_000001/.manifest.json" else None

        faults.on_read.append(at_the_manifest)
        report = await verify(f"{bucket}/digits")
        assert replaced.is_set()
        assert (report.checkpoints, report.problems) == (0, ())


async def test_a_verification_that_is_cancelled_leaves_nothing(tmp_path, bucket, faults, monkeypatch):
    await build_here(tmp_path / "digits", bucket)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    faults.on_read.append(lambda call: hang() if "/checkpoint_" in call.key else None)
    task = asyncio.create_task(verify(f"{bucket}/digits"))
    await reached.wait()
    assert len(list((tmp_path / "scratch").glob("asynctune-verify-*/*"))) > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((tmp_path / "scratch").iterdir()) == []


# -- several experiments ---------------------------------------------------------------------------------------


def test_the_experiments_below_a_prefix_are_listed(tmp_path, upload_dir, capsys):
    for name in ("one", "two"):
        build(tmp_path / name, upload_dir)
    code, document = ask(capsys, upload_dir, "--metric", "loss", "--mode", "min")
    assert (code, document["kind"], document["location"]) == (0, "experiments", upload_dir)
    assert [(each["name"], each["location"]) for each in document["experiments"]] == [
        (name, f"{upload_dir}/{name}") for name in ("one", "two")
    ]
    assert all(each["best"]["last_result"]["loss"] == 0.25 for each in document["experiments"])
    code, text, _ = show(capsys, upload_dir)
    assert code == 0
    assert f"2 experiments in {upload_dir}" in text
    code, _, errors = show(capsys, upload_dir, "trials")
    assert code == 2
    assert "is a directory of 2 experiments; name one of them: one, two" in errors


async def test_one_that_cannot_be_read_is_a_line_and_other_directories_are_none(tmp_path, bucket):
    await build_here(tmp_path / "good", bucket)
    storage = await open_storage(bucket)
    await storage.put("bad/.asynctune/CURRENT", b"nonsense")
    await storage.put("cut-short/.asynctune/seg-1-0123456789ab-1", b"never named")
    await storage.put("holidays/sea.jpg", b"blue")
    await storage.put(".hidden/.asynctune/CURRENT", b"nonsense")
    await storage.put("notes.txt", b"mine")
    await storage.aclose()
    report = await list_experiments(bucket, None, None)
    assert [(line.name, line.begun, line.head is not None) for line in report.lines] == [
        ("bad", True, False),
        ("cut-short", False, False),
        ("good", True, True),
    ]
    (problem,) = report.problems
    assert problem.kind == "unreadable"
    assert f"{bucket}/bad" in problem.message


def test_a_whole_bucket_may_be_listed(tmp_path, bucket, capsys):
    root = bucket.removesuffix("/some/where")
    build(tmp_path / "digits", root)
    code, document = ask(capsys, root)
    assert (code, [each["name"] for each in document["experiments"]]) == (0, ["digits"])
    code, _, errors = show(capsys, f"{root}-empty")
    MemoryStorage.forget(f"{root}-empty".partition("://")[2])
    assert code == 3
    assert errors.startswith("error: there is no experiment in memory://bucket-")


# -- what goes wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["verify"], ["gc"], ["trial", "x"]], ids="-".join)
def test_where_there_is_nothing_it_says_so(bucket, capsys, command):
    code, _, errors = show(capsys, f"{bucket}/nothing", *command)
    assert code == 3
    assert errors == f"error: there is no experiment at {bucket}/nothing; check the location\n"


def test_an_extra_that_is_not_installed_is_named(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "aiobotocore" else real(name)
    )
    code, document = ask(capsys, "s3://bucket/digits")
    assert (code, document["error"]["type"]) == (2, "MissingExtraError")
    assert "pip install 'asynctune[s3]'" in document["error"]["message"]


def test_credentials_in_a_location_are_refused_and_not_shown(capsys):
    code, _, errors = show(capsys, "s3://AKIAKEY:hunter2@bucket/digits")
    assert code == 2
    assert "hunter2" not in errors
    assert "AKIAKEY" not in errors
    assert errors.count("\n") == 1
