"""Transfers under every fault between a storage and its server: right, or a clear error after which the next is right.

A case sends a file in parts, or receives it, through a proxy with one fault at the n-th of its requests, once or from
then on. What came of it is looked at directly.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from asynctune.errors import StorageError
from asynctune.storage.notes import UploadNotes
from asynctune.storage.transfer import Transfer
from asynctune.testing.storage_scenes import pattern
from tests.storage.fault_matrix import Place, Places
from tests.storage.fault_proxy import FAULTS, FaultProxy
from tests.storage.transfers import crc32c_of, open_files

__all__ = ["DATA", "TRANSFERS", "TransferCase", "run_transfers"]

PART: Final = 5 << 20
DATA: Final = pattern(2 * PART + 1000, 6)
KEY: Final = "trial/checkpoint_000001/model.pt"
WHOLE: Final[dict[str, Any]] = {"size_bytes": len(DATA), "crc32c": crc32c_of(DATA)}
WITHIN_S: Final = 60.0
_MOST: Final = 5  # requests of a transfer


@dataclass(frozen=True)
class TransferCase:
    """What is done, with which notes, and the fault that strikes."""

    what: str
    fault: str
    nth: int
    lasting: bool
    noted: bool


TRANSFERS: Final = [
    TransferCase(what, fault, nth, lasting, noted)
    for what in ("send", "receive")
    for fault in FAULTS
    for nth in range(1, _MOST + 1)
    for lasting in (False, True)
    for noted in ((False, True) if what == "send" else (False,))
]


async def run_transfers(
    places: Places, cases: Iterable[TransferCase], source: str, at_once: int = 6
) -> Counter[str]:
    """Run cases, some at a time; how often each ending came. The first case that went wrong is named by a note."""
    outcomes: Counter[str] = Counter()
    waiting = iter(cases)

    async def some() -> None:
        for case in waiting:
            try:
                outcomes[await _run(places, case, source)] += 1
            except BaseException as error:
                error.add_note(f"case: {case}")
                raise

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(some())
    return outcomes


async def _run(places: Places, case: TransferCase, source: str) -> str:
    with tempfile.TemporaryDirectory() as directory:
        async with places(f"case-{secrets.token_hex(6)}") as (place, proxy):
            notes = UploadNotes(f"{directory}/uploads", location=place.storage.location)
            transfer = Transfer(
                place.storage,
                notes=notes if case.noted else None,
                part_bytes=PART,
                put_bytes=PART,
                timeout_s=5.0,
            )
            try:
                run = _send if case.what == "send" else _receive
                async with asyncio.timeout(WITHIN_S):
                    outcome = await run(case, place, proxy, transfer, source, directory)
                assert open_files(directory) == []
                assert transfer._means.budget.taken_bytes == 0
            finally:
                transfer.close()
                notes.close()
    return outcome


async def _attempt(attempt: Any, proxy: FaultProxy, case: TransferCase) -> str:
    fault = proxy.set(case.fault, nth=case.nth, lasting=case.lasting)
    try:
        await attempt
    except StorageError as error:
        _check_error(error)
        return type(error).__name__
    finally:
        proxy.heal()
    return "right" if fault.hits else "not reached"


def _check_error(error: StorageError) -> None:
    said = "\n".join([str(error), repr(error), *getattr(error, "__notes__", ())])
    assert error.operation, said
    assert "://127.0.0.1" not in said
    assert "/session/" not in said


async def _send(
    case: TransferCase, place: Place, proxy: FaultProxy, transfer: Transfer, source: str, directory: str
) -> str:
    outcome = await _attempt(transfer.send(KEY, source, **WHOLE), proxy, case)
    there = await place.direct.head(KEY)
    if outcome in ("right", "not reached") or there is not None:
        assert (await place.direct.read(KEY)).data == DATA
    await transfer.send(KEY, source, **WHOLE)
    assert (await place.direct.read(KEY)).data == DATA
    assert not os.path.exists(f"{directory}/uploads") or os.listdir(f"{directory}/uploads") == []
    await transfer.abort_leftovers()
    assert [upload async for upload in place.direct.list_uploads()] == []
    return outcome


async def _receive(
    case: TransferCase, place: Place, proxy: FaultProxy, transfer: Transfer, source: str, directory: str
) -> str:
    await transfer.send(KEY, source, **WHOLE)
    target = f"{directory}/target"
    outcome = await _attempt(transfer.receive(KEY, target, **WHOLE), proxy, case)
    assert os.path.exists(target) == (outcome in ("right", "not reached"))
    if not os.path.exists(target):
        await transfer.receive(KEY, target, **WHOLE)
    with open(target, "rb") as file:
        assert file.read() == DATA
    return outcome
