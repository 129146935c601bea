"""Which result files have changed, and copies of them as they were at one moment."""

from __future__ import annotations

import os

import pytest
from google_crc32c import value as crc32c

from asynctune.files import LocalFiles
from asynctune.results.freezing import Freezer, Seen, is_result_file
from asynctune.testing import FaultyFiles, ManualClock


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        *((name, True) for name in ("params.json", "result.json", "progress.csv", "stdout", "stderr")),
        *((name, True) for name in ("result.cut-12.json", "events.out.tfevents.1.oak.asynctune")),
        *(
            (name, False)
            for name in (".result.json.tmp", "checkpoint_000001", "model.bin", "result.json.bak")
        ),
        *((name, False) for name in ("events.out.tfevents.1.oak", "result.cut-x.json", ".manifest.json", "")),
    ],
)
def test_what_is_a_result_file(name, is_one):
    assert is_result_file(name) == is_one


@pytest.fixture
def freezer(tmp_path):
    made = Freezer(str(tmp_path), str(tmp_path / "stage"), LocalFiles(), ManualClock())
    made.begin()
    (tmp_path / "t").mkdir()
    return made


def test_a_copy_is_as_the_file_was(freezer, tmp_path):
    (tmp_path / "t/result.json").write_bytes(b"1\n" * 1_000_000)
    frozen = freezer.freeze("t", "result.json", 1, b"")
    assert (frozen.name, frozen.size_bytes) == ("result.json", 2_000_000)
    assert frozen.crc32c == crc32c(b"1\n" * 1_000_000)
    with open(tmp_path / "t/result.json", "ab") as file:
        file.write(b"2\n")
    with open(frozen.path, "rb") as file:
        assert file.read() == b"1\n" * 1_000_000
    freezer.discard([frozen.path])
    freezer.discard([frozen.path])
    assert os.listdir(tmp_path / "stage") == []


def test_an_unchanged_file_is_passed_over(freezer, tmp_path):
    path = tmp_path / "t/result.json"
    path.write_bytes(b"1\n")
    frozen = freezer.freeze("t", "result.json", 1, b"")
    assert len(frozen.stamp) == 8
    assert freezer.freeze("t", "result.json", 2, frozen.stamp) is None
    os.utime(path, ns=(1, 1))
    assert freezer.freeze("t", "result.json", 3, frozen.stamp) is not None
    path.write_bytes(b"12\n")
    assert freezer.freeze("t", "result.json", 4, frozen.stamp) is not None
    os.link(path, tmp_path / "t/other")
    os.replace(tmp_path / "t/other", path)
    path.unlink()
    assert freezer.freeze("t", "result.json", 5, frozen.stamp) is None, "there is none"


def test_a_file_that_changed_just_now_may_change_again_unseen(freezer, tmp_path):
    path = tmp_path / "t/result.json"
    path.write_bytes(b"1\n")
    os.utime(path, (freezer._clock.time(),) * 2)
    frozen = freezer.freeze("t", "result.json", 1, b"")
    assert frozen.stamp == b""
    seen = Seen()
    seen.note("t", [frozen])
    assert freezer.freeze("t", "result.json", 2, seen.stamp("t", "result.json")) is not None


def test_a_file_that_is_cut_while_it_is_copied_is_copied_as_it_is(tmp_path):
    class Cutting(LocalFiles):
        def read_from(self, path, offset, limit=None):
            if offset:
                os.truncate(path, 10)
            return super().read_from(path, offset, limit)

    (tmp_path / "t").mkdir()
    (tmp_path / "t/stdout").write_bytes(b"x" * 3_000_000)
    freezer = Freezer(str(tmp_path), str(tmp_path / "stage"), Cutting(), ManualClock())
    freezer.begin()
    frozen = freezer.freeze("t", "stdout", 1, b"")
    assert frozen is not None
    assert (frozen.size_bytes, frozen.crc32c) == (1 << 20, crc32c(b"x" * (1 << 20)))


def test_names_and_links(freezer, tmp_path):
    assert freezer.names("missing") == []
    for name in ("stdout", "result.json", "weights", "params.json"):
        (tmp_path / "t" / name).write_bytes(b"")
    assert freezer.names("t") == ["params.json", "result.json", "stdout"]
    os.symlink("/etc/hostname", tmp_path / "t/stderr")
    assert freezer.freeze("t", "stderr", 1, b"") is None


def test_what_an_earlier_opening_left_is_removed(freezer, tmp_path):
    (tmp_path / "t/result.json").write_bytes(b"1\n")
    freezer.freeze("t", "result.json", freezer.number(), b"")
    (tmp_path / "stage/of-others").write_bytes(b"")
    freezer.begin()
    assert os.listdir(tmp_path / "stage") == ["of-others"]


@pytest.mark.parametrize("kind", ["create", "write", "close"])
def test_a_full_disk_leaves_no_copy(tmp_path, kind):
    disk = FaultyFiles()
    (tmp_path / "t").mkdir()
    (tmp_path / "t/result.json").write_bytes(b"1\n")
    freezer = Freezer(str(tmp_path), str(tmp_path / "stage"), disk, ManualClock())
    freezer.begin()
    disk.fail(on=kind)
    with pytest.raises(OSError, match=r"."):
        freezer.freeze("t", "result.json", 1, b"")
    disk.heal()
    assert os.listdir(tmp_path / "stage") == []


def test_what_was_seen_is_kept_by_trial_and_file(freezer, tmp_path):
    seen = Seen()
    (tmp_path / "t/result.json").write_bytes(b"1\n")
    (tmp_path / "t/params.json").write_bytes(b"{}")
    both = [
        freezer.freeze("t", name, index, b"") for index, name in enumerate(("result.json", "params.json"))
    ]
    seen.note("t", both)
    seen.note("u", both[:1])
    assert [seen.stamp("t", each.name) for each in both] == [each.stamp for each in both]
    assert seen.stamp("u", "params.json") == seen.stamp("v", "result.json") == b""
    assert len(seen._stamps["t"]) == 24
