"""A trial's files: their formats, and that they end up as the journal says whatever happened to them."""

from __future__ import annotations

import csv
import errno
import itertools
import json
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.results.rows import Announce, Cut, ResultRow, RowOperation
from asynctune.testing import CHANGES, FaultyFiles
from tests.results.world import (
    OPENING,
    lines,
    moments,
    project,
    row,
    the_events,
    tree,
    trial,
    trial_files,
)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def cut(keep: int) -> Cut:
    return Cut(trial_id="t1", keep=keep)


ANNOUNCE = Announce(trial_id="t1")


# -- formats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["params.json", "result.json", "progress.csv", "result.cut-1.json"])
def test_the_formats(tmp_path, utc, name):
    files, _ = trial_files(tmp_path)
    config = {"lr": 1e-3, "layers": (64, 32), "optimizer": {"name": "adam", "betas": [0.9, 0.999]}}
    told: list[RowOperation] = [
        ANNOUNCE,
        row(1, {"loss": 0.5, "note": 'said "so",\nand more: é'}),
        row(2, {"loss": math.nan, "eval": {"acc": 0.25, "best": None}, "raw": b"\x00\x01"}),
        row(3, {"loss": -math.inf, "big": 2**70, "done": True}),
        cut(2),
        row(3, {"loss": 0.125, "tags": {"b", "a"}, "steps": []}, at=30.5),
    ]
    for each in told:
        project(files, [each], trial(config=config))
    assert (tmp_path / "name_t1" / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_golden_files_are_read_by_the_standard_library():
    rows = lines(GOLDEN / "result.json")
    assert [each["training_iteration"] for each in rows] == [1, 2, 3]
    with (GOLDEN / "progress.csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert cells[0]["note"] == rows[0]["note"]
    assert [float(each["loss"]) for each in cells][::2] == [0.5, 0.125]
    assert cells[0]["config/optimizer/name"] == "adam"
    assert (cells[0]["eval/acc"], cells[1]["eval/acc"], cells[2]["eval/acc"]) == ("", "0.25", "")


def test_files_are_for_people_to_read(tmp_path):
    files, _ = trial_files(tmp_path)
    project(files, [ANNOUNCE, row(1)])
    umask = Path("/proc/self/status").read_text(encoding="ascii").split("Umask:")[1].split()[0]
    visible = 0o666 & ~int(umask, 8)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "name_t1").iterdir()} == {visible}
    assert (tmp_path / "name_t1").stat().st_mode & 0o777 == 0o777 & ~int(umask, 8)


# -- the usual case ------------------------------------------------------------------------------------------


def test_an_announced_trial_has_its_params(tmp_path):
    files, _ = trial_files(tmp_path)
    project(files, [ANNOUNCE])
    assert sorted(tree(tmp_path)) == ["name_t1/params.json"]
    project(files, [ANNOUNCE], trial(config={"lr": 0.2}))
    assert json.loads((tmp_path / "name_t1/params.json").read_bytes()) == {"lr": 0.2}


def test_rows_at_the_end_are_appended_and_nothing_is_read(tmp_path):
    files = FaultyFiles()
    mine, _ = trial_files(tmp_path, files, tensorboard=True)
    project(mine, [row(1)])
    reads, renames = files.count("read"), files.count("rename")
    for n in range(2, 20):
        project(mine, [row(n)])
    assert (files.count("read"), files.count("rename")) == (reads, renames)
    assert moments(tmp_path / "name_t1/result.json") == list(range(1, 20))
    assert [step for step, _ in the_events(tmp_path / "name_t1")] == list(range(1, 20))


def test_a_new_column_comes_last_and_is_empty_before(tmp_path):
    files, _ = trial_files(tmp_path)
    project(files, [row(1, {"loss": 1.0})])
    project(files, [row(2, {"loss": 2.0, "new": {"a": "x,y"}})])
    project(files, [row(3, {"other": 3.0})])
    with (tmp_path / "name_t1/progress.csv").open(newline="", encoding="utf-8") as file:
        header, *records = csv.reader(file)
    assert header[0] == "loss"
    assert header[-2:] == ["new/a", "other"]
    assert [record[-2:] for record in records] == [["", ""], ["x,y", ""], ["", "3.0"]]
    assert [record[0] for record in records] == ["1.0", "2.0", ""]


