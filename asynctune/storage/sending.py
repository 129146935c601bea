"""Owns the way of one file to the bucket: at once or in parts, again after failures, never as another content.

What may become an object is known before: its size and crc32c. Each storage refuses bytes with another checksum; here
it is seen to that the file does not change between its parts, and that a reply which was lost, or says nothing, is
settled by looking at what is there. Knows no checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from asynctune.errors import StorageError
from asynctune.storage.carrying import Means
from asynctune.storage.outgoing import Outgoing
from asynctune.storage.part_sending import PartSending
from asynctune.storage.streams import CHUNK_BYTES
from asynctune.storage.values import Condition, FileRange, Stored

__all__ = ["Sent", "send_file"]


@dataclass(frozen=True, slots=True)
class Sent:
    """How a file came to be an object.

    Attributes:
        version: The object's.
        sent_bytes: How many bytes of it this call sent, repetitions included; 0: it was there already.
        resumed_parts: How many of its parts an earlier call had sent.
    """

    version: str
    sent_bytes: int
    resumed_parts: int


async def send_file(
    means: Means, key: str, path: str, *, size_bytes: int, crc32c: int | None, condition: Condition
) -> Sent:
    """See `asynctune.storage.transfer.Transfer.send`."""
    out = Outgoing(means, key, path, size_bytes, condition)
    at_once_bytes = min(means.put_bytes, means.storage.upload_rules.max_put_bytes)
    if crc32c is not None and size_bytes <= min(CHUNK_BYTES, at_once_bytes):
        # Read whole before it is sent, and then it has this checksum or is refused: no look before is needed.
        out.crc32c = crc32c
        return Sent(await _put(out), out.sent_bytes, 0)
    await out.open(crc32c)
    if size_bytes <= at_once_bytes:
        return Sent(await _put(out), out.sent_bytes, 0)
    parts = PartSending(out)
    version = await parts.run()
    return Sent(version, out.sent_bytes, parts.resumed)


async def _put(out: Outgoing) -> str:
    source = FileRange(out.path, 0, out.size_bytes)
    failed = 0
    async with out.means.budget.take(out.size_bytes):
        out.patience.progressed()
        while True:
            out.sent_bytes += out.size_bytes
            error: StorageError | None = None
            try:
                outcome = await out.patience.once(
                    lambda: out.means.storage.put(
                        out.key, source, condition=out.condition, crc32c=out.crc32c
                    ),
                    "put",
                    out.key,
                )
            except StorageError as caught:
                if not caught.retryable:
                    raise
                error = caught
            else:
                if isinstance(outcome, Stored):
                    return outcome.version
            # It may be done all the same; and a conflict may be with an earlier copy of this very write.
            version = await out.settled(error)
            if version is not None:
                return version
            failed += 1
            await out.patience.pause(error or out.lost(), failed)
