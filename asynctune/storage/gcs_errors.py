"""Owns what a failure of Google Cloud Storage means: a status and a reply become an error. No I/O.

No message shows a URL: that of an upload session is a secret, and so may be what a server says about it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp

from asynctune.errors import AuthenticationError, NotFoundError, StorageError

__all__ = ["CHECKSUM_REFUSED", "broken", "error_of", "retry_after_s", "translated"]

CHECKSUM_REFUSED: Final = re.compile(r"crc32c|md5|checksum", re.IGNORECASE)
"""What a server's message has in it when the bytes do not match the checksum."""

_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_TOO_MANY: Final = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded"})
_MAX_SHOWN: Final = 300
_MAX_RETRY_AFTER_S: Final = 86400.0
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403
_MISSING: Final = 404


def error_of(
    operation: str,
    key: str | None,
    status: int,
    headers: Mapping[str, str],
    body: str,
    *,
    show: bool = True,
) -> StorageError:
    """The error that a reply stands for. After a 401 only another token makes a repetition worth it.

    Args:
        operation: As in `StorageError.operation`.
        key: Likewise.
        status: Of the reply.
        headers: Likewise; `Retry-After` is looked for.
        body: Likewise; Google's are JSON.
        show: Whether the server's own words may be shown.
    """
    message, reason = _said(body)
    what = operation if key is None else f"{operation} of {key!r}"
    text = f"{what}: Google Cloud Storage answers {status}"
    if show and message:
        text += f", {message!r}"
    passing = status in _PASSING or (status == _FORBIDDEN and reason in _TOO_MANY)
    if status in (_UNAUTHORIZED, _FORBIDDEN) and not passing:
        return AuthenticationError(
            text,
            operation=operation,
            key=key,
            retryable=status == _UNAUTHORIZED,
            hint="check GOOGLE_APPLICATION_CREDENTIALS or storage_options, and the roles on the bucket",
        )
    if status == _MISSING:
        return NotFoundError(text, operation=operation, key=key)
    return StorageError(
        text, operation=operation, key=key, retryable=passing, retry_after_s=retry_after_s(headers)
    )


def _said(body: str) -> tuple[str, str]:
    try:
        error = json.loads(body)["error"]
        reasons = [each.get("reason", "") for each in error.get("errors", [])]
        return " ".join(str(error.get("message", "")).split())[:_MAX_SHOWN], str((reasons or [""])[0])
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", ""


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` asks for, be it a number or a date; `None` where it makes no sense."""
    asked = headers.get("Retry-After", "").strip()
    if not asked:
        return None
    try:
        seconds = float(asked)
    except ValueError:
        try:
            when = parsedate_to_datetime(asked)
        except ValueError:
            return None
        seconds = (when - datetime.now(UTC if when.tzinfo else None)).total_seconds()
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None


def broken(operation: str, key: str | None, error: BaseException) -> StorageError:
    """The error for a request that got no reply, or a body that broke off; the cause is named, and no more."""
    what = operation if key is None else f"{operation} of {key!r}"
    certificate = isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError)
    unusable = certificate or isinstance(error, aiohttp.InvalidURL)
    return StorageError(
        f"{what}: no whole answer of Google Cloud Storage ({type(error).__name__})",
        operation=operation,
        key=key,
        retryable=not unusable,
        hint="check the endpoint and its certificate" if unusable else "check the network and the endpoint",
    )


@contextmanager
def translated(operation: str, key: str | None) -> Iterator[None]:
    """Errors of the HTTP client inside become a `StorageError`.

    It is raised outside of the handler: the client's own errors hold URLs, and would go along as its context.
    """
    failure: StorageError | None = None
    try:
        yield
    except aiohttp.ClientResponseError as error:
        reason, _, body = error.message.partition(": ")
        failure = error_of(operation, key, error.status, error.headers or _NO_HEADERS, body or reason)
    except (aiohttp.ClientError, ConnectionError, TimeoutError, aiohttp.http.HttpProcessingError) as error:
        failure = broken(operation, key, error)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        failure = broken(operation, key, error)
    if failure is not None:
        raise failure


_NO_HEADERS: Final[Mapping[str, Any]] = {}
