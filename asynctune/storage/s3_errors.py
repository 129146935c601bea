"""Owns the translation of what botocore and aiohttp raise, and what S3 answers, into asynctune's errors. No I/O.

The server's own words are not repeated where they may name credentials, nor are URLs. Errors are raised `from None`,
because the client's have both in their text.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import aiohttp
import botocore.exceptions as botocore_errors
from botocore.parsers import ResponseParserError

from asynctune.errors import AuthenticationError, ConfigError, NotFoundError, StorageError

__all__ = ["IncompleteReplyError", "code_of", "retry_after_of", "s3_errors", "status_of", "translated"]

_AGAIN: Final = frozenset(
    {
        "BadDigest",  # what was sent was checked while it was read: it was damaged on its way
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
_AGAIN_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504})
_CREDENTIALS: Final = {
    "AccessDenied": "the credentials do not allow this; check the bucket's policy",
    "AllAccessDisabled": "the account may not use this",
    "AuthorizationHeaderMalformed": "check the region and the credentials",
    "ExpiredToken": "the credentials have expired; renew them",
    "ExpiredTokenException": "the credentials have expired; renew them",
    "InvalidAccessKeyId": "the server does not know the access key; check the credentials and the endpoint",
    "InvalidToken": "the session token is wrong; renew the credentials",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "TokenRefreshRequired": "the credentials have expired; renew them",
}
_CREDENTIALS_STATUS: Final = frozenset({401, 403})
_NO_CREDENTIALS: Final = (
    botocore_errors.NoCredentialsError,
    botocore_errors.PartialCredentialsError,
    botocore_errors.TokenRetrievalError,
    botocore_errors.UnauthorizedSSOTokenError,
    botocore_errors.SSOError,
)
_TRANSFER: Final = (
    botocore_errors.ConnectionError,
    botocore_errors.HTTPClientError,
    botocore_errors.FlexibleChecksumError,
    botocore_errors.IncompleteReadError,
    botocore_errors.ResponseStreamingError,
    ResponseParserError,
    aiohttp.ClientError,
    OSError,
)
_MOST_WORDS: Final = 200


class IncompleteReplyError(Exception):
    """A reply that says it is well and does not tell what it has to, as when something between answers an error."""

    def __init__(self, missing: str) -> None:
        super().__init__(f"no {missing}")
        self.missing = missing


def code_of(error: BaseException) -> str:
    """S3's own name for an error; the status where a reply has no body (`HEAD`)."""
    if isinstance(error, botocore_errors.ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return ""


def status_of(error: BaseException) -> int:
    """The HTTP status; 0 without a reply."""
    if isinstance(error, botocore_errors.ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return 0


def retry_after_of(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds of a `Retry-After`, which is a number or a date; `None` without one."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


@contextmanager
def s3_errors(operation: str, key: str | None, location: str) -> Iterator[None]:
    """Translate what the block raises. What is no error of a client goes through as it is."""
    try:
        yield
    except (
        botocore_errors.BotoCoreError,
        botocore_errors.ClientError,
        IncompleteReplyError,
        *_TRANSFER,
    ) as error:
        raise translated(error, operation, key, location) from None


def translated(
    error: Exception, operation: str, key: str | None, location: str
) -> StorageError | ConfigError:
    """The error that an error of the client, or a reply that is one, is for a caller."""
    what = f"{operation} in {location}" if key is None else f"{operation} of {key!r} in {location}"
    if isinstance(error, botocore_errors.ClientError):
        return _refused(error, what, operation, key, location)
    kind = type(error).__name__
    if isinstance(error, _NO_CREDENTIALS):
        return AuthenticationError(
            f"{what}: there are no credentials ({kind})",
            operation=operation,
            key=key,
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or storage_options",
        )
    if isinstance(error, botocore_errors.CredentialRetrievalError | botocore_errors.MetadataRetrievalError):
        return AuthenticationError(
            f"{what}: the credentials could not be fetched ({kind})",
            operation=operation,
            key=key,
            retryable=True,
            hint="check the credential process, or the metadata service",
        )
    if isinstance(
        error, botocore_errors.ParamValidationError | botocore_errors.UnsupportedS3ConfigurationError
    ):
        return ConfigError(
            f"{what}: the request cannot be made ({kind}); check the bucket's name and the endpoint"
        )
    if isinstance(error, botocore_errors.SSLError):
        refused = isinstance(error.kwargs.get("error"), aiohttp.ClientConnectorCertificateError)
        return StorageError(
            f"{what}: no secure connection ({kind})",
            operation=operation,
            key=key,
            retryable=not refused,
            hint="check the certificate and the endpoint; storage_options verify takes a bundle of certificates",
        )
    if isinstance(error, IncompleteReplyError):
        return StorageError(
            f"{what}: the reply tells no {error.missing}",
            operation=operation,
            key=key,
            retryable=True,
            hint="check that the endpoint is a server of S3, and that it keeps ETags",
        )
    again = isinstance(error, _TRANSFER)
    return StorageError(
        f"{what}: {'the transfer failed' if again else 'the client refused it'} ({kind})",
        operation=operation,
        key=key,
        retryable=again,
        hint="check the network and the endpoint",
    )


def _refused(
    error: botocore_errors.ClientError, what: str, operation: str, key: str | None, location: str
) -> StorageError:
    code, status = code_of(error), status_of(error)
    headers: dict[str, Any] = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    said = f"{code} (HTTP {status})" if code != str(status) else f"HTTP {status}"
    if code == "NoSuchBucket":
        return NotFoundError(
            f"{operation}: there is no bucket of {location}",
            operation=operation,
            key=key,
            hint="check its name and the endpoint, or create it",
        )
    if code in _CREDENTIALS or (status in _CREDENTIALS_STATUS and code not in _AGAIN):
        hint = _CREDENTIALS.get(code, "check the credentials and what they allow")
        return AuthenticationError(f"{what}: refused, {said}", operation=operation, key=key, hint=hint)
    words = str(error.response.get("Error", {}).get("Message", ""))[:_MOST_WORDS]
    hint = ""
    if status == 400 and code in ("", "400"):  # noqa: PLR2004 - HEAD has no body that could say more
        hint = "the credentials may have expired, or the region may be another"
    return StorageError(
        f"{what}: {said}{': ' if words else ''}{words}",
        operation=operation,
        key=key,
        retryable=code in _AGAIN or status in _AGAIN_STATUS,
        retry_after_s=retry_after_of(headers, time.time()),
        hint=hint,
    )
