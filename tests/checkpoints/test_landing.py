from __future__ import annotations

import errno

import pytest

from asynctune.checkpoints.landing import Landing
from asynctune.testing import FaultyFiles
from tests.checkpoints.travel import open_below


@pytest.fixture
def files():
    return FaultyFiles()


@pytest.fixture
def landing(files):
    made = Landing(files)
    yield made
    made.close()


def test_pieces_follow_each_other_also_after_another_file(tmp_path, landing):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    landing.piece(a, 0o600, 0, b"12")
    landing.piece(b, 0o755, 0, b"x")
    landing.piece(a, 0o600, 2, b"34")
    landing.end()
    landing.end()
    assert (tmp_path / "a").read_bytes() == b"1234"
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o755


def test_a_piece_that_failed_may_come_again(tmp_path, files, landing):
    path = str(tmp_path / "a")
    landing.piece(path, 0o600, 0, b"12")
    files.fail(errno.ENOSPC, on="write", after_bytes=1)
    with pytest.raises(OSError, match="No space"):
        landing.piece(path, 0o600, 2, b"3456")
    landing.piece(path, 0o600, 2, b"abcd")
    landing.end()
    assert (tmp_path / "a").read_bytes() == b"12abcd"
    landing.piece(path, 0o600, 0, b"anew")
    assert (tmp_path / "a").read_bytes() == b"anew"


def test_a_whole_file_that_failed_leaves_none(tmp_path, files, landing):
    path = str(tmp_path / "a")
    for kind in ("write", "close"):
        files.fail(errno.ENOSPC, on=kind)
        with pytest.raises(OSError, match="No space"):
            landing.whole(path, 0o600, b"12")
        assert not list(tmp_path.iterdir())
    (tmp_path / "a").write_bytes(b"of before")
    landing.whole(path, 0o640, b"")
    assert (tmp_path / "a").read_bytes() == b""


def test_nothing_stays_open(tmp_path, files, landing):
    for end in (landing.end, landing.close):
        landing.piece(str(tmp_path / "a"), 0o600, 0, b"12")
        assert len(open_below(tmp_path)) == 1
        end()
        assert not open_below(tmp_path)
    landing.piece(str(tmp_path / "a"), 0o600, 0, b"12")
    files.fail(errno.EIO, on="close")
    with pytest.raises(OSError, match="Input/output"):
        landing.end()
    landing.end()
    landing.piece(str(tmp_path / "a"), 0o600, 0, b"12")
    files.fail(errno.EIO, on="close")
    landing.close()
