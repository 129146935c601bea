"""Which calls count as blocking the event loop, and the few that are allowed to.

blockbuster watches sleeps, most of `os`, reads and writes, sockets and locks. `MORE` adds the calls that a
durable store makes. A call counts when a frame of asynctune is on its stack and a loop runs in its thread, so
threads may block, and so may the tests themselves.
"""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Final

from blockbuster import BlockBuster, BlockBusterFunction, blockbuster_ctx

SCANNED: Final = "asynctune"

MORE: Final[list[tuple[ModuleType, str]]] = [
    (fcntl, "flock"),
    (fcntl, "ioctl"),  # FICLONE copies by reflink
    (fcntl, "lockf"),
    (
        io,
        "open",
    ),  # pathlib's; builtins.open stays free, for linecache: its reads and writes are watched anyway
    (os, "copy_file_range"),
    (os, "fdatasync"),
    (os, "fsync"),
    (os, "ftruncate"),
    (os, "lstat"),
    (os, "makedirs"),
    (os, "open"),
    (os, "posix_fallocate"),
    (os, "pread"),
    (os, "preadv"),
    (os, "pwrite"),
    (os, "pwritev"),
    (os, "renames"),
    (os, "scandir"),
    (os, "sync"),
    (os, "syncfs"),
    (os, "truncate"),
    (os, "utime"),
    (os, "waitpid"),
    (os, "writev"),
]

# (watched call, "*" for any; file name ending; functions; why). Nothing else may block the loop.
ALLOWED: Final[list[tuple[str, str, set[str], str]]] = [
    ("os.path.abspath", "asynctune/store/finding.py", {"local_path"}, "asks for the working directory alone"),
    ("*", "asynctune/storage/s3_client.py", {"_make"}, "botocore, on a loop of its own in a thread"),
]


@contextmanager
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Makes a blocking call of the package on a running loop raise `blockbuster.BlockingError`."""
    with blockbuster_ctx(SCANNED) as watch:
        for module, name in MORE:
            watch.functions.setdefault(
                f"{module.__name__}.{name}", BlockBusterFunction(module, name, scanned_modules=SCANNED)
            )
        for call, file_name, functions, _why in ALLOWED:
            for function in watch.functions.values() if call == "*" else [watch.functions[call]]:
                function.can_block_in(file_name, functions)
        watch.activate()
        yield watch
