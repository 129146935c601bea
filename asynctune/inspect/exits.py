"""Owns the exit codes, and which error leads to which; prints nothing."""

from __future__ import annotations

import enum

from asynctune.errors import (
    AsynctuneError,
    CheckpointNotFoundError,
    ConfigError,
    ExperimentNotFoundError,
    MissingExtraError,
    NotFoundError,
    TrialNotFoundError,
)

__all__ = ["Exit", "MetricNotFoundError", "exit_for"]


class Exit(enum.IntEnum):
    """What the process ends with; stated in docs/inspect.md."""

    FINE = 0
    PROBLEM = 1
    USAGE = 2
    NOTHING_THERE = 3
    INTERRUPTED = 130  # as a shell reports SIGINT
    CLOSED_PIPE = 141  # as a shell reports SIGPIPE


class MetricNotFoundError(AsynctuneError):
    """No trial that was looked at has reported this metric, or has this column."""


_NOTHING_THERE = (
    ExperimentNotFoundError,
    TrialNotFoundError,
    CheckpointNotFoundError,
    MetricNotFoundError,
    NotFoundError,  # of a bucket
)
_CANNOT_BE_ASKED = (ConfigError, MissingExtraError)


def exit_for(error: AsynctuneError | OSError) -> Exit:
    """The exit code for an error that ended a command."""
    if isinstance(error, _NOTHING_THERE):
        return Exit.NOTHING_THERE
    return Exit.USAGE if isinstance(error, _CANNOT_BE_ASKED) else Exit.PROBLEM
