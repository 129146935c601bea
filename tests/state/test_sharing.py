from __future__ import annotations

import errno
import fcntl
import os

import pytest

from asynctune.state import sharing
from asynctune.state.epochs import HostLock
from asynctune.state.sharing import Mount, Sharing, lock_and_look, mount_of, parse_mounts

MOUNTS = r"""
22 28 0:21 / /proc rw,nosuid,relatime shared:13 - proc proc rw
28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
40 28 0:33 /home /home\040of\134all rw,relatime shared:5 master:2 - nfs4 host:/export rw,vers=4.2,local_lock=none
41 28 0:34 / /old rw - nfs host:/export rw,vers=3,nolock,local_lock=all
42 28 0:35 / /win rw - cifs //host/share rw,nobrl
43 28 0:36 / /jfs rw - fuse.juicefs JuiceFS:x rw,user_id=0
44 28 0:37 / /ssh rw - fuse.sshfs me@host: rw
45 28 0:38 / /over rw - fuse.fuse-overlayfs fuse-overlayfs rw
46 28 0:39 / /luke rw - lustre mgs@tcp:/x rw,localflock
47 28 0:40 / /odd rw - fuse thing rw
not a line
48 28 0:41 / /short rw - tmpfs
x 28 0:42 / /named rw - tmpfs tmpfs rw
"""


@pytest.fixture
def directory(tmp_path):
    found = tmp_path / ".asynctune"
    found.mkdir()
    return str(found)


def test_mounts_are_read():
    mounts = parse_mounts(MOUNTS)
    assert sorted(mounts) == [22, 28, 40, 41, 42, 43, 44, 45, 46, 47]
    assert mounts[28].point == "/"
    assert mounts[40].point == r"/home of\all"
    assert mounts[40].options == {"rw", "relatime", "vers=4.2", "local_lock=none"}
    assert parse_mounts("") == {}


@pytest.mark.parametrize(
    ("number", "is_network", "keeps_locks_here"),
    [
        (22, False, False),
        (28, False, False),
        (40, True, False),
        (41, True, True),
        (42, True, True),
        (43, True, False),
        (44, True, True),
        (45, False, False),
        (46, True, True),
        (47, True, False),
    ],
)
def test_what_a_mount_tells(number, is_network, keeps_locks_here):
    mount = parse_mounts(MOUNTS)[number]
    assert (mount.is_network, mount.keeps_locks_here) == (is_network, keeps_locks_here)


def test_an_option_of_another_filesystem_means_nothing():
    assert not Mount("/", "xfs", frozenset({"nolock"})).keeps_locks_here


def test_the_mount_of_a_directory_is_found_by_its_number(directory, tmp_path):
    for path, root in ((directory, str(tmp_path)), ("/proc", "/proc")):
        mount = mount_of(path)
        assert mount is not None
        assert os.stat(mount.point).st_dev == os.stat(path).st_dev
        assert os.path.commonpath([mount.point, os.path.realpath(root)]) == mount.point
    link = tmp_path / "link"
    link.symlink_to("/proc")
    found = mount_of(str(link))
    assert found is not None
    assert found.kind == "proc"


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        mount_of(str(tmp_path / "missing"))


def test_a_system_that_tells_nothing(directory, monkeypatch):
    monkeypatch.setattr(sharing, "_text", lambda _: "")
    lock, found = lock_and_look(directory)
    assert lock is not None
    lock.release()
    assert (found.mount, found.is_network, found.locks, found.warning) == (None, False, "working", None)


def test_a_lock_that_works(directory):
    lock, found = lock_and_look(directory)
    assert lock is not None
    assert found.locks == "working"
    assert found.warning is None
    assert HostLock.acquire(f"{directory}/LOCK") is None  # looking has not given it away
    again, seen = lock_and_look(directory)
    assert again is None
    assert seen == found
    lock.release()
    last, _ = lock_and_look(directory)
    assert last is not None
    last.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_filesystem_without_locks_is_taken_all_the_same(directory, monkeypatch, number):
    def flock(fd, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    locks = [lock_and_look(directory) for _ in range(2)]
    for lock, found in locks:
        assert lock is not None
        assert found.locks == "missing"
        assert "has no locks" in (found.warning or "")
        lock.release()
        lock.release()


def test_locks_that_are_pretended_are_found_out(directory, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda fd, operation: None)
    lock, found = lock_and_look(directory)
    assert lock is not None
    lock.release()
    assert found.locks == "pretended"
    assert "grants one lock to two" in (found.warning or "")


def test_locks_of_one_host_are_told_by_the_mount(directory, monkeypatch):
    mount = parse_mounts(MOUNTS)[41]
    monkeypatch.setattr(sharing, "mount_of", lambda _: mount)
    lock, found = lock_and_look(directory)
    assert lock is not None
    assert lock_and_look(directory) == (None, found)  # on this host they work
    lock.release()
    assert found == Sharing(directory, "this_host", mount)
    assert found.is_network
    assert found.warning is not None
    assert "(nfs at /old)" in found.warning
    assert "another host is not refused" in found.warning


def test_other_errors_are_errors(directory, monkeypatch):
    os.mkdir(f"{directory}/LOCK")
    with pytest.raises(IsADirectoryError):
        lock_and_look(directory)


def test_no_descriptor_stays_open(directory):
    before = set(os.listdir("/proc/self/fd"))
    lock, _ = lock_and_look(directory)
    assert lock is not None
    assert lock_and_look(directory)[0] is None
    lock.release()
    assert set(os.listdir("/proc/self/fd")) == before
