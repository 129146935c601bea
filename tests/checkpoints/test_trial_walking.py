"""Which files of a trial's directory are found as its own."""

from __future__ import annotations

import os

import pytest

from asynctune.checkpoints.trial_walking import has_own_files, own_files, walk_own
from tests.checkpoints.travel import write_tree

STORES = {"params.json": b"{}", "result.json": b"", "checkpoint_000001/model": b"1", ".staged-1/model": b"2"}
PRINTED = {"stdout": b"hello", "stderr": b""}


def test_what_the_store_wrote_is_none_and_what_was_printed_is_not_lent(tmp_path):
    write_tree(tmp_path, {**STORES, **PRINTED})
    assert sorted(path for path, _ in walk_own(str(tmp_path))) == ["stderr", "stdout"]
    assert not has_own_files(str(tmp_path))
    assert own_files(str(tmp_path)).files == []


def test_own_files_are_found_with_the_directories_they_are_in(tmp_path):
    write_tree(tmp_path, {**STORES, **PRINTED, "a.csv": b"12", "b/c/d.txt": b"123", "b/e.txt": b""})
    os.symlink("a.csv", tmp_path / "latest")
    assert has_own_files(str(tmp_path))
    tree = own_files(str(tmp_path))
    assert [(file.path, file.size) for file in tree.files] == [("a.csv", 2), ("b/c/d.txt", 3), ("b/e.txt", 0)]
    assert [path for path, _ in tree.directories] == ["b", "b/c"]


def test_names_that_cannot_travel_are_told(tmp_path):
    write_tree(tmp_path, {"fine": b""})
    (tmp_path / os.fsdecode(b"no-\xff-text")).touch()
    refused: list[str] = []
    found = [path for path, _ in walk_own(str(tmp_path), lambda path, _: refused.append(path))]
    assert (found, refused) == (["fine"], [os.fsdecode(b"no-\xff-text")])


def test_a_directory_that_is_gone_holds_nothing(tmp_path):
    assert not has_own_files(str(tmp_path / "none"))


def test_where_it_cannot_be_seen_there_may_be_files(tmp_path, monkeypatch):
    """A trial whose machine shares the directory starts all the same."""

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert has_own_files(str(tmp_path))
    with pytest.raises(PermissionError):
        own_files(str(tmp_path))


def test_what_cannot_go_to_a_node_is_said(tmp_path, caplog):
    write_tree(tmp_path, {"fine": b""})
    (tmp_path / os.fsdecode(b"no-\xff-text")).touch()
    assert [file.path for file in own_files(str(tmp_path)).files] == ["fine"]
    assert "is not brought to the node of its trial" in caplog.text
