"""Owns how a worker process comes to be: its command, its session and the socket it inherits. Not what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from typing import Final

from asynctune.errors import TrialFailedError
from asynctune.runners.connection import Connection, end_process

__all__ = ["spawn_worker"]

_ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))

# The package is the driver's own, which the interpreter alone may not find, or find another one. Nothing else is looked
# for beside it before it is looked for elsewhere: a module of the user may have a name of the standard library.
_BOOT: Final = """\
import importlib.machinery, importlib.util, sys
sys.path.append(sys.argv[2])
found = importlib.machinery.PathFinder.find_spec("asynctune", sys.argv[2:3])
if found is not None:
    sys.modules["asynctune"] = importlib.util.module_from_spec(found)
    found.loader.exec_module(sys.modules["asynctune"])
from asynctune.runners.worker import main
main()
"""


async def spawn_worker(*, hung_after_s: float) -> Connection:
    """Start a worker on this machine; cancelled, none is left.

    Args:
        hung_after_s: As for `Connection`.

    Raises:
        TrialFailedError: The operating system refused.
    """
    ours, theirs = socket.socketpair()
    spawning = asyncio.ensure_future(asyncio.to_thread(_spawn, theirs))
    try:
        process = await asyncio.shield(spawning)
    except asyncio.CancelledError:
        ours.close()
        await asyncio.shield(asyncio.ensure_future(_undo(spawning)))
        raise
    except OSError as error:
        ours.close()
        raise TrialFailedError(f"cannot start a worker process: {error}") from error
    except BaseException:
        ours.close()
        raise
    return await Connection.over(ours, process, hung_after_s=hung_after_s)


async def _undo(spawning: asyncio.Future[subprocess.Popen[bytes]]) -> None:
    """End a process that is on its way; goes on when its caller is cancelled once more."""
    with contextlib.suppress(OSError):  # there is none
        await asyncio.to_thread(end_process, await spawning)


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    with theirs:
        # A session of its own: Ctrl-C at a terminal is the driver's business, and what a trial starts ends with it.
        # Linux ends a worker when the thread that started it ends; those of the loop's pool stay as long as the loop.
        return subprocess.Popen(  # noqa: S603 - a fixed command
            [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno()), os.path.abspath(_ROOT)],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
