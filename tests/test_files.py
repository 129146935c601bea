"""The operating system through `LocalFiles`, for real: permission bits, claims, short writes, odd files."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from asynctune.files import DIR_MODE, FILE_MODE, LocalFiles, is_disk_full


@pytest.fixture
def files():
    return LocalFiles()


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def write(files: LocalFiles, path, data: bytes) -> None:
    fd = files.create(str(path))
    try:
        files.write_all(fd, data)
    finally:
        files.close(fd)


# -- permission bits ---------------------------------------------------------------------------------------

UMASKS = pytest.mark.parametrize("mask", [0, 0o022, 0o777])


@UMASKS
def test_what_is_made_is_private_whatever_the_umask(files, tmp_path, mask):
    file, directory = str(tmp_path / "file"), str(tmp_path / "directory")
    with umask(mask):
        files.close(files.create(file))
        files.make_dir(directory)
    assert mode_of(file) == FILE_MODE == 0o600
    assert mode_of(directory) == DIR_MODE == 0o700


@UMASKS
def test_other_bits_are_exactly_those_asked_for(files, tmp_path, mask):
    file, directory = str(tmp_path / "file"), str(tmp_path / "directory")
    with umask(mask):
        fd = files.create(file, 0o644)
        files.make_dir(directory, 0o755)
    assert (mode_of(file), mode_of(directory)) == (0o644, 0o755)
    files.set_mode(fd, 0o666)
    files.close(fd)
    assert mode_of(file) == 0o666


@pytest.mark.parametrize(("mask", "left"), [(0, 0o777), (0o027, 0o750)])
def test_a_plain_directory_has_the_bits_that_the_umask_leaves(files, tmp_path, mask, left):
    path = str(tmp_path / "plain")
    with umask(mask):
        files.make_plain_dir(path)
    assert mode_of(path) == left


# -- new names ---------------------------------------------------------------------------------------------


def test_create_refuses_a_name_that_is_there(files, tmp_path):
    kept = tmp_path / "kept"
    kept.write_bytes(b"kept")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "directory").mkdir()
    for name in ("kept", "dangling", "directory"):
        with pytest.raises(FileExistsError):
            files.create(str(tmp_path / name))
    assert kept.read_bytes() == b"kept"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("make", ["make_dir", "make_plain_dir"])
def test_making_a_directory_refuses_a_name_that_is_there(files, tmp_path, make):
    path = tmp_path / "there"
    path.mkdir(mode=0o751)
    before = mode_of(path)
    with pytest.raises(FileExistsError):
        getattr(files, make)(str(path))
    assert mode_of(path) == before
    with pytest.raises(FileNotFoundError):
        getattr(files, make)(str(tmp_path / "no" / "parents"))


def test_a_link_is_a_claim(files, tmp_path):
    ours, theirs, name = (str(tmp_path / each) for each in ("ours", "theirs", "name"))
    write(files, ours, b"ours")
    write(files, theirs, b"theirs")
    files.link(ours, name)
    with pytest.raises(FileExistsError):
        files.link(theirs, name)
    files.unlink(ours)
    assert files.read(name) == b"ours"


def test_a_rename_replaces_a_file(files, tmp_path):
    new, name = str(tmp_path / "new"), str(tmp_path / "name")
    write(files, name, b"old")
    write(files, new, b"new")
    files.rename(new, name)
    assert files.read(name) == b"new"
    assert files.list_dir(str(tmp_path)) == ["name"]


def test_descriptors_are_closed_in_a_child(files, tmp_path):
    path = str(tmp_path / "file")
    for opened in (files.create, files.open_append, files.open_read):
        fd = opened(path)
        try:
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        finally:
            files.close(fd)


# -- writing -----------------------------------------------------------------------------------------------


class ShortFiles(LocalFiles):
    """Writes at most three bytes at a time, for real."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> int:
        self.counts.append(super().write(fd, memoryview(data)[:3]))
        return self.counts[-1]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_short_writes_are_gone_on_with(tmp_path, kind):
    files, path = ShortFiles(), str(tmp_path / "file")
    fd = files.create(path)
    files.write_all(fd, kind(b"0123456789"))
    files.write_all(fd, kind(b""))
    files.close(fd)
    assert files.read(path) == b"0123456789"
    assert files.counts == [3, 3, 3, 1]


