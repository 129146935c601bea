"""The lock of one host, and the claims that hold between hosts."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from asynctune.errors import FencedError, StorageError
from asynctune.files import LocalFiles
from asynctune.state import epochs
from asynctune.state.codec import FrameError, FrameType, encode_fields, encode_frame
from asynctune.state.epochs import (
    Claim,
    HostLock,
    check_claim,
    claim_epoch,
    host_info,
    is_alive,
    is_fenced,
    list_epochs,
    locked_error,
    new_claim,
    read_claim,
)
from asynctune.testing import CHANGES, FaultyFiles, ManualClock
from tests.state.examples import claim_of

FILES = LocalFiles()


@pytest.fixture
def directory(tmp_path) -> str:
    return str(tmp_path)


def claim(directory: str, files: LocalFiles = FILES, **options) -> Claim:
    return claim_epoch(directory, files, ManualClock(time=1_764_000_000.0), **options)


# -- claims ------------------------------------------------------------------------------------------------


def test_claims_count_up_and_come_back(directory):
    first, second = claim(directory), claim(directory)
    assert (first.epoch, second.epoch) == (1, 2)
    assert first.nonce != second.nonce
    assert len(first.nonce) == 16
    assert list_epochs(directory, FILES) == [1, 2]
    assert read_claim(directory, 2, FILES) == second
    assert (second.pid, second.opened_at) == (os.getpid(), 1_764_000_000.0)
    assert (second.hostname, second.pid, second.started) == host_info()
    assert os.stat(f"{directory}/epoch-1").st_mode & 0o777 == 0o600
    assert sorted(os.listdir(directory)) == ["epoch-1", "epoch-2"]


def test_a_higher_claim_fences(directory):
    first = claim(directory)
    assert not is_fenced(directory, first.epoch, FILES)
    second = claim(directory)
    assert is_fenced(directory, first.epoch, FILES)
    assert not is_fenced(directory, second.epoch, FILES)


def test_old_claims_go_and_their_owners_are_fenced_all_the_same(directory):
    made = [claim(directory) for _ in range(30)]
    assert list_epochs(directory, FILES) == list(range(23, 31))
    assert all(is_fenced(directory, each.epoch, FILES) for each in made[:-1])
    assert not is_fenced(directory, 30, FILES)


class Remembering(LocalFiles):
    """A network filesystem that remembers that names were missing."""

    def exists(self, path: str) -> bool:
        return False


def test_on_a_network_a_missing_name_proves_nothing(directory):
    files = Remembering()
    mine = claim(directory).epoch
    assert not is_fenced(directory, mine, files, shared=True)
    check_claim(directory, mine, files, shared=True)
    other = claim(directory, at_least=mine + 5).epoch
    assert is_fenced(directory, mine, files, shared=True)
    assert not is_fenced(directory, other, files, shared=True)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "local"])
def test_who_is_fenced_is_told_so(directory, shared):
    first, second = claim(directory), claim(directory)
    check_claim(directory, second.epoch, FILES, shared=shared)
    with pytest.raises(FencedError, match="taken over"):
        check_claim(directory, first.epoch, FILES, shared=shared)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "local"])
def test_a_directory_that_is_gone_fences_nobody(directory, shared):
    with pytest.raises(StorageError, match="is gone"):
        check_claim(f"{directory}/gone", 1, FILES, shared=shared)


def test_a_shared_directory_that_cannot_be_looked_at_is_an_error(directory):
    files = FaultyFiles()
    mine = claim(directory, files)
    files.fail(errno.EIO, on="list_dir")
    with pytest.raises(StorageError, match="cannot be listed"):
        check_claim(directory, mine.epoch, files, shared=True)
    check_claim(directory, mine.epoch, files, shared=True)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_filesystem_without_hard_links_is_named(directory, number):
    files = FaultyFiles()
    files.fail(number, on="link")
    with pytest.raises(StorageError, match="makes no hard links") as caught:
        claim(directory, files)
    assert caught.value.operation == "claim"
    assert "another filesystem" in (caught.value.hint or "")
    assert os.listdir(directory) == []


def test_an_epoch_can_be_asked_to_be_higher(directory):
    assert claim(directory, at_least=7).epoch == 7
    assert claim(directory, at_least=3).epoch == 8


def test_a_claim_made_elsewhere_is_made_here_with_its_number_and_nonce(directory):
    claim(directory)
    given = claim_of(7)
    assert claim(directory, given=given) == given
    assert read_claim(directory, 7, FILES) == given
    assert is_fenced(directory, 1, FILES)


def test_a_number_that_is_left_out_fences_every_lower_claim(directory):
    lower = [claim(directory) for _ in range(3)]
    claim(directory, at_least=7)
    assert list_epochs(directory, FILES) == [7]
    assert all(is_fenced(directory, each.epoch, FILES) for each in lower)
    claim(directory)
    assert list_epochs(directory, FILES) == [7, 8]
    assert is_fenced(directory, 7, FILES)
    # as a claim that was killed before it had tidied up leaves it
    Path(directory, "epoch-12").write_bytes(b"")
    claim(directory, at_least=13)
    assert list_epochs(directory, FILES) == [12, 13]
    assert all(is_fenced(directory, number, FILES) for number in (7, 8, 12))


@pytest.mark.parametrize("order", ["lower first", "higher first"])
def test_of_two_numbers_claimed_in_the_same_moment_one_goes_on(directory, order):
    """Both have listed the claims before either of them links its own."""
    claim(directory)
    files = FaultyFiles()
    if order == "lower first":
        files.call(lambda _operation: claim(directory), on="link")
        made = claim(directory, files, given=claim_of(7))
        assert is_fenced(directory, 2, FILES)
        assert not is_fenced(directory, made.epoch, FILES)
    else:
        files.call(lambda _operation: claim(directory, given=claim_of(7)), on="link")
        with pytest.raises(FencedError, match="epoch 7"):
            claim(directory, files)
        assert not is_fenced(directory, 7, FILES)
    assert is_fenced(directory, 1, FILES)


@pytest.mark.parametrize("epoch", [3, 2])
def test_a_claim_made_elsewhere_that_is_not_the_highest_is_refused(directory, epoch):
    claim(directory, at_least=3)
    with pytest.raises(FencedError, match="epoch 3"):
        claim(directory, given=claim_of(epoch, b"x" * 16))
    assert os.listdir(directory) == ["epoch-3"]


def test_a_new_claim_is_of_this_process_and_nobody_knows_of_it(directory):
    made = new_claim(5, ManualClock(time=1_764_000_000.0))
    assert (made.epoch, made.opened_at, made.pid) == (5, 1_764_000_000.0, os.getpid())
    assert new_claim(5, ManualClock()).nonce != made.nonce
    assert os.listdir(directory) == []


def test_of_many_claims_at_the_same_moment_each_number_has_one_owner(directory):
    together = threading.Barrier(8)

    def race(_number: int) -> Claim | None:
        together.wait()
        try:
            return claim(directory)
        except FencedError:
            return None

    with ThreadPoolExecutor(8) as pool:
        won = [each for each in pool.map(race, range(8)) if each is not None]
    assert won
    numbers = [each.epoch for each in won]
    assert len(set(numbers)) == len(numbers)
    assert [read_claim(directory, each.epoch, FILES) for each in won] == won
    assert sum(not is_fenced(directory, number, FILES) for number in numbers) == 1
    assert not [name for name in os.listdir(directory) if name.startswith(".")]


def test_the_loser_of_a_race_is_told_to_retry(directory):
    files = FaultyFiles()
    files.call(lambda _operation: claim(directory), on="link")
    with pytest.raises(FencedError, match="retry"):
        claim(directory, files)
    assert os.listdir(directory) == ["epoch-1"]


def test_a_link_whose_reply_was_lost_is_settled_by_the_nonce(directory):
    files = FaultyFiles()
    files.fail(errno.EIO, on="link", applied=True)
    made = claim(directory, files)
    assert read_claim(directory, 1, FILES) == made


def test_a_lost_reply_does_not_settle_for_somebody_elses_claim(directory):
    files = FaultyFiles()
    files.call(lambda _operation: claim(directory), on="link")
    files.fail(errno.EIO, on="link")
    with pytest.raises(StorageError):
        claim(directory, files)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failure_at_any_operation_says_so_and_leaves_no_temporary_file(directory, number):
    failing = CHANGES - {"unlink"}
    files = FaultyFiles()
    claim(directory, files)
    for nth in range(1, files.count(failing) + 1):
        files = FaultyFiles()
        fault = files.fail(number, on=failing, nth=nth, after_bytes=9)
        with pytest.raises(StorageError, match=os.strerror(number)) as caught:
            claim(directory, files)
        assert fault.hits == 1
        assert caught.value.operation == "claim"
        assert not [name for name in os.listdir(directory) if name.startswith(".")]
    assert claim(directory).epoch > 1


@pytest.mark.parametrize("change", ["cut", "longer", "number", "type", "fields"])
def test_a_damaged_claim_is_refused(directory, change):
    made = claim(directory)
    path = Path(directory, "epoch-1")
    data = path.read_bytes()
    fields = encode_fields(made.fields())
    path.write_bytes(
        {
            "cut": data[:-1],
            "longer": data + b"\0",
            "number": encode_frame(
                FrameType.CLAIM, encode_fields(replace(made, epoch=2).fields()), epoch=1, seq=0, prev=0
            ),
            "type": encode_frame(FrameType.SEGMENT, fields, epoch=1, seq=0, prev=0),
            "fields": encode_frame(FrameType.CLAIM, encode_fields({"epoch": 1}), epoch=1, seq=0, prev=0),
        }[change]
    )
    with pytest.raises(FrameError):
        read_claim(directory, 1, FILES)


@pytest.mark.parametrize("name", ["epoch", "nonce", "hostname", "pid", "started", "opened_at"])
def test_a_claim_with_a_field_of_the_wrong_type_is_refused(name):
    fields = claim_of(3).fields()
    assert Claim.from_fields(fields) == claim_of(3)
    with pytest.raises(FrameError):
        Claim.from_fields(fields | {name: None})
    del fields[name]
    with pytest.raises(FrameError):
        Claim.from_fields(fields)


def test_other_names_are_no_claims(directory):
    for name in ("epoch-0", "epoch-01", "epoch-x", "epoch-\u0661", "epoch-1.tmp", ".claim-ab"):
        Path(directory, name).touch()
    assert list_epochs(directory, FILES) == []


# -- who is alive --------------------------------------------------------------------------------------------


def test_this_process_is_alive_and_one_that_ended_is_not(directory):
    mine = claim(directory)
    assert is_alive(mine) is True
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    assert is_alive(replace(mine, pid=int(ended.stdout))) is False


def test_another_process_with_the_same_id_is_not_taken_for_the_owner(directory):
    assert is_alive(replace(claim(directory), started="another boot/1")) is False
    assert is_alive(replace(claim(directory), started="")) is True


def test_of_another_host_nothing_is_known(directory):
    assert is_alive(replace(claim(directory), hostname="elsewhere.example")) is None


# -- the lock ----------------------------------------------------------------------------------------------


def test_the_lock_is_held_once_and_given_back(directory):
    path = f"{directory}/LOCK"
    lock = HostLock.acquire(path)
    assert lock is not None
    assert HostLock.acquire(path) is None
    lock.release()
    lock.release()
    again = HostLock.acquire(path)
    assert again is not None
    again.release()
    assert os.stat(path).st_size == 0
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_lock_that_cannot_be_taken_at_all_is_an_error(directory, monkeypatch):
    def no_locks(_fd, _operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="no locks"):
        HostLock.acquire(f"{directory}/LOCK")
    os.mkdir(f"{directory}/DIR")
    with pytest.raises(IsADirectoryError):
        HostLock.acquire(f"{directory}/DIR")


def test_another_process_is_refused_until_the_holder_is_killed(directory):
    path = f"{directory}/LOCK"
    script = (
        "import sys, time\nfrom asynctune.state.epochs import HostLock\n"
        "lock = HostLock.acquire(sys.argv[1])\nprint(lock is not None, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(epochs.__file__).parents[2])},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert HostLock.acquire(path) is None
        other.kill()
        other.wait()
    lock = HostLock.acquire(path)
    assert lock is not None
    lock.release()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_lock(directory):
    path = f"{directory}/LOCK"
    lock = HostLock.acquire(path)
    assert lock is not None
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        os.write(tell, b"running")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(told, 7) == b"running"
        assert HostLock.acquire(path) is None
        lock.release()
        again = HostLock.acquire(path)
        assert again is not None
        again.release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        os.close(tell)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_holds_the_guard_does_not_hang(directory):
    lock = HostLock.acquire(f"{directory}/LOCK")
    assert lock is not None
    with epochs._held_guard:
        child = os.fork()
        if child == 0:  # pragma: no cover - in the child
            os._exit(0 if lock._fd is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lock.release()


def test_the_refusal_names_the_holder(directory):
    made = claim(directory)
    error = locked_error(directory, FILES)
    assert (error.pid, error.hostname, error.since) == (made.pid, made.hostname, made.opened_at)
    assert str(made.pid) in str(error)
    assert made.hostname in str(error)
    assert "2025-11-24 16:00:00 UTC" in str(error)
    assert 'mode="read"' in str(error)
    assert os.path.dirname(directory) in str(error)


def test_the_refusal_with_a_damaged_claim_names_the_one_before(directory):
    first = claim(directory)
    claim(directory)
    Path(directory, "epoch-2").write_bytes(b"damaged")
    assert locked_error(directory, FILES).since == first.opened_at


def test_the_refusal_without_any_claim_says_that_it_is_being_opened(directory):
    error = locked_error(directory, FILES)
    assert error.pid is None
    assert "being opened" in str(error)