def test_a_deleted_directory_is_made_again_and_the_loss_is_told(tmp_path):
    files, _ = trial_files(tmp_path, tensorboard=True)
    project(files, [ANNOUNCE, row(1), row(2)])
    shutil.rmtree(tmp_path / "name_t1")
    project(files, [row(3)])
    assert moments(tmp_path / "name_t1/result.json") == [3]
    assert [step for step, _ in the_events(tmp_path / "name_t1")] == [3]
    assert (tmp_path / "name_t1/params.json").exists()
    (notice,) = files.notices
    assert (notice.kind, notice.data["missing"]) == ("results_incomplete", 2)

    project(files, [row(4), row(5)])
    project(files, [cut(4), row(5, at=50)])  # counted from the timeline's start, not the file's
    assert moments(tmp_path / "name_t1/result.json") == [3, 4, 50]
    assert moments(tmp_path / "name_t1/result.cut-1.json") == [5]
    assert len(files.notices) == 1


def test_an_experiment_directory_that_is_gone_is_an_error(tmp_path):
    files, _ = trial_files(tmp_path / "unmounted")
    with pytest.raises(FileNotFoundError):
        project(files, [ANNOUNCE, row(1)])
    assert not (tmp_path / "unmounted").exists()


@pytest.mark.parametrize("name", ["progress.csv", "events"])
def test_a_file_made_of_result_json_is_made_again(tmp_path, name):
    files, _ = trial_files(tmp_path, tensorboard=True)
    project(files, [row(1), row(2)])
    (victim,) = (tmp_path / "name_t1").glob(f"{name}*")
    for damage in (victim.unlink, lambda: victim.write_bytes(b"junk\n"), lambda: victim.write_bytes(b"")):
        damage()
        project(files, [row(len(moments(tmp_path / "name_t1/result.json")) + 1)])
        fresh = tempfile.mkdtemp(dir=tmp_path.parent)
        again, _ = trial_files(Path(fresh), tensorboard=True)
        project(again, [row(n) for n in range(1, len(moments(tmp_path / "name_t1/result.json")) + 1)])
        assert tree(Path(fresh)) == tree(tmp_path)


# -- rewinds -------------------------------------------------------------------------------------------------


def test_a_rewind_in_tensorboard_shows_the_newer_timeline(tmp_path):
    files, _ = trial_files(tmp_path, tensorboard=True)
    project(files, [row(1, {"loss": 1.0}), row(2, {"loss": 2.0}), row(3, {"loss": 3.0})])
    project(files, [cut(1), row(2, {"loss": 20.0}, at=20)])
    project(files, [row(3, {"loss": 30.0}, at=30)])
    assert [(step, scalars["loss"]) for step, scalars in the_events(tmp_path / "name_t1")] == [
        (1, 1.0),
        (2, 20.0),
        (3, 30.0),
    ]


def test_each_rewind_has_its_own_file(tmp_path):
    files, _ = trial_files(tmp_path)
    project(files, [row(1), row(2)])
    project(files, [cut(1), row(2, at=20)])
    project(files, [cut(0)])
    assert moments(tmp_path / "name_t1/result.json") == []
    assert moments(tmp_path / "name_t1/result.cut-1.json") == [2]
    assert moments(tmp_path / "name_t1/result.cut-2.json") == [1, 20]
    project(files, [row(1, at=100)])
    assert moments(tmp_path / "name_t1/result.json") == [100]


def test_cut_rows_are_on_the_disk_before_a_line_is_removed(tmp_path):
    files = FaultyFiles()
    mine, _ = trial_files(tmp_path, files)
    project(mine, [row(1), row(2)])
    before = len(files.log)
    project(mine, [cut(1)])
    kinds = [operation.kind for operation in files.log[before:] if operation.kind in CHANGES]
    assert kinds.index("sync") < kinds.index("rename") < kinds.index("sync_dir") < kinds.index("truncate")


# -- recovery ------------------------------------------------------------------------------------------------

METRICS = st.sampled_from(
    [
        {"loss": 0.5},
        {"loss": math.nan, "acc": 1},
        {"text": 'a "b",\r\nc'},
        {"nested": {"x": [1, 2], "y": {}}},
        {"done": True},
        {},
    ]
)
STORY = st.lists(METRICS | METRICS | st.integers(0, 12), min_size=1, max_size=14)


