"""Reading rows back."""

from __future__ import annotations

import json
import math

import pytest

from asynctune.results.history import read_history
from tests.results.world import project, row, trial_files


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
