"""Reading rows back."""

from __future__ import annotations

import asyncio
import json
import math

import pytest

from asynctune.results.history import read_history
from asynctune.results.rows import Cut, encode
from tests.results.world import OPENING, lines, project, row, trial, trial_files


@pytest.fixture
def directory(tmp_path):
    files, _ = trial_files(tmp_path)
    project(files, [row(1, {"loss": math.nan}), row(2, {"eval": {"acc": 0.5}})])
    return tmp_path / "name_t1"


@pytest.mark.parametrize("name", ["", "result.json"])
async def test_rows_come_back_in_order(directory, name):
    rows = await read_history(directory / name)
    assert [each["training_iteration"] for each in rows] == [1, 2]
    assert math.isnan(rows[0]["loss"])
    assert rows[1]["eval"] == {"acc": 0.5}


async def test_half_a_line_at_the_end_is_left_out(directory):
    path = directory / "result.json"
    path.write_bytes(path.read_bytes()[:-1])
    assert len(await read_history(path)) == 1


async def test_a_damaged_line_is_left_out_with_a_warning(directory, caplog):
    path = directory / "result.json"
    whole = path.read_bytes()
    path.write_bytes(b"\0\0{\n" + whole + b"[1]\n")
    rows = await read_history(path)
    assert rows[1:] == [json.loads(line) for line in whole.splitlines()][1:]
    assert "line 1 is damaged" in caplog.text
    assert "line 4 is damaged" in caplog.text


@pytest.mark.parametrize("name", ["", "nothing", "nothing/result.json"])
async def test_no_rows_yet(tmp_path, name):
    assert await read_history(tmp_path / name) == []


@pytest.mark.parametrize("name", ["", "nothing", "nothing/result.json"])
async def test_rows_that_should_be_there_and_are_not(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"moved or removed.*{name}"):
        await read_history(tmp_path / name, has_rows=True)


async def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "result.json").mkdir()
    with pytest.raises(OSError, match=r"result\.json"):
        await read_history(tmp_path)


def packed(*operations):
    return [(encode(each), OPENING) for each in operations]


@pytest.mark.parametrize("written", range(6), ids=str)
async def test_rows_that_the_file_lacks_come_from_what_was_committed(tmp_path, written):
    """Whatever a killed driver had brought into the file, and whatever of that is told again."""
    operations = [
        row(1),
        row(2),
        row(3),
        Cut(trial_id="t1", keep=1),
        row(2, {"loss": 7}, at=9),
    ]
    files, _ = trial_files(tmp_path)
    if written:
        await asyncio.to_thread(project, files, operations[:written])
    before = lines(tmp_path / "name_t1" / "result.json") if written else None
    rows = await read_history(
        tmp_path / "name_t1", has_rows=True, trial=trial(), unwritten=packed(*operations)
    )
    assert [each["time_total_s"] for each in rows] == [1, 9]
    assert rows[1]["loss"] == 7
    assert rows[1]["config"] == {"lr": 0.1}
    if written:
        assert lines(tmp_path / "name_t1" / "result.json") == before, "a reader writes nothing"


async def test_rows_before_those_that_are_known_are_the_files(directory):
    rows = await read_history(directory, trial=trial(), unwritten=packed(row(3), row(4)))
    assert [each["training_iteration"] for each in rows] == [1, 2, 3, 4]


async def test_rows_that_nobody_has_any_more_are_told(directory, caplog):
    (directory / "result.json").unlink()
    unwritten = packed(row(3), row(4))
    with pytest.raises(FileNotFoundError, match="moved or removed"):
        await read_history(directory, has_rows=True, trial=trial(), unwritten=unwritten)
    (directory / "result.json").touch()
    rows = await read_history(directory, has_rows=True, trial=trial(), unwritten=unwritten)
    assert [each["training_iteration"] for each in rows] == [3, 4]
    assert "lacks its first 2 rows" in caplog.text