def tell(story: list[Any]) -> tuple[list[RowOperation], list[list[ResultRow]]]:
    """The operations of a story, and the timeline after each of them."""
    operations: list[RowOperation] = []
    timeline: list[ResultRow] = []
    after: list[list[ResultRow]] = [[]]
    for moment, step in enumerate(story, 1):
        if isinstance(step, int):
            keep = min(step, len(timeline))
            timeline = timeline[:keep]
            operations.append(cut(keep))
        else:
            new = row(len(timeline) + 1, step, at=moment)
            timeline = [*timeline, new]
            operations.append(new)
        after.append(timeline)
    return operations, after


def check(root: Path, timeline: list[ResultRow], told: list[RowOperation]) -> None:
    """The files are exactly those of the timeline, and no row that was told is gone."""
    directory = root / "name_t1"
    assert moments(directory / "result.json") == [each.time_total_s for each in timeline]
    aside = [m for path in directory.glob("result.cut-*.json") for m in moments(path)]
    assert len(set(aside)) == len(aside)
    everything = {each.time_total_s for each in told if isinstance(each, ResultRow)}
    assert everything == {*aside, *(each.time_total_s for each in timeline)}
    with tempfile.TemporaryDirectory(dir=root.parent) as fresh:
        files, _ = trial_files(Path(fresh))
        project(files, timeline)
        for name in ("result.json", "progress.csv"):
            made = Path(fresh) / "name_t1" / name
            wanted = made.read_bytes() if made.exists() else b""
            found = directory / name
            assert (found.read_bytes() if found.exists() else b"") == wanted
    if list(directory.glob("events*")) or timeline:
        events = the_events(directory)
        assert [step for step, _ in events] == [each.iteration for each in timeline]
        for (_, scalars), each in zip(events, timeline, strict=True):
            loss = each.metrics.get("loss")
            assert ("loss" in scalars) == (loss is not None)
            assert loss is None or math.isnan(loss) or scalars["loss"] == loss


@given(st.data(), STORY)
def test_recovery_ends_in_the_timeline(data, story):
    """Files from any moment after the last sync, each cut at any byte written since, are completed."""
    operations, after = tell(story)
    synced = data.draw(st.integers(0, len(operations)), label="synced after")
    ends = sorted(
        {synced, *data.draw(st.lists(st.integers(synced, len(operations)), max_size=4), label="batches end")}
    )
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "exp"
        root.mkdir()
        files, _ = trial_files(root, tensorboard=True)
        project(files, operations[:synced])
        states = [tree(root)]
        for start, end in itertools.pairwise(ends):
            project(files, operations[start:end])
            states.append(tree(root))

        # The crash: result.json of one moment, the others of any moment since the sync. Cut files are durable.
        moment = data.draw(st.integers(0, len(states) - 1), label="moment of the crash")
        for path in [p for p in root.rglob("*") if p.is_file()]:
            key = str(path.relative_to(root))
            if "result.cut-" in key:
                content = states[moment].get(key)
            else:
                since = 0 if "result.json" not in key else moment
                which = data.draw(st.integers(since, moment), label=f"state of {key}")
                content = states[which].get(key)
            if content is None:
                path.unlink()
                continue
            durable = states[0].get(key, b"")
            if content.startswith(durable) and "result.cut-" not in key:
                length = data.draw(st.integers(len(durable), len(content)), label=f"bytes of {key}")
                content = content[:length]
            path.write_bytes(content)

        again, _ = trial_files(root, tensorboard=True)
        project(again, operations[synced:])
        check(root, after[-1], operations[: ends[moment]] + operations[synced:])
        assert not again.notices
        completed = tree(root)
        third, _ = trial_files(root, tensorboard=True)
        project(third, operations[synced:])
        assert tree(root) == completed

        more = row(len(after[-1]) + 1, {"loss": 7.0}, at=999)
        project(third, [more])
        check(root, [*after[-1], more], [*operations[: ends[moment]], *operations[synced:], more])


def test_a_file_cut_at_any_byte_is_completed(tmp_path):
    files, placer = trial_files(tmp_path, tensorboard=True)
    told = [row(1), row(2, {"text": "a\nb"}), row(3)]
    project(files, told[:1])
    placer.sync()
    synced = tree(tmp_path)
    project(files, told[1:])
    whole = tree(tmp_path)
    for key, content in whole.items():
        for length in range(len(synced[key]), len(content)):
            (tmp_path / key).write_bytes(content[:length])
            again, _ = trial_files(tmp_path, tensorboard=True)
            project(again, told[1:])
            assert tree(tmp_path) == whole, (key, length)


