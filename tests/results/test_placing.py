"""Writing projections, and syncing them when asked."""

from __future__ import annotations

import errno

import pytest

from asynctune.results.placing import Placer
from asynctune.testing import CHANGES, FaultyFiles


@pytest.fixture
def disk():
    return FaultyFiles()


@pytest.fixture
def placer(tmp_path, disk):
    return Placer(str(tmp_path), disk)


def test_an_append_that_fails_is_cut_back(placer, disk, tmp_path):
    path = str(tmp_path / "trial/file")
    placer.append(path, b"one\n", size=None)
    disk.fail(errno.ENOSPC, on="write", after_bytes=2)
    with pytest.raises(OSError, match="No space"):
        placer.append(path, b"two\n", size=4)
    assert placer.read(path) == b"one\n"


def test_a_short_write_goes_on(placer, disk, tmp_path):
    disk.cut(2)
    placer.append(str(tmp_path / "trial/file"), b"whole\n", size=None)
    assert placer.read(str(tmp_path / "trial/file")) == b"whole\n"


@pytest.mark.parametrize("nth", range(1, 7))
def test_a_replacement_is_whole_or_not_at_all(placer, disk, tmp_path, nth):
    path = str(tmp_path / "trial/file")
    placer.append(path, b"old", size=None)
    disk.fail(errno.EIO, on=CHANGES - {"unlink"}, nth=nth, after_bytes=1)
    try:
        placer.replace(path, b"new", durable=True)
    except OSError:
        assert placer.read(path) in {b"old", b"new"}
    else:
        assert placer.read(path) == b"new"
    assert placer.names(str(tmp_path / "trial")) == ["file"]


def test_what_is_left_of_a_crash_is_replaced(placer, tmp_path):
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial/.file.tmp").write_bytes(b"half of something long")
    placer.replace(str(tmp_path / "trial/file"), b"new")
    assert placer.read(str(tmp_path / "trial/file")) == b"new"
    assert placer.names(str(tmp_path / "trial")) == ["file"]


def test_sync_stops_when_asked_and_goes_on_later(placer, disk, tmp_path):
    for number in range(5):
        placer.append(str(tmp_path / f"{number}/file"), b"x", size=None)
    placer.sync(lambda: disk.count("sync_data") >= 2)
    assert (disk.count("sync_data"), disk.count("sync_dir")) == (2, 1)
    placer.sync()
    assert (disk.count("sync_data"), disk.count("sync_dir")) == (5, 6)


def test_one_failed_sync_does_not_hold_up_the_others(placer, disk, tmp_path):
    for number in range(5):
        placer.append(str(tmp_path / f"{number}/file"), b"x", size=None)
    disk.fail(errno.EIO, on="sync_data")
    with pytest.raises(OSError, match="Input/output"):
        placer.sync()
    assert disk.count("sync_data") == 5
    disk.fail(errno.EIO, on="sync")
    with pytest.raises(OSError, match="Input/output"):
        placer.sync()
    placer.sync()
    assert disk.count("sync_data") == 5
    assert disk.count("rename") == 1
    count = disk.count(CHANGES)
    placer.sync()
    assert disk.count(CHANGES) == count


def test_what_is_not_there(placer, tmp_path):
    assert placer.read(str(tmp_path / "no")) is None
    assert placer.size(str(tmp_path / "no")) is None
    assert placer.names(str(tmp_path / "no")) == []
