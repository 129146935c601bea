"""A process that sends a file to a directory in parts, and says so before each: `root notes path part_bytes`."""

from __future__ import annotations

import asyncio
import os
import sys

from asynctune.storage.local import LocalStorage
from asynctune.storage.notes import UploadNotes
from asynctune.storage.transfer import Transfer
from asynctune.testing import FaultyStorage


async def main(root: str, notes: str, path: str, part_bytes: int) -> None:
    storage = FaultyStorage(LocalStorage(root))
    storage.call(lambda call: print(call.operation, flush=True), lasting=True)
    transfer = Transfer(
        storage,
        notes=UploadNotes(notes, location=storage.location),
        part_bytes=part_bytes,
        put_bytes=part_bytes,
        parts_at_once=2,
    )
    await transfer.send("a/b", path, size_bytes=await asyncio.to_thread(os.path.getsize, path))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
