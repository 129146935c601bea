"""progress.csv beside result.json."""

from __future__ import annotations

import json

import pytest

from asynctune.results.placing import Placer
from asynctune.results.progress_file import ProgressFiles, ProgressState, read_cells
from asynctune.testing import FaultyFiles

LINES = [json.dumps({"loss": n / 2, "text": f"a,{n}\n"}).encode() for n in range(1, 5)]


@pytest.fixture
def disk():
    return FaultyFiles()


@pytest.fixture
def progress(tmp_path, disk):
    return ProgressFiles(Placer(str(tmp_path), disk))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trial" / "progress.csv"


def whole(progress: ProgressFiles, path, lines) -> bytes:
    progress.make(str(path), ProgressState(), lines)
    return path.read_bytes()


def test_a_file_that_agrees_is_only_added_to(progress, path, disk):
    want = whole(progress, path, LINES)
    for count in range(1, 5):
        whole(progress, path, LINES[:count])
        renames = disk.count("rename")
        state = ProgressState()
        progress.align(str(path), state, LINES, known_from=1)
        assert path.read_bytes() == want
        assert disk.count("rename") == renames
        assert state.size == len(want)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data.replace(b"1.5", b"9.9"),
        lambda data: data + data[-9:],
        lambda data: data.replace(b"0.5,", b"0.5,x\r\n0.5,"),
        lambda data: data.replace(b"loss,text", b"loss,txet"),
        lambda data: b"\0" * len(data),
    ],
    ids=[
        "empty",
        "cut short",
        "another value",
        "a line too many",
        "a line too many before",
        "another column",
        "zeros",
    ],
)
def test_a_file_that_does_not_agree_is_made_anew(progress, path, damage):
    want = whole(progress, path, LINES)
    path.write_bytes(damage(want))
    progress.align(str(path), ProgressState(), LINES, known_from=2)
    assert path.read_bytes() == want


def test_appending_needs_the_file_as_it_was_left(progress, path):
    state = ProgressState()
    row = {"loss": 5.0, "text": "new"}
    assert not progress.append(str(path), state, [row])
    progress.make(str(path), state, LINES)
    assert progress.append(str(path), state, [row])
    assert path.read_bytes().endswith(b"5.0,new\r\n")
    assert not progress.append(str(path), state, [{"other": 1}])
    path.write_bytes(b"loss\r\n")
    assert not progress.append(str(path), state, [row])


def test_a_line_that_is_no_row_still_counts(progress, path):
    lines = [LINES[0], b"\0\0", b"[1]", LINES[1]]
    assert list(read_cells(lines))[1:3] == [{}, {}]
    want = whole(progress, path, lines)
    progress.align(str(path), ProgressState(), lines, known_from=0)
    assert path.read_bytes() == want


def test_a_line_that_is_known_need_not_be_parsed():
    lines = [b'{"a": 1}', b"rendered"]
    assert list(read_cells(lines, {b"rendered": {"b": {"c": 2}}})) == [{"a": 1}, {"b/c": 2}]


def test_trials_share_what_is_known_of_their_columns(progress, tmp_path):
    states = [ProgressState() for _ in range(5)]
    for number, state in enumerate(states):
        progress.make(str(tmp_path / f"{number}" / "progress.csv"), state, LINES)
    assert {state.columns for state in states} == {0}
