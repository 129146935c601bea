"""Owns how the end of a trial is told from a failure, and what is kept of that: its traceback. Pure."""

from __future__ import annotations

import asyncio
import os
import traceback
from typing import Final

from asynctune.errors import TrialFailedError
from asynctune.session import TrialInterrupted

__all__ = ["failure_of", "failure_text", "is_interruption"]

MAX_CHARACTERS: Final = 100_000

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_ASYNCIO = os.path.dirname(os.path.abspath(asyncio.__file__)) + os.sep


def is_interruption(error: BaseException) -> bool:
    """Whether a trial ended because it was told to: a task group of its own wraps what its tasks raised."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(TrialInterrupted)[1] is None
    return isinstance(error, TrialInterrupted)


def failure_text(error: BaseException) -> str:
    """The traceback from the trial's own code on, as text that can be stored, whatever the exception is made of."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
    except BaseException as broken:  # noqa: BLE001 - the exception's own code runs here
        text = "".join(traceback.format_tb(trace)) + (
            f"{type(error).__name__}, which cannot be printed: {type(broken).__name__}"
        )
    if len(text) > MAX_CHARACTERS:
        cut = len(text) - MAX_CHARACTERS
        text = f"{text[: MAX_CHARACTERS // 2]}\n... {cut:,} characters ...\n{text[-MAX_CHARACTERS // 2 :]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def failure_of(error: BaseException) -> TrialFailedError:
    """The failure to raise for a trial's exception."""
    return TrialFailedError(failure_text(error))


def _is_ours(path: str) -> bool:
    return path.startswith((_HERE, _ASYNCIO))
