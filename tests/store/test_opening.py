from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from asynctune.clock import SystemClock
from asynctune.config import CheckpointConfig
from asynctune.errors import (
    ConfigError,
    CorruptStateError,
    ExperimentExistsError,
    ExperimentLockedError,
    ExperimentNotFoundError,
    FencedError,
    StorageError,
    StoreClosedError,
    UnsupportedFormatError,
)
from asynctune.files import LocalFiles
from asynctune.state.epochs import claim_epoch
from asynctune.state.segments import decode_segment_header, parse_segment_name
from asynctune.store.opening import Mode
from asynctune.store.store import ExperimentStore
from asynctune.trial import TrialStatus
from tests.killing import ROOT
from tests.store.scenes import directory_with, listing

WRITING: list[Mode] = ["auto", "create", "resume"]


async def make(location, **kwargs):
    async with ExperimentStore.open(location, **kwargs) as store:
        store.add_trial({"x": 1}, "t")


# -- modes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "create"])
async def test_a_new_place_becomes_an_experiment(location, mode):
    async with ExperimentStore.open(str(location), mode) as store:
        assert store.mode == "create"
        assert store.location == location
        assert not store.opening.resumed
        assert (store.opening.epoch, store.opening.recovered_commits, store.opening.tear) == (1, 0, None)
        assert store.opening.pid == os.getpid()
        assert store.opening.hostname == socket.gethostname()
        assert store.opening.previous_closed_at is None
        assert store.created_at == pytest.approx(time.time(), abs=60)
        assert store.writer_info is None
        assert len(store.experiment_id) == 16


@pytest.mark.parametrize("mode", ["auto", "resume"])
async def test_an_existing_experiment_goes_on(location, mode):
    async with ExperimentStore.open(location) as first:
        first.add_trial({"x": 1}, "t")
        first.set_metadata("k", None)
    async with ExperimentStore.open(location, mode) as store:
        assert store.mode == "resume"
        assert store.opening.resumed
        assert store.opening.epoch == 2
        assert store.opening.recovered_commits > 0
        assert store.opening.previous_closed_at == pytest.approx(time.time(), abs=60)
        assert store.experiment_id == first.experiment_id
        assert store.created_at == first.created_at
        assert [trial.trial_id for trial in store.trials] == ["t"]
        assert store.metadata == {"k": None}


async def test_create_refuses_an_existing_experiment_and_leaves_it(location):
    await make(location)
    before = listing(location)
    with pytest.raises(ExperimentExistsError, match="mode='resume'"):
        await ExperimentStore.open(location, "create")
    assert {k for k in listing(location) if "epoch" not in k} == {k for k in before if "epoch" not in k}
    await make_again_possible(location)


async def make_again_possible(location):
    async with ExperimentStore.open(location, "resume") as store:
        assert len(store.trials) == 1


@pytest.mark.parametrize("mode", ["resume", "read"])
@pytest.mark.parametrize("there", [False, True])
async def test_resume_and_read_refuse_where_there_is_none(location, mode, there):
    if there:
        location.mkdir()
    with pytest.raises(ExperimentNotFoundError, match="no experiment"):
        await ExperimentStore.open(location, mode)
    assert location.exists() == there
    if there:
        assert not listing(location)


@pytest.mark.parametrize("mode", WRITING)
async def test_a_missing_parent_is_an_error_so_that_an_unmounted_disk_is_no_fresh_start(tmp_path, mode):
    with pytest.raises(ConfigError, match="is the disk mounted"):
        await ExperimentStore.open(tmp_path / "missing" / "exp", mode)
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("mode", ["auto", "create"])
async def test_a_foreign_directory_is_refused_and_left(location, mode):
    directory_with(location, thesis__tex="mine")
    with pytest.raises(ConfigError, match=r"'thesis\.tex' but no experiment state"):
        await ExperimentStore.open(location, mode)
    assert [path.name for path in location.iterdir()] == ["thesis.tex"]


async def test_an_empty_directory_is_a_new_place(location):
    location.mkdir()
    await make(location, mode="create")


