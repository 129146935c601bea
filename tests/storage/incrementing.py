"""A process that adds to a number in a directory, one compare-and-swap at a time: `root name times`."""

from __future__ import annotations

import asyncio
import sys

from asynctune.storage.local import LocalStorage
from asynctune.storage.values import IfVersion, OnlyCreate, Stored


async def main(root: str, name: str, times: int) -> None:
    storage = LocalStorage(root)
    created = isinstance(await storage.put("deep/created", name.encode(), condition=OnlyCreate()), Stored)
    done = 0
    while done < times:
        content = await storage.read("number")
        data = str(int(content.data) + 1).encode()
        done += isinstance(
            await storage.put("number", data, condition=IfVersion(content.info.version)), Stored
        )
    await storage.aclose()
    print("created" if created else "late")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
