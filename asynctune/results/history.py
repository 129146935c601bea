"""Owns the reading of result.json back into rows."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from typing import Any

from asynctune.breathing import breathe
from asynctune.files import LocalFiles
from asynctune.results.trial_files import RESULT_FILE

__all__ = ["read_history"]

logger = logging.getLogger(__name__)


async def read_history(
    path: str | os.PathLike[str], *, has_rows: bool = False, files: LocalFiles | None = None
) -> list[dict[str, Any]]:
    """The rows of a trial in the order of its present timeline.

    A file that is being written may end in half a line: that is not returned. While the experiment runs, the
    newest rows come about a second after they were committed.

    Args:
        path: The trial's directory, or its result.json.
        has_rows: Whether the trial is known to have rows, so that a file that is not there has been lost.
        files: The file operations.

    Returns:
        One dict a row, in the JSON forms of `asynctune.results.render`; empty for a trial without rows. Lines
        that are not rows are left out, with a warning in the log.

    Raises:
        OSError: The file cannot be read, or is not there and should be.
    """
    return await asyncio.to_thread(_read, os.fspath(path), files or LocalFiles(), has_rows)


def _read(path: str, files: LocalFiles, has_rows: bool) -> list[dict[str, Any]]:
    if os.path.isdir(path):
        path = os.path.join(path, RESULT_FILE)
    try:
        data = files.read(path)
    except FileNotFoundError as error:
        if not has_rows:
            return []
        reason = "it was moved or removed, or its experiment runs and has not written it yet"
        raise FileNotFoundError(errno.ENOENT, f"{reason}, a second after the first result", path) from error
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            logger.warning("%s: line %d is damaged and was left out", path, number)
        breathe()
    return rows