@pytest.mark.parametrize("mode", [*WRITING, "read"])
async def test_a_file_in_place_of_the_directory_is_refused(location, mode):
    location.write_text("file")
    with pytest.raises((ConfigError, ExperimentNotFoundError, StorageError), match=str(location)):
        await ExperimentStore.open(location, mode)
    assert location.read_text() == "file"


@pytest.mark.parametrize("mode", [*WRITING, "read"])
async def test_a_fifo_in_place_of_the_directory_is_refused_and_does_not_hang(location, mode):
    os.mkfifo(location)
    with pytest.raises((ConfigError, ExperimentNotFoundError, StorageError), match=str(location)):
        await ExperimentStore.open(location, mode)


@pytest.mark.parametrize("mode", [*WRITING, "read"])
async def test_a_file_in_place_of_the_state_is_refused(location, mode):
    location.mkdir()
    (location / ".asynctune").write_text("file")
    with pytest.raises(StorageError, match=str(location)):
        await ExperimentStore.open(location, mode)


class Unreadable(LocalFiles):
    def __init__(self, name: str) -> None:
        self.name = name

    def list_dir(self, path):
        if path.endswith(self.name):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return super().list_dir(path)


@pytest.mark.parametrize("mode", ["auto", "resume", "read"])
async def test_an_unreadable_directory_is_a_storage_error_and_leaves_no_lock(location, mode):
    await make(location)
    with pytest.raises(StorageError, match="Permission denied") as caught:
        await ExperimentStore.open(location, mode, files=Unreadable(".asynctune"))
    assert str(location) in str(caught.value)
    assert caught.value.hint
    await make_again_possible(location)


async def test_a_state_without_its_journal_is_no_fresh_start(location):
    await make(location)
    (location / "t").mkdir(exist_ok=True)
    for name in os.listdir(location / ".asynctune"):
        if name.startswith(("wal-", "snap-")):
            os.unlink(location / ".asynctune" / name)
    modes: list[Mode] = [*WRITING, "read"]
    for mode in modes:
        with pytest.raises(CorruptStateError, match="state is lost"):
            await ExperimentStore.open(location, mode)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"mode": "write"}, "mode must be one of"),
        ({"mode": None}, "mode must be one of"),
        ({"local_dir": "/tmp/x"}, "local_dir"),
        ({"storage_options": {"key": "SECRET"}}, "storage_options"),
        ({"sync_config": {}}, "sync_config must be"),
        ({"checkpoint_config": {"num_to_keep": 1}}, "checkpoint_config must be"),
        ({"max_interval_s": 0}, "max_interval_s"),
        ({"max_interval_s": "1"}, "max_interval_s"),
        ({"checkpoint_period": -1}, "checkpoint_period"),
        ({"checkpoint_period": "often"}, "checkpoint_period"),
    ],
)
async def test_a_setting_that_cannot_work_is_refused_before_anything_is_made(location, arguments, match):
    with pytest.raises(ConfigError, match=match) as caught:
        await ExperimentStore.open(location, **arguments)
    assert "SECRET" not in str(caught.value)
    assert not location.exists()


@pytest.mark.parametrize("location", ["", "a\0b", None, 5, "s3://bucket", "ftp://b/x"])
async def test_a_location_that_is_no_path_is_refused(location):
    with pytest.raises(ConfigError):
        await ExperimentStore.open(location)


async def test_relative_home_and_file_locations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, name in (("rel", "rel"), ("~/home", "home"), (f"file://{tmp_path}/uri", "uri")):
        async with ExperimentStore.open(given) as store:
            assert store.location == tmp_path / name


@pytest.mark.parametrize(
    ("value", "period"), [("auto", None), (" AUTO ", None), ("0", 0.0), ("2.5", 2.5), ("1e3", 1000.0)]
)
async def test_the_environment_variable_sets_the_period(location, monkeypatch, value, period):
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", value)
    async with ExperimentStore.open(location, checkpoint_period=77) as store:
        await store.flush()
        engine = store._engine
        assert engine is not None
        assert engine.writer._pacing._period_s == period
        assert store.stats().interval_s != 77


