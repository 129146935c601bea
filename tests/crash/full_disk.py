"""A store on a small disk that is full, and later is not: `python -m tests.crash.full_disk DIRECTORY`.

Mounts a tmpfs of two megabytes on DIRECTORY: run it as root in a mount namespace of its own (`unshare --mount`). Says
`fine` at the end.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from unittest import mock

import pytest

import asynctune.state.generations
from asynctune.errors import StorageError
from asynctune.store.store import ExperimentStore
from tests.blocking import no_blocking_calls
from tests.crash.checking import check_experiment, leftovers
from tests.store.scenes import directory_with, result_rows


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\1" * 4096)
        except OSError:
            return


async def until(events, *kinds: str) -> None:
    while (await anext(events)).kind not in kinds:
        pass


async def live(disk: Path) -> None:
    location, ballast = disk / "exp", disk / "ballast"
    work = Path(os.environ["WORK"])
    store = await ExperimentStore.open(location, checkpoint_period=0)
    store.add_trial({}, "t")
    store.set_status("t", "RUNNING")
    store.report("t", {"mark": -1})
    first = await store.save_checkpoint("t", directory_with(work / "d", data=os.urandom(10_000)))
    for number in range(4):  # full and freed, again and again
        events = store.events()
        await asyncio.to_thread(fill, ballast)
        store.set_metadata(f"large{number}", os.urandom(30_000))
        store.report("t", {"mark": number})
        flushing = asyncio.create_task(store.flush())
        await until(events, "disk_full")
        with pytest.raises(StorageError, match="space") as caught:
            await store.save_checkpoint("t", directory_with(work / "d", data=os.urandom(50_000)))
        assert caught.value.retryable
        store.set_metadata("while it was full", number)
        assert not flushing.done()
        assert store.stats().dirty_keys > 0
        async with ExperimentStore.open(location, "read") as reader:
            assert reader.metadata.get("while it was full", -1) == number - 1
        await asyncio.to_thread(ballast.unlink)
        await flushing
        await until(events, "disk_recovered")
        await store.flush()
        await store.save_checkpoint("t", directory_with(work / "d", data=os.urandom(50_000)))
    assert len(store.metadata) == 5
    await check_experiment(store)
    await store.aclose()
    assert not leftovers(location), leftovers(location)
    async with ExperimentStore.open(location) as store:
        assert store.opening.tear is None
        assert len(store.metadata) == 5
        assert store.checkpoints("t")[0] == first
        assert len(store.checkpoints("t")) == 5
        await check_experiment(store)
    assert [row["mark"] for row in result_rows(location / "t")] == list(range(-1, 4))
    # full from the start: nothing is begun, and nothing is in the way of a beginning later
    await asyncio.to_thread(fill, ballast)
    with pytest.raises(StorageError, match="space"):
        await ExperimentStore.open(disk / "other")
    ballast.unlink()
    async with ExperimentStore.open(disk / "other") as store:
        store.set_metadata("k", 1)


def main() -> None:
    disk = Path(sys.argv[1])
    if os.system(f"mount -t tmpfs -o size=2m tmpfs '{disk}'") != 0:
        print("cannot mount")
        return
    small = mock.patch.object(asynctune.state.generations, "_MIN_JOURNAL_BYTES", 50_000)
    with no_blocking_calls(), small:
        asyncio.run(live(disk))
    print("fine")


if __name__ == "__main__":
    main()
