"""Owns what is kept of a trial's exception: its traceback from the trial's own code on. Pure."""

from __future__ import annotations

import asyncio
import os
import traceback

from asynctune.errors import TrialFailedError

__all__ = ["failure_of", "failure_text"]

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_ASYNCIO = os.path.dirname(os.path.abspath(asyncio.__file__)) + os.sep


def failure_text(error: BaseException) -> str:
    """The traceback, without the frames that led from the runner into the trial."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).rstrip()


def failure_of(error: BaseException) -> TrialFailedError:
    """The failure to raise for a trial's exception."""
    return TrialFailedError(failure_text(error))


def _is_ours(path: str) -> bool:
    return path.startswith((_HERE, _ASYNCIO))
