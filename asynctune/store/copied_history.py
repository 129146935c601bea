"""Owns a trial's result rows where only the copy of the experiment is at hand: the file, and the rows after it."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable
from typing import Any

from asynctune.clock import Clock
from asynctune.files import LocalFiles
from asynctune.results.history import read_history
from asynctune.results.projector import ResultFiles
from asynctune.results.rows import TrialInfo, trial_of
from asynctune.results.trial_files import RESULT_FILE
from asynctune.state.recovered import SegmentRows
from asynctune.state.thread import WorkThread
from asynctune.store.access import Access
from asynctune.store.projections import with_openings

__all__ = ["read_copied_history"]


async def read_copied_history(
    trial: TrialInfo,
    rows: Iterable[SegmentRows],
    *,
    has_rows: bool,
    access: Access,
    scratch_dir: str,
    clock: Clock,
    files: LocalFiles,
) -> list[dict[str, Any]]:
    """Every result row of a trial, oldest first.

    Args:
        trial: Which.
        rows: The committed rows that the bucket's result files may lack, of all trials.
        has_rows: Whether the trial is known to have rows, so that a file that is not there has been lost.
        access: The way to the copy.
        scratch_dir: Where a directory may be made for a moment.
        clock: Time.
        files: The disk.

    Raises:
        StorageError: The bucket or the disk refused.
        OSError: The disk refused, or the rows are not there and should be.
    """
    place = os.path.join(scratch_dir, f"history-{secrets.token_hex(4)}")
    directory = os.path.join(place, trial.trial_name)
    key = f"{trial.trial_name}/{RESULT_FILE}"
    thread = WorkThread("asynctune-read")
    try:
        await thread.run(os.makedirs, directory)
        await access.fetch_file(key, os.path.join(directory, RESULT_FILE))
        results = ResultFiles(place, files=files, clock=clock, emit=_told_nobody)
        try:
            mine = [each for each in with_openings(rows) if trial_of(each[1]) == trial.trial_id]
            if mine:
                await results.complete(mine, lambda _trial_id: trial)
                await results.flush()
        finally:
            await results.aclose(write=False)
        found = await read_history(directory)
        if has_rows and not found:
            raise FileNotFoundError(errno.ENOENT, "it is not in the copy, and should be", key)
        return found
    finally:
        await thread.run(lambda: shutil.rmtree(place, ignore_errors=True))
        thread.stop()


def _told_nobody(_kind: str, /, **_data: Any) -> None:
    """What is noticed about a file in a directory of a moment is nobody's business."""
