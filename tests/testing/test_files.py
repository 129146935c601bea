"""The disk that fails when told to."""

from __future__ import annotations

import errno
import inspect
import os
import threading
from pathlib import Path

import pytest

from asynctune.files import LocalFiles
from asynctune.testing import CHANGES, LOOKS, FaultyFiles


def test_every_operation_of_the_disk_is_counted():
    public = {name for name, _ in inspect.getmembers(LocalFiles, inspect.isfunction) if name[0] != "_"}
    assert public - {"write_all"} == CHANGES | LOOKS
    assert not [name for name in public - {"write_all"} if name not in vars(FaultyFiles)]


def test_without_faults_it_is_the_plain_disk(tmp_path):
    files, path = FaultyFiles(), f"{tmp_path}/a"
    fd = files.create(path)
    files.write_all(fd, b"hello")
    files.sync_data(fd)
    files.close(fd)
    files.sync_dir(str(tmp_path))
    files.link(path, f"{path}2")
    files.rename(f"{path}2", f"{path}3")
    assert files.read(path) == b"hello"
    assert files.read_from(f"{path}3", 1, 3) == b"ell"
    assert sorted(files.list_dir(str(tmp_path))) == ["a", "a3"]
    files.unlink(path)
    assert not files.exists(path)
    kinds = [(operation.kind, os.path.basename(operation.path)) for operation in files.log]
    assert kinds[:5] == [
        ("create", "a"),
        ("write", "a"),
        ("sync_data", "a"),
        ("close", "a"),
        ("sync_dir", tmp_path.name),
    ]
    assert [operation.number for operation in files.log] == list(range(1, len(kinds) + 1))
    assert files.count(CHANGES) == 8
    assert files.count("read") == 1


def test_the_nth_operation_of_a_kind_fails_and_no_other(tmp_path):
    files = FaultyFiles()
    fault = files.fail(errno.ENOSPC, on="create", nth=3)
    made, errors = [], []
    for name in "abcde":
        try:
            files.close(files.create(f"{tmp_path}/{name}"))
            made.append(name)
        except OSError as error:
            errors.append((error.errno, error.filename))
    assert errors == [(errno.ENOSPC, f"{tmp_path}/c")]
    assert made == ["a", "b", "d", "e"]
    assert fault.hits == 1


def test_the_nth_of_all_operations_fails(tmp_path):
    files = FaultyFiles()
    files.fail(nth=2)
    assert not files.exists(f"{tmp_path}/x")
    with pytest.raises(OSError, match="x") as caught:
        files.create(f"{tmp_path}/x")
    assert caught.value.errno == errno.EIO
    assert files.list_dir(str(tmp_path)) == []


def test_a_lasting_fault_goes_on_until_it_is_healed(tmp_path):
    files = FaultyFiles()
    fault = files.fail(errno.EROFS, on=CHANGES, nth=2, lasting=True)
    files.make_dir(f"{tmp_path}/a")
    for _ in range(3):
        with pytest.raises(OSError, match="Read-only"):
            files.make_dir(f"{tmp_path}/b")
    assert files.list_dir(str(tmp_path)) == ["a"]
    assert fault.hits == 3
    files.heal()
    files.make_dir(f"{tmp_path}/b")


def test_a_short_write_says_so_and_write_all_goes_on(tmp_path):
    files = FaultyFiles()
    fd = files.create(f"{tmp_path}/a")
    files.cut(2)
    assert files.write(fd, b"hello") == 2
    files.cut(100)
    assert files.write(fd, b"lo") == 1
    files.cut(3)
    files.write_all(fd, b"world")
    files.close(fd)
    assert files.read(f"{tmp_path}/a") == b"helworld"


def test_a_write_that_fails_in_the_middle(tmp_path):
    files = FaultyFiles()
    fd = files.create(f"{tmp_path}/a")
    for after, number in ((3, errno.EIO), (100, errno.ENOSPC)):
        files.fail(number, on="write", after_bytes=after)
        with pytest.raises(OSError) as caught:
            files.write_all(fd, b"hello")
        assert caught.value.errno == number
    files.close(fd)
    assert files.read(f"{tmp_path}/a") == b"helhell"


def test_an_operation_that_was_done_but_is_reported_as_failed(tmp_path):
    files = FaultyFiles()
    Path(f"{tmp_path}/a").touch()
    files.fail(on="link", applied=True)
    with pytest.raises(OSError, match="b"):
        files.link(f"{tmp_path}/a", f"{tmp_path}/b")
    assert files.exists(f"{tmp_path}/b")


def test_a_failing_close_closes(tmp_path):
    files = FaultyFiles()
    fd = files.create(f"{tmp_path}/a")
    files.fail(on="close")
    with pytest.raises(OSError, match="a"):
        files.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_callback_runs_before_in_the_thread_and_may_raise(tmp_path):
    files, seen = FaultyFiles(), []

    def look(operation):
        seen.append((operation.kind, os.path.exists(operation.path), threading.current_thread()))

    files.call(look, on="create")
    fd = files.create(f"{tmp_path}/a")
    files.close(fd)
    assert seen == [("create", False, threading.current_thread())]

    def refuse(_operation):
        raise KeyboardInterrupt

    files.call(refuse, on="create", lasting=True)
    with pytest.raises(KeyboardInterrupt):
        files.create(f"{tmp_path}/b")
    assert not os.path.exists(f"{tmp_path}/b")


def test_threads_share_the_count(tmp_path):
    files, failed = FaultyFiles(), []
    files.fail(on="exists", nth=150)

    def work():
        for _ in range(100):
            try:
                files.exists(str(tmp_path))
            except OSError:
                failed.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [1]
    assert [operation.number for operation in files.log] == list(range(1, 401))


def test_a_fault_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="fsync"):
        FaultyFiles().fail(on="fsync")
    with pytest.raises(ValueError, match="from 1"):
        FaultyFiles().fail(nth=0)
