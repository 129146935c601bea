"""Owns every error that asynctune raises; owns no I/O and knows no other room.

The tree::

    AsynctuneError
    ├── ConfigError (ValueError)              a setting, argument or value that cannot work
    │   └── ExperimentExistsError             mode="create" where an experiment already is
    ├── ExperimentNotFoundError               nothing there to resume or read
    ├── TransitionError                       a trial status that may not follow the present one
    ├── TrialNotFoundError (KeyError)
    ├── CheckpointNotFoundError
    ├── CheckpointExistsError                 a step that is not above every recorded one
    ├── CorruptStateError                     state on disk that is damaged, with file and offset
    ├── UnsupportedFormatError                state written by a newer release
    ├── FencedError                           another opening owns the experiment now
    │   └── ExperimentLockedError             another live process on this host has it open
    ├── StorageError                          a disk or bucket said no
    │   ├── AuthenticationError
    │   ├── NotFoundError
    │   └── ConditionFailedError
    ├── TrialFailedError                      a trial raised, or its process died
    ├── UploadError
    ├── UserCodeError                         a searcher, scheduler or stop function failed
    ├── StoreClosedError                      a call after the close, in a forked child or another loop
    └── MissingExtraError (ImportError)       an optional package that is not installed

Each message says what failed, where, and what to do next. No message holds a credential.
"""

from __future__ import annotations

__all__ = [
    "AsynctuneError",
    "AuthenticationError",
    "CheckpointExistsError",
    "CheckpointNotFoundError",
    "ConditionFailedError",
    "ConfigError",
    "CorruptStateError",
    "ExperimentExistsError",
    "ExperimentLockedError",
    "ExperimentNotFoundError",
    "FencedError",
    "MissingExtraError",
    "NotFoundError",
    "StorageError",
    "StoreClosedError",
    "TransitionError",
    "TrialFailedError",
    "TrialNotFoundError",
    "UnsupportedFormatError",
    "UploadError",
    "UserCodeError",
]


class AsynctuneError(Exception):
    """The root: `except AsynctuneError` catches whatever this library raises by itself."""


class ConfigError(AsynctuneError, ValueError):
    """A setting, argument or value that cannot work; nothing was changed by the call."""


class ExperimentExistsError(ConfigError):
    """`mode="create"` met an experiment that already exists; it was left as it is."""


class ExperimentNotFoundError(AsynctuneError):
    """There is no experiment at the location, so there is nothing to resume or read."""


class TransitionError(AsynctuneError):
    """A trial may not go from its present status to the one asked for; it keeps the present one."""


class TrialNotFoundError(AsynctuneError, KeyError):
    """No trial has this id."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would put quotes around a sentence.
        return str(self.args[0]) if self.args else ""


class CheckpointNotFoundError(AsynctuneError):
    """The trial has no such checkpoint, or none that still verifies."""


class CheckpointExistsError(AsynctuneError):
    """A step that is not above every recorded step of the trial: checkpoints are never overwritten."""


class CorruptStateError(AsynctuneError):
    """State on disk is damaged in a way that no generation of it can make good.

    Attributes:
        path: The damaged file.
        offset: Byte offset of the first damaged frame in it, or `None` where the whole file is meant.
    """

    def __init__(self, message: str, *, path: str | None = None, offset: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset


class UnsupportedFormatError(AsynctuneError):
    """The state was written by a newer asynctune, in a format that this one does not know; upgrade."""


class FencedError(AsynctuneError):
    """Another opening has claimed the experiment; this one can write nothing any more."""


class ExperimentLockedError(FencedError):
    """Another live process on this host has the experiment open for writing.

    Attributes:
        pid: Process id of the holder, where it could be read.
        hostname: Its host.
        since: When it opened the experiment, seconds since the Unix epoch.
    """

    def __init__(
        self, message: str, *, pid: int | None = None, hostname: str | None = None, since: float | None = None
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.hostname = hostname
        self.since = since


class StorageError(AsynctuneError):
    """A disk, filesystem or bucket refused an operation.

    Attributes:
        operation: What was tried, such as `"write"`, `"fsync"`, `"put"`.
        key: The file or object it was tried on.
        retryable: Whether the same call may work later without anything being changed.
        retry_after_s: How many seconds to wait before, where a storage said so; else `None`.
        hint: What to do next, one sentence; may be empty.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str | None = None,
        key: str | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.operation = operation
        self.key = key
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.hint = hint


class AuthenticationError(StorageError):
    """The storage refused the credentials, or found none."""


class NotFoundError(StorageError):
    """The object, file or bucket is not there."""


class ConditionFailedError(StorageError):
    """A conditional write lost against somebody else's."""


class TrialFailedError(AsynctuneError):
    """A trial raised, or the process that ran it died; its text is what is stored as the trial's error."""


class UploadError(AsynctuneError):
    """Checkpoints that could not be uploaded; they stay recorded as pending."""


class UserCodeError(AsynctuneError):
    """A searcher, scheduler or stop function raised, or answered what makes no sense; the experiment can go on."""


class StoreClosedError(AsynctuneError):
    """The store is closed, or the caller is a forked child or another event loop, to which it does not belong."""


class MissingExtraError(AsynctuneError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, extra: str, package: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"run: pip install 'asynctune[{extra}]'"
        )
        self.extra = extra
        self.package = package
        self._purpose = purpose

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        # made from three arguments, not from its message: it crosses the pipe of a worker too
        return type(self), (self.extra, self.package, self._purpose)