def test_a_pipe_that_takes_only_a_part_writes_short(files):
    # The system's own short write: a pipe holds less than is offered, and must not wait.
    reading, writing = os.pipe2(os.O_NONBLOCK)
    try:
        count = files.write(writing, bytes(1 << 22))
        assert 0 < count < 1 << 22
        with pytest.raises(BlockingIOError):
            files.write_all(writing, bytes(1 << 22))
    finally:
        os.close(reading)
        os.close(writing)


def test_a_write_of_nothing_is_an_error_and_not_for_ever(tmp_path):
    class Nothing(LocalFiles):
        def write(self, fd: int, data: bytes | bytearray | memoryview) -> int:
            return 0

    files = Nothing()
    fd = files.create(str(tmp_path / "file"))
    with pytest.raises(OSError, match="wrote nothing") as failed:
        files.write_all(fd, b"data")
    files.close(fd)
    assert failed.value.errno == errno.EIO


def test_appending_makes_the_file_and_then_goes_on(files, tmp_path):
    path = str(tmp_path / "file")
    for part in (b"one", b"two"):
        fd = files.open_append(path)
        files.write_all(fd, part)
        files.close(fd)
    assert files.read(path) == b"onetwo"
    files.truncate(path, 4)
    assert files.read(path) == b"onet"


def test_a_full_disk_is_told_by_its_number():
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert is_disk_full(OSError(number, os.strerror(number)))
    assert not is_disk_full(OSError(errno.EIO, "broken"))
    assert not is_disk_full(ValueError(errno.ENOSPC))


def test_a_real_full_disk_is_told(files):
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left") as failed:
            files.write_all(fd, b"data")
    finally:
        os.close(fd)
    assert is_disk_full(failed.value)


# -- syncing -----------------------------------------------------------------------------------------------


def test_files_and_directories_are_synced_and_others_complained_about(files, tmp_path):
    path = str(tmp_path / "file")
    fd = files.create(path)
    files.sync_data(fd)
    files.sync(fd)
    files.close(fd)
    for call in (files.sync_data, files.sync, files.close):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call(fd)
    files.sync_dir(str(tmp_path))
    with pytest.raises(NotADirectoryError):
        files.sync_dir(path)
    with pytest.raises(FileNotFoundError):
        files.sync_dir(str(tmp_path / "nowhere"))


def test_a_directorys_sync_is_one_sync_of_that_directory_and_leaks_nothing(tmp_path):
    synced = []

    class Watched(LocalFiles):
        def sync(self, fd: int) -> None:
            synced.append((fd, os.fstat(fd).st_ino))
            raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        Watched().sync_dir(str(tmp_path))
    [(fd, inode)] = synced
    assert inode == tmp_path.stat().st_ino
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_filesystem_is_synced_where_that_can_be_trusted(files, tmp_path, monkeypatch):
    fd = files.open_read(str(tmp_path))
    try:
        if files.sync_filesystem(fd):
            with monkeypatch.context() as old:
                old.setattr("asynctune.files._kernel", lambda: (5, 7))
                assert not files.sync_filesystem(fd), "it reports no failed write"
    finally:
        files.close(fd)
    proc = files.open_read("/proc")
    try:
        assert not files.sync_filesystem(proc)
    finally:
        files.close(proc)
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.sync_filesystem(fd)


@pytest.mark.parametrize("missing", ["ctypes", "syncfs"])
def test_a_filesystem_is_not_synced_where_the_call_is_missing(files, tmp_path, monkeypatch, missing):
    if missing == "ctypes":
        monkeypatch.setitem(sys.modules, "ctypes", None)
    else:
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    fd = files.open_read(str(tmp_path))
    try:
        assert not files.sync_filesystem(fd)
    finally:
        files.close(fd)


