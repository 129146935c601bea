"""Owns how trees of files come from a node to the head in `cluster.py`: by asynctune, or through Ray's object store.

Both are subjects for `_children`, and join a cluster that was started before. `node` is a resource that one node alone
has; the files are on its own disk.

- asynctune: a `RayRunner`, and a trial that reports a directory as its checkpoint, after a small one for practice. The
  head keeps watch: when the first call came that offers the tree, and when the answer went out that all of it is there.
- the plain copy: a task on the node reads the files, in pieces of 8 MiB, many small files in one piece; Ray carries
  them as the results of a generator, up to four ahead; the head writes them to its disk.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import psutil
from _cluster_trials import join, leave
from _common import probed
from _uploads import MANIFEST, sizes_in

from asynctune import Checkpoint, RayRunner, RunConfig, TuneConfig, Tuner, session
from asynctune.checkpoints.homecoming import TreeReceiver
from asynctune.runners import agents

__all__ = ["Asynctune", "Maker", "PlainCopy"]

PIECE_BYTES: Final = 8 << 20
AHEAD: Final = 4
_IDLE_S: Final = 3.0
_SAMPLE_S: Final = 0.01
_SETTLE_S: Final = 0.5


class Maker:
    """Makes trees on the node."""

    async def prepare(self, address: str, node: str) -> dict[str, Any]:
        join(address)
        self._node = node
        return {}

    async def measure(self, path: str, sizes: dict[str, int]) -> dict[str, Any]:
        import ray  # noqa: PLC0415 - only some of the children pay for it

        make = ray.remote(_make_tree).options(resources={self._node: 1})
        await asyncio.to_thread(ray.get, make.remote(path, sizes))
        return {}

    async def close(self) -> None:
        leave()


def _make_tree(path: str, sizes: Mapping[str, int]) -> None:
    """Files of random bytes."""
    for name, size in sizes.items():
        place = Path(path, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as file:
            for offset in range(0, size, PIECE_BYTES):
                file.write(os.urandom(min(PIECE_BYTES, size - offset)))


# -- asynctune -----------------------------------------------------------------------------------------------


def _train(config: dict[str, Any]) -> None:
    session.report({"stage": "ready"}, Checkpoint.from_dict({"practice": 1}))
    time.sleep(_SETTLE_S)
    session.report({"stage": "steady"})
    start = time.perf_counter()
    session.report({"stage": "saved"}, Checkpoint.from_directory(config["tree"]))
    session.report({"stage": "done", "seconds": time.perf_counter() - start})


class _Watch:
    """When the tree came, on the head; also a callback of the Tuner."""

    def __init__(self) -> None:
        self.steady = asyncio.Event()
        self.coming = asyncio.Event()
        self.done = asyncio.Event()
        self.began = self.came = 0.0

    def on_trial_result(self, _trial: Any, result: Mapping[str, Any]) -> None:
        if result["stage"] == "steady":
            self.steady.set()
        elif result["stage"] == "done":
            self.done.set()

    def end(self, _fit: object) -> None:
        for each in (self.steady, self.coming, self.done):
            each.set()

    def see(self, op: str, start: float) -> None:
        if self.steady.is_set() and op == "home.offer" and not self.began:
            self.began = start
            self.coming.set()
        elif self.began and op == "home.finish":
            self.came = time.perf_counter()


class _Memory:
    """Resident bytes of this process, and of the agent with its worker, by how much they grow at most."""

    def __init__(self, node: psutil.Process) -> None:
        self.extra_bytes: dict[str, int] = {}
        [agent] = [
            each
            for each in node.children(recursive=True)
            if "".join(each.cmdline()).startswith("ray::_Agent")
        ]
        self._processes = {
            "head": [psutil.Process()],
            "agent": [agent],
            "worker": agent.children(recursive=True),
        }
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._before = {name: self._resident(name) for name in self._processes}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _resident(self, name: str) -> int:
        return sum(each.memory_info().rss for each in self._processes[name])

    def _look(self) -> None:
        while not self._ends.wait(_SAMPLE_S):
            for name, before in self._before.items():
                extra = self._resident(name) - before
                self.extra_bytes[name] = max(extra, self.extra_bytes.get(name, 0))


class Asynctune:
    """A trial on the node that saves the tree once."""

    async def prepare(
        self, directory: str, address: str, node: str, worker_dir: str, process: int
    ) -> dict[str, Any]:
        self._directory, self._node, self._worker_dir = directory, node, worker_dir
        self._process = psutil.Process(process)
        self._count = 0
        self._watch = _Watch()
        vars(agents)["TreeReceiver"] = self._receiver()
        join(address)
        return {}

    def _receiver(self) -> type[TreeReceiver]:
        subject = self

        class Watched(TreeReceiver):
            async def handle(self, op: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
                start = time.perf_counter()
                try:
                    return await super().handle(op, arguments)
                finally:
                    subject._watch.see(op, start)

        return Watched

    async def measure(self, source: str, sizes: dict[str, int]) -> dict[str, Any]:
        watch = self._watch = _Watch()
        self._count += 1
        idle = await probed(asyncio.sleep(_IDLE_S))
        tuner = Tuner(
            _train,
            param_space={"tree": source},
            tune_config=TuneConfig(num_samples=1),
            run_config=RunConfig(
                name=f"tree-{self._count}", local_dir=self._directory, callbacks=[watch], verbose=0
            ),
            runner=RayRunner(resources_per_trial={"cpu": 1, self._node: 1}, worker_dir=self._worker_dir),
        )
        async with asyncio.TaskGroup() as tasks:
            fit = tasks.create_task(tuner.fit())
            fit.add_done_callback(watch.end)  # also if the tree never comes
            await watch.steady.wait()
            with _Memory(self._process) as memory:
                await watch.coming.wait()
                lags = await probed(_wait(watch.done))
        result = fit.result()[0]
        if result.error is not None or result.checkpoint is None:
            raise RuntimeError(f"the tree was not saved: {result.error}")
        there = await asyncio.to_thread(sizes_in, Path(str(result.checkpoint.path)))
        if {name: size for name, size in there.items() if name != MANIFEST} != sizes:
            raise RuntimeError(f"{len(there)} files of {sum(there.values())} bytes came, not {len(sizes)}")
        return {
            "seconds": result.metrics["seconds"],
            "way": watch.came - watch.began,
            "idle": idle,
            "lags": lags,
            "memory": memory.extra_bytes,
        }

    async def close(self) -> None:
        leave()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


# -- the plain copy ------------------------------------------------------------------------------------------

Part = tuple[str, int, Any]
"""A part of a file: its path, where it begins, the bytes."""


class PlainCopy:
    """Through the object store, without a checksum or a sync."""

    async def prepare(self, directory: str, address: str, node: str) -> dict[str, Any]:
        import ray  # noqa: PLC0415

        self._directory = directory
        self._count = 0
        join(address)
        self._read: Any = ray.remote(read_parts).options(
            num_returns="streaming", _generator_backpressure_num_objects=AHEAD, resources={node: 1}
        )
        return {}

    async def measure(self, source: str, sizes: dict[str, int]) -> dict[str, Any]:
        self._count += 1
        target = Path(self._directory, f"copy-{self._count}")
        seconds = await asyncio.to_thread(self._copy, source, target)
        if await asyncio.to_thread(sizes_in, target) != sizes:
            raise RuntimeError("the copy is not whole")
        return {"seconds": seconds}

    def _copy(self, source: str, target: Path) -> float:
        import ray  # noqa: PLC0415

        start = time.perf_counter()
        target.mkdir()
        writer = _Writer(target)
        coming: deque[Any] = deque()
        for piece in self._read.remote(source):
            ray.wait([piece], timeout=0, fetch_local=True)  # it is fetched while others are written
            coming.append(piece)
            if len(coming) == AHEAD:
                writer.write(ray.get(coming.popleft()))
        while coming:
            writer.write(ray.get(coming.popleft()))
        writer.close()
        return time.perf_counter() - start

    async def close(self) -> None:
        leave()


def read_parts(source: str) -> Iterator[list[Part]]:
    """The files of a tree, piece by piece; on the node."""
    import numpy as np  # noqa: PLC0415 - what it reads goes to the object store without another copy

    piece: list[Part] = []
    size = 0
    for path in sorted(each for each in Path(source).rglob("*") if each.is_file()):
        whole = path.stat().st_size
        for offset in range(0, whole, PIECE_BYTES):
            more = min(PIECE_BYTES, whole - offset)
            if size + more > PIECE_BYTES:
                yield piece
                piece, size = [], 0
            data = np.fromfile(path, np.uint8, more, offset=offset)
            piece.append((str(path.relative_to(source)), offset, data))
            size += more
    if piece:
        yield piece


class _Writer:
    """Files below a directory."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._path: str | None = None
        self._fd = -1

    def write(self, parts: list[Part]) -> None:
        for path, offset, data in parts:
            if path != self._path:
                self.close()
                place = self._target / path
                if offset == 0:
                    place.parent.mkdir(parents=True, exist_ok=True)
                self._fd = os.open(place, os.O_WRONLY | os.O_CREAT, 0o600)
                self._path = path
            os.pwrite(self._fd, data, offset)

    def close(self) -> None:
        if self._path is not None:
            os.close(self._fd)
            self._path = None
