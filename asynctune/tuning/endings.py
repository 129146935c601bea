"""Owns why a run ends before its trials do, as values that travel through it. Decides nothing."""

from __future__ import annotations

from asynctune.errors import AsynctuneError
from asynctune.trial import TrialStatus

__all__ = ["AllStopped", "Interrupted", "first_of"]


class Interrupted(Exception):  # noqa: N818 - it ends a run on request, which is no error
    """The experiment was asked to stop before it was finished; it can be restored."""


class AllStopped(Exception):  # noqa: N818 - it is no error
    """Nothing more is to be started, and what runs gets this status; what has run is the result."""

    def __init__(self, status: TrialStatus) -> None:
        super().__init__(status)
        self.status = status


def first_of(group: BaseExceptionGroup[AsynctuneError]) -> BaseException:
    """The first failure in a group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
