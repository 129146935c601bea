"""Opens the experiments it is told to, one after the other: `python -m tests.crash.opener`, for races.

A line on standard input is a location; the answer is `open` or the name of the error. The next line ends that opening.
"""

from __future__ import annotations

import asyncio
import sys

from asynctune.errors import AsynctuneError
from asynctune.store.store import ExperimentStore


async def main() -> None:
    print("ready", flush=True)
    while location := sys.stdin.readline().strip():
        try:
            async with ExperimentStore.open(location) as store:
                store.set_metadata(f"{store.opening.pid}", store.opening.epoch)
                await store.flush()
                print("open", flush=True)
                sys.stdin.readline()
        except AsynctuneError as error:
            print(type(error).__name__, error, flush=True)
            sys.stdin.readline()
        print("closed", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