def test_a_result_json_overwritten_with_zeros_is_completed(tmp_path):
    files, _ = trial_files(tmp_path)
    project(files, [row(1), row(2), row(3)])
    path = tmp_path / "name_t1/result.json"
    whole = path.read_bytes()
    end = whole.index(b"\n") + 1
    path.write_bytes(whole[:end] + b"\0" * 40 + b"\n" + b"\0" * 40)
    again, _ = trial_files(tmp_path)
    project(again, [row(2), row(3)])
    assert path.read_bytes() == whole
    assert [(each.kind, each.data["damaged"]) for each in again.notices] == [("results_repaired", 1)]


def test_rows_keep_the_config_and_date_they_were_written_with(tmp_path, monkeypatch, utc):
    files, _ = trial_files(tmp_path)
    project(files, [row(1), row(2)])
    written = (tmp_path / "name_t1/result.json").read_bytes()
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    again, _ = trial_files(tmp_path)
    project(again, [row(2), row(3)], trial(config={"lr": 5}))
    text = (tmp_path / "name_t1/result.json").read_bytes()
    assert text.startswith(written)
    assert [each["config"]["lr"] for each in lines(tmp_path / "name_t1/result.json")] == [0.1, 0.1, 5]
    assert not again.notices


def test_rows_of_nobody_are_kept_aside_and_told(tmp_path):
    files, _ = trial_files(tmp_path)
    project(files, [row(1), row(2), row(3, at=77)])
    again, _ = trial_files(tmp_path)
    project(again, [row(2), row(3)])
    assert moments(tmp_path / "name_t1/result.json") == [1, 2, 3]
    assert moments(tmp_path / "name_t1/result.cut-1.json") == [77]
    (notice,) = again.notices
    assert notice.kind == "results_repaired"


def test_tensorboard_asked_for_later_has_every_row(tmp_path):
    files, _ = trial_files(tmp_path)
    project(files, [row(1), row(2)])
    again, _ = trial_files(tmp_path, tensorboard=True)
    project(again, [row(3)])
    assert [step for step, _ in the_events(tmp_path / "name_t1")] == [1, 2, 3]


# -- failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "after_bytes"), [(errno.ENOSPC, None), (errno.ENOSPC, 50), (errno.EIO, 0)])
def test_any_single_failure_is_made_good_by_calling_again(tmp_path, error, after_bytes):
    story: list[Any] = [
        {"loss": 1.0},
        {"loss": 2.0},
        {"acc": 1},
        {"loss": 3.0},
        2,
        {"loss": 4.0},
        {"x": "\n"},
    ]
    operations, after = tell(story)
    batches = [operations[:2], operations[2:4], operations[4:6], operations[6:]]
    for nth in itertools.count(1):
        root = tmp_path / f"{nth}"
        root.mkdir()
        disk = FaultyFiles()
        files, placer = trial_files(root, disk, tensorboard=True)
        fault = disk.fail(error, on=CHANGES, nth=nth, after_bytes=after_bytes)
        waiting: list[RowOperation] = []
        for batch in batches:
            waiting += batch
            try:
                project(files, waiting)
            except OSError as failure:
                assert failure.errno == error  # noqa: PT017
            else:
                waiting = []
        if waiting:
            project(files, waiting)
        try:
            placer.sync()
        except OSError as failure:
            assert failure.errno == error  # noqa: PT017
            placer.sync()
        check(root, after[-1], operations)
        assert not list(root.rglob("*.tmp"))
        if not fault.hits:
            break
    assert nth > 60


@given(st.data(), STORY)
def test_any_failures_are_made_good_by_calling_again(data, story):
    operations, after = tell(story)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "exp"
        root.mkdir()
        disk = FaultyFiles()
        files, _ = trial_files(root, disk, tensorboard=True)
        waiting: list[RowOperation] = []
        for operation in operations:
            waiting.append(operation)
            if data.draw(st.booleans(), label="wait for more"):
                continue
            nth = data.draw(st.integers(1, 30), label="nth operation fails")
            disk.fail(on=CHANGES, nth=nth, after_bytes=data.draw(st.sampled_from([None, 1, 60])))
            try:
                project(files, waiting)
            except OSError:
                pass
            else:
                waiting = []
            disk.heal()
        project(files, waiting)
        check(root, after[-1], operations)


def test_opening_is_told_by_each_row(tmp_path):
    files, _ = trial_files(tmp_path)
    project(files, [row(1)])
    assert lines(tmp_path / "name_t1/result.json")[0]["hostname"] == OPENING.hostname