@pytest.mark.parametrize("value", ["", "10s", "-1", "nan", "inf", "None", "true"])
async def test_a_bad_environment_variable_is_a_clear_error(location, monkeypatch, value):
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", value)
    with pytest.raises(ConfigError, match="TUNE_GLOBAL_CHECKPOINT_S must be a number of seconds"):
        await ExperimentStore.open(location)
    assert not location.exists()


async def test_the_checkpoint_config_stays_as_it_was_made_unless_given_anew(location):
    keep = CheckpointConfig(num_to_keep=3, checkpoint_score_attribute="acc")
    await make(location, checkpoint_config=keep)
    async with ExperimentStore.open(location) as store:
        assert store._engine is not None
        assert store._engine.checkpoint_config == keep
    other = CheckpointConfig(num_to_keep=1)
    async with ExperimentStore.open(location, checkpoint_config=other) as store:
        pass
    async with ExperimentStore.open(location) as store:
        assert store._engine is not None
        assert store._engine.checkpoint_config == other


async def test_an_open_that_was_never_awaited_makes_nothing(location):
    ExperimentStore.open(location)
    assert not location.exists()


async def test_awaited_open_and_later_close(location):
    store = await ExperimentStore.open(location)
    store.add_trial({}, "t")
    await store.aclose()
    await make_again_possible(location)


async def test_state_files_are_private_whatever_the_umask(location):
    old = os.umask(0)
    try:
        await make(location)
    finally:
        os.umask(old)
    state = location / ".asynctune"
    assert state.stat().st_mode & 0o777 == 0o700
    for path in state.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


# -- one writer --------------------------------------------------------------------------------------------


def assert_refusal(error: ExperimentLockedError, pid: int, since: float) -> None:
    assert isinstance(error, FencedError)
    assert error.pid == pid
    assert error.hostname == socket.gethostname()
    assert error.since == pytest.approx(since, abs=1e-3)
    for part in (
        f"pid {pid}",
        socket.gethostname(),
        time.strftime("%Y-%m-%d", time.gmtime(since)),
        'mode="read"',
    ):
        assert part in str(error)


@pytest.mark.parametrize("mode", WRITING)
async def test_a_second_writer_in_this_process_is_refused_with_who_and_since_when(location, store, mode):
    with pytest.raises(ExperimentLockedError) as caught:
        await ExperimentStore.open(location, mode)
    assert_refusal(caught.value, os.getpid(), store.opening.opened_at)
    store.add_trial({})
    await store.flush()


SECOND = """
import asyncio, json, sys
from asynctune import ExperimentStore, ExperimentLockedError
async def main():
    try:
        async with ExperimentStore.open(sys.argv[1]) as store:
            print(json.dumps(["open", len(store.trials)]))
    except ExperimentLockedError as error:
        print(json.dumps([str(error), error.pid, error.hostname, error.since]))
asyncio.run(main())
"""


async def run_second(location) -> list:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SECOND, str(location), cwd=ROOT, stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(output)


async def test_a_second_writer_in_another_process_is_refused_until_the_first_closes(location):
    async with ExperimentStore.open(location) as store:
        store.add_trial({})
        message, pid, hostname, since = await run_second(location)
        error = ExperimentLockedError(message, pid=pid, hostname=hostname, since=since)
        assert_refusal(error, os.getpid(), store.opening.opened_at)
    assert await run_second(location) == ["open", 1]