# -- reading -----------------------------------------------------------------------------------------------


def test_a_fifo_is_refused_and_hangs_nobody(files, tmp_path):
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file") as refused:
        files.read(path)
    assert refused.value.filename == path
    with pytest.raises(OSError, match="Illegal seek"):
        files.read_from(path, 0)
    files.close(files.open_read(path))


def test_a_directory_is_refused(files, tmp_path):
    with pytest.raises(OSError, match="not a regular file"):
        files.read(str(tmp_path))
    with pytest.raises(IsADirectoryError):
        files.read_from(str(tmp_path), 0)


def test_a_symbolic_link_is_not_opened_for_keeping(files, tmp_path):
    write(files, tmp_path / "file", b"data")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic links") as refused:
        files.open_read(str(tmp_path / "link"))
    assert refused.value.errno == errno.ELOOP
    assert files.read(str(tmp_path / "link")) == b"data"


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 200_000])
def test_the_whole_of_a_file(files, tmp_path, size):
    path, data = str(tmp_path / "file"), os.urandom(size)
    write(files, path, data)
    assert files.read(path) == data


def test_a_file_that_says_it_is_empty_is_read(files):
    # procfs: the size is 0, whatever the file holds.
    assert os.stat("/proc/self/status").st_size == 0
    assert files.read("/proc/self/status").startswith(b"Name:")


@pytest.mark.parametrize(
    ("offset", "limit", "expected"),
    [
        (0, None, b"0123456789"),
        (4, None, b"456789"),
        (10, None, b""),
        (99, None, b""),
        (0, 0, b""),
        (0, 4, b"0123"),
        (8, 4, b"89"),
        (3, 1, b"3"),
    ],
)
def test_a_part_of_a_file(files, tmp_path, offset, limit, expected):
    path = str(tmp_path / "file")
    write(files, path, b"0123456789")
    assert files.read_from(path, offset, limit) == expected


def test_a_part_larger_than_one_read(files, tmp_path):
    path, data = str(tmp_path / "file"), os.urandom((5 << 19) + 7)
    write(files, path, data)
    assert files.read_from(path, 3) == data[3:]
    assert files.read_from(path, 3, (1 << 20) + 1) == data[3 : (1 << 20) + 4]


# -- looking and removing ----------------------------------------------------------------------------------


def test_a_dangling_link_is_there(files, tmp_path):
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    assert files.exists(str(link))
    assert stat.S_ISLNK(files.stat(str(link)).st_mode)
    assert not files.exists(str(tmp_path / "nowhere"))
    assert files.list_dir(str(tmp_path)) == ["link"]


def test_a_tree_is_removed_and_what_it_links_to_is_not(files, tmp_path):
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    outside.mkdir()
    write(files, outside / "kept", b"")
    (tree / "deep/link").symlink_to(outside)
    with pytest.raises(OSError, match="not empty"):
        files.remove_dir(str(tree))
    files.remove_tree(str(tree))
    assert files.list_dir(str(tmp_path)) == ["outside"]
    assert (outside / "kept").exists()
    (tmp_path / "link").symlink_to(outside)
    with pytest.raises(OSError, match="symbolic link"):
        files.remove_tree(str(tmp_path / "link"))
    assert (outside / "kept").exists()


def test_a_clone_has_the_same_bytes_or_says_that_it_cannot_be_made(files, tmp_path):
    write(files, tmp_path / "source", b"data" * 5000)
    source, target = files.open_read(str(tmp_path / "source")), files.create(str(tmp_path / "target"))
    try:
        done = files.clone(source, target)
    finally:
        files.close(source)
        files.close(target)
    assert files.read(str(tmp_path / "target")) == (b"data" * 5000 if done else b"")
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.clone(source, target)
