"""What the tests of travelling files share: a wire that packs, counts and breaks, and trees to send."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from asynctune.checkpoints.staging import StagedCheckpoint, stage_for_adoption
from asynctune.packing import pack, unpack

Handle = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class Wire:
    """Calls from one end to the other, in order, as a network would carry them.

    Attributes:
        calls: Operation and unpacked arguments of each call that arrived.
        acknowledged: Those whose answer arrived.
        change: Makes other arguments of those that arrive; `change_answer` likewise.
        break_at: The number of the call (from 1) with which the connection breaks for good; `None`: never.
        answer_lost: That call arrives, and only its answer does not.
        remember: Whether arguments are kept.
        most: How many calls were under way at once, at most.
    """

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.acknowledged: list[tuple[str, dict[str, Any]]] = []
        self.break_at: int | None = None
        self.answer_lost = False
        self.change: Callable[[str, dict[str, Any]], Any] = lambda op, arguments: None
        self.change_answer: Callable[[str, Any], Any] = lambda op, answer: None
        self.remember = True
        self.most = 0
        self._under_way = 0
        self._count = 0

    def mended(self) -> None:
        """Another connection."""
        self.break_at = None
        self.calls.clear()
        self.acknowledged.clear()
        self._count = 0

    async def call(self, op: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        self._count += 1
        number = self._count
        arrived = unpack(pack(dict(arguments)))
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        try:
            await asyncio.sleep(0)
            if self.break_at is not None and (
                number > self.break_at or (number == self.break_at and not self.answer_lost)
            ):
                raise ConnectionResetError("the other side is gone")
            self.change(op, arrived)
            self.calls.append((op, arrived if self.remember else {}))
            answer = unpack(pack(dict(await self.handle(op, arrived))))
            self.change_answer(op, answer)
            if number == self.break_at:
                raise ConnectionResetError("the other side is gone")
        finally:
            self._under_way -= 1
        self.acknowledged.append((op, arrived if self.remember else {}))
        return answer

    def sent(self, calls: list[tuple[str, dict[str, Any]]] | None = None) -> dict[int, set[tuple[int, int]]]:
        """What ranges of which files arrived with `home.chunks`."""
        found: dict[int, set[tuple[int, int]]] = {}
        for op, arguments in self.calls if calls is None else calls:
            if op == "home.chunks":
                for index, offset, _, data in arguments["pieces"]:
                    found.setdefault(index, set()).add((offset, offset + len(data)))
        return found

    def count(self, op: str) -> int:
        return sum(each == op for each, _ in self.calls)


async def cancelled_after(steps: int, call: Coroutine[Any, Any, Any]) -> Any:
    """What a call has returned that is cancelled after so many turns of the loop, or what it has raised."""
    task = asyncio.ensure_future(call)
    for _ in range(steps):
        await asyncio.sleep(0)
        if task.done():
            break
    task.cancel()
    return (await asyncio.gather(task, return_exceptions=True))[0]


def write_tree(root: Path, content: Mapping[str, bytes], empty: tuple[str, ...] = ()) -> Path:
    """Files and empty directories below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    for name in empty:
        (root / name).mkdir(parents=True, exist_ok=True)
    return root


async def staged_tree(
    tmp_path: Path, content: Mapping[str, bytes], empty: tuple[str, ...] = ()
) -> StagedCheckpoint:
    """A directory staged on "the node"."""
    source = write_tree(tmp_path / f"src-{os.urandom(4).hex()}", content, empty)
    return await stage_for_adoption(source, write_tree(tmp_path / "node", {}), move=True)


def left_in(trial_dir: Path) -> list[str]:
    """What waits in a trial's directory to be adopted, or was forgotten there."""
    return sorted(path.name for path in trial_dir.iterdir() if path.name.startswith("."))


def open_below(root: Path) -> list[str]:
    """What this process holds open below a directory."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [path for path in found if path.startswith(f"{root}/")]
