"""Memory limits for processes of a test: a control group, of version 1 or 2, within that in which the tests run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

__all__ = ["memory_group"]

_WITHIN_S: Final = 10.0
_MOUNTED: Final = Path("/sys/fs/cgroup")


@contextmanager
def memory_group(limit_bytes: int, name: str) -> Iterator[Path]:
    """A control group: a process that writes 0 to its `cgroup.procs` has no more memory than this, and no swap.

    Skips the test where there can be none. At the end no process may live in it.

    Args:
        limit_bytes: How much.
        name: Of the group; a new one.
    """
    try:
        group, limits = _place(name)
        group.mkdir()
    except (OSError, LookupError) as error:
        pytest.skip(f"no control group with a memory limit can be made here: {error}")
    try:
        try:
            for file, is_needed in limits.items():
                if is_needed or (group / file).exists():
                    (group / file).write_text("0" if "swap.max" in file else str(limit_bytes))
        except OSError as error:
            pytest.skip(f"a control group's memory cannot be limited here: {error}")
        yield group
    finally:
        _remove(group)


def _place(name: str) -> tuple[Path, dict[str, bool]]:
    """Where the group goes, and the files that hold its limits, in the order in which they are set.

    Below that of the tests, so that what limits them limits it, too; with version 2 beside it, for there a group has
    either processes or others in it.

    Raises:
        OSError, LookupError: Nowhere.
    """
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text("ascii").splitlines())
    if "memory" in own:
        within = _MOUNTED / "memory"
        below = within / own["memory"].lstrip("/")
        limits = {"memory.limit_in_bytes": True, "memory.memsw.limit_in_bytes": False}
        return (below if below.is_dir() else within) / name, limits  # the latter in a container
    beside = _MOUNTED / own[""].lstrip("/")
    while "memory" not in (beside / "cgroup.subtree_control").read_text("ascii").split():
        if beside == _MOUNTED:
            raise LookupError(f"no group above that of the tests, {own['']}, shares out memory")
        beside = beside.parent
    return beside / name, {"memory.max": True, "memory.swap.max": False}


def _remove(group: Path) -> None:
    ends = time.monotonic() + _WITHIN_S
    while True:
        try:
            return group.rmdir()
        except OSError:  # who was in it has not quite gone
            if time.monotonic() > ends:
                raise
            time.sleep(0.02)