HOLDER = """
import asyncio, sys
from asynctune import ExperimentStore
async def main():
    store = await ExperimentStore.open(sys.argv[1])
    store.add_trial({}, "t")
    await store.flush()
    print(store.opening.opened_at, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_writer_of_another_process_holds_the_lock_until_it_is_killed(location):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(location), cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        since = float(await process.stdout.readline())
        with pytest.raises(ExperimentLockedError) as caught:
            await ExperimentStore.open(location)
        assert_refusal(caught.value, process.pid, since)
        async with ExperimentStore.open(location, "read") as reader:
            assert reader.writer_info == {
                "pid": process.pid,
                "hostname": socket.gethostname(),
                "since": pytest.approx(since),
                "alive": True,
            }
            process.kill()
            await process.wait()
            await reader.refresh()
            assert reader.writer_info is not None
            assert reader.writer_info["alive"] is False
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    async with ExperimentStore.open(location, "read") as reader:  # of a dead writer
        assert reader.writer_info is not None
        assert (reader.writer_info["pid"], reader.writer_info["alive"]) == (process.pid, False)
        assert len(reader.trials) == 1
    async with ExperimentStore.open(location) as store:
        assert store.opening.previous_closed_at is None
        assert len(store.trials) == 1


async def test_a_higher_claim_fences_the_writer(location):
    store = await ExperimentStore.open(location)
    store.add_trial({}, "kept")
    await store.flush()
    await asyncio.to_thread(claim_epoch, str(location / ".asynctune"), LocalFiles(), SystemClock())
    store.add_trial({}, "lost")
    with pytest.raises(FencedError, match="taken over"):
        await store.flush()
    with pytest.raises(FencedError):
        store.add_trial({})
    with pytest.raises(FencedError):
        await store.aclose()
    async with ExperimentStore.open(location) as store:
        assert store.opening.epoch == 3
        # what was not acknowledged may have reached the disk all the same
        assert [trial.trial_id for trial in store.trials] in (["kept"], ["kept", "lost"])


async def test_two_openings_in_one_moment_give_one_writer(location):
    for _ in range(10):
        results = await asyncio.gather(
            *(ExperimentStore.open(location)._open() for _ in range(4)), return_exceptions=True
        )
        stores = [result for result in results if isinstance(result, ExperimentStore)]
        errors = [result for result in results if not isinstance(result, ExperimentStore)]
        assert len(stores) == 1, results
        assert all(isinstance(error, FencedError) for error in errors), errors
        await stores[0].aclose()


# -- forks -------------------------------------------------------------------------------------------------


async def test_a_forked_child_cannot_write_and_does_not_keep_the_lock(location, tmp_path):
    store = await ExperimentStore.open(location)
    store.add_trial({}, "t")
    await store.flush()
    await store.save_checkpoint("t", directory_with(tmp_path / "d"))
    answers, stay = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(stay[1])
            os.write(answers[1], json.dumps(_tried_in_child(store, tmp_path)).encode())
            os.close(answers[1])
            os.read(stay[0], 1)  # outlives the close
        finally:
            os._exit(0)
    os.close(answers[1])
    os.close(stay[0])
    try:
        answer = await asyncio.to_thread(_read_all, answers[0])
        assert answer, "the child could not answer"
        for call, text in json.loads(answer).items():
            assert text.startswith("StoreClosedError"), (call, text)
            assert "forked child" in text
        store.set_status("t", TrialStatus.RUNNING)
        await store.aclose()
        await make_again_possible(location)
    finally:
        os.close(stay[1])
        os.close(answers[0])
        os.waitpid(child, 0)


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 65536):
        parts.append(part)
    return b"".join(parts)


def _tried_in_child(store, tmp_path) -> dict[str, str]:
    signal.alarm(20)
    # a forked loop is of no use: the child drives each coroutine with a loop of its own
    asyncio.events._set_running_loop(None)
    directory = tmp_path / "d"

    async def enter(context):
        async with context:
            pass

    calls = {
        "add_trial": lambda: store.add_trial({}),
        "set_status": lambda: store.set_status("t", "RUNNING"),
        "report": lambda: store.report("t", {}),
        "update_trial": lambda: store.update_trial("t", {}),
        "set_metadata": lambda: store.set_metadata("k", 1),
        "requeue": store.requeue,
        "attach": lambda: store.attach_searcher(None),
        "flush": lambda: _run(store.flush()),
        "save": lambda: _run(store.save_checkpoint("t", directory)),
        "clone": lambda: _run(store.clone_checkpoint("t", to_trial="t")),
        "restore": lambda: _run(store.restore_checkpoint("t")),
        "lease": lambda: _run(enter(store.lease("t"))),
        "drain": lambda: _run(store.drain()),
        "refresh": lambda: _run(store.refresh()),
        "aclose": lambda: _run(store.aclose()),
    }
    told = {}
    for name, call in calls.items():
        try:
            told[name] = f"returned {call()!r}"
        except StoreClosedError as error:
            told[name] = f"StoreClosedError {error}"
        except BaseException as error:  # noqa: BLE001 - told to the parent
            told[name] = repr(error)
    return told


def _run(coroutine):
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


# -- what somebody else did to the directory ----------------------------------------------------------------


async def test_a_reader_looks_again_where_an_experiment_begins_under_its_eyes(location):
    class BegunMeanwhile(LocalFiles):
        """Hides the journal until somebody has listed the trials."""

        begun = False

        def list_dir(self, path):
            if path == str(location):
                self.begun = True
            return [name for name in super().list_dir(path) if self.begun or not name.startswith("wal-")]

    await make(location)
    (location / "t").mkdir(exist_ok=True)
    async with ExperimentStore.open(location, "read", files=BegunMeanwhile()) as reader:
        assert reader.get_trial("t").config == {"x": 1}


async def test_the_name_of_the_directory_need_not_be_text(tmp_path):
    location = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    await make(location)
    async with ExperimentStore.open(location, "read") as reader:
        assert reader.get_trial("t").config == {"x": 1}


@pytest.mark.parametrize("moved", [True, False])
async def test_a_directory_that_vanishes_while_it_is_open_is_no_takeover(location, moved):
    store = await ExperimentStore.open(location)
    location.rename(location.with_name("elsewhere"))
    if not moved:
        shutil.rmtree(location.with_name("elsewhere"))
    store.add_trial({"x": 1})
    with pytest.raises(StorageError, match=r"moved or removed while it was open.* open it where it is now"):
        await store.flush()
    with pytest.raises(StorageError, match="moved or removed"):
        await store.aclose()
    assert not location.exists()


@pytest.mark.parametrize("mode", ["auto", "resume", "read"])
async def test_records_of_a_newer_release_are_refused_and_left(location, mode):
    async with ExperimentStore.open(location) as store:
        store._records.put("experiment", {**(store._records.get("experiment") or {}), "format": 2})
    before = {name: data for name, data in state_files(location).items() if name.startswith(("wal", "snap"))}
    with pytest.raises(UnsupportedFormatError, match=r"format 2, and this one knows 1\); upgrade"):
        await ExperimentStore.open(location, mode)
    assert before.items() <= state_files(location).items()


def leave_only_the_header(location):
    """What a crash between the first segment and the first commit leaves."""
    (path,) = (location / ".asynctune").glob("wal-*")
    name = parse_segment_name(path.name)
    assert name is not None
    header = decode_segment_header(path.read_bytes(), name)
    os.truncate(path, header.end)


@pytest.mark.parametrize("mode", ["auto", "create", "resume"])
async def test_an_experiment_without_any_commit_was_never_begun(location, mode):
    async with ExperimentStore.open(location):
        pass
    leave_only_the_header(location)
    with pytest.raises(ExperimentNotFoundError, match="never begun"):
        await ExperimentStore.open(location, "read")
    async with ExperimentStore.open(location, mode) as store:
        assert (store.mode, store.opening.resumed) == ("create", False)
        store.add_trial({}, "t")
    async with ExperimentStore.open(location, "read") as reader:
        assert [trial.trial_id for trial in reader.trials] == ["t"]


@pytest.mark.parametrize("mode", ["auto", "create", "resume", "read"])
async def test_a_journal_without_any_commit_beside_trials_is_a_lost_state(location, mode, tmp_path):
    async with ExperimentStore.open(location) as store:
        await store.save_checkpoint(store.add_trial({}, "t").trial_id, directory_with(tmp_path / "d"))
    leave_only_the_header(location)
    with pytest.raises(CorruptStateError, match=r"holds no commit, but .* holds 't'"):
        await ExperimentStore.open(location, mode)


def state_files(location):
    return {path.name: path.read_bytes() for path in (location / ".asynctune").iterdir() if path.is_file()}
