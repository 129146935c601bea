"""Owns how what was raised on one machine is raised on another: a few kinds of errors, as values. No wire.

Nothing of an exception travels but its text and what callers branch on, so nothing that comes can run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from asynctune.errors import (
    AsynctuneError,
    AuthenticationError,
    ConfigError,
    NotFoundError,
    StorageError,
    TrialFailedError,
)
from asynctune.runners.space import is_for_space

__all__ = ["FullDiskError", "raised", "told"]

_MAX_TEXT: Final = 100_000


class FullDiskError(StorageError):
    """The disk of the other machine has no space; there may be some later."""


_KINDS: Final[dict[str, type[AsynctuneError]]] = {
    each.__name__: each
    for each in (
        ConfigError,
        TrialFailedError,
        StorageError,
        AuthenticationError,
        NotFoundError,
        FullDiskError,
    )
}


def told(error: BaseException) -> dict[str, Any]:
    """An exception as a value that can always be packed.

    An `AsynctuneError` of a few kinds stays what it is, and the others become the nearest; anything else becomes a
    `TrialFailedError`.
    """
    text = str(error) if isinstance(error, AsynctuneError) else f"{type(error).__name__}: {error}"
    if len(text) > _MAX_TEXT:
        text = f"{text[: _MAX_TEXT // 2]}\n[...]\n{text[-_MAX_TEXT // 2 :]}"
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # a path may be no text
    if isinstance(error, StorageError):
        kind = type(error).__name__ if type(error).__name__ in _KINDS else "StorageError"
        if is_for_space(error):
            kind = "FullDiskError"
        return {"kind": kind, "text": text, "retryable": bool(error.retryable)}
    return {"kind": "ConfigError" if isinstance(error, ConfigError) else "TrialFailedError", "text": text}


def raised(value: Any) -> AsynctuneError:
    """What to raise for a value that the other side has told; of one that makes no sense, a `TrialFailedError`."""
    if not isinstance(value, Mapping):
        return TrialFailedError(f"the other side failed, and told of it as {value!r:.80}")
    kind = _KINDS.get(str(value.get("kind")), TrialFailedError)
    text = str(value.get("text"))
    if issubclass(kind, StorageError):
        return kind(text, operation="transfer", retryable=bool(value.get("retryable")))
    return kind(text)
