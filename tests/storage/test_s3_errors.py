"""What S3 and its client say, as errors of asynctune."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import aiohttp
import botocore.exceptions as client_errors
import pytest
from botocore.parsers import ResponseParserError

from asynctune.errors import AuthenticationError, ConfigError, NotFoundError, StorageError
from asynctune.storage.s3_errors import retry_after_of, s3_errors

NOW = 1_700_000_000.0


def raised(error: Exception) -> Any:
    with pytest.raises((StorageError, ConfigError)) as caught, s3_errors("put", "k", "s3://b/p"):
        raise error
    assert "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value


def reply(code: str, status: int, message: str = "", **headers: str) -> client_errors.ClientError:
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return client_errors.ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}, "PutObject"
    )


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("InternalError", 500),
        ("500", 500),
        ("502", 502),
        ("SlowDown", 503),
        ("504", 504),
        ("TooManyRequests", 429),
        ("RequestTimeout", 400),
        ("IncompleteBody", 400),
        ("BadDigest", 400),
        ("ConditionalRequestConflict", 409),
        ("OperationAborted", 409),
    ],
)
def test_what_may_work_later(code, status):
    error = raised(reply(code, status, "Please wait"))
    assert type(error) is StorageError
    assert error.retryable
    assert (error.operation, error.key) == ("put", "k")
    assert code in str(error)


@pytest.mark.parametrize(
    ("code", "status"),
    [("InvalidRequest", 400), ("EntityTooLarge", 400), ("NotImplemented", 501), ("405", 405), ("400", 400)],
)
def test_what_will_not(code, status):
    error = raised(reply(code, status))
    assert type(error) is StorageError
    assert not error.retryable


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("AccessDenied", 403),
        ("403", 403),
        ("401", 401),
        ("ExpiredToken", 400),
        ("InvalidAccessKeyId", 403),
        ("SignatureDoesNotMatch", 403),
        ("RequestTimeTooSkewed", 403),
        ("AuthorizationHeaderMalformed", 400),
    ],
)
def test_credentials_are_refused_without_being_named(code, status):
    error = raised(reply(code, status, "the key hidden is wrong"))
    assert isinstance(error, AuthenticationError)
    assert not error.retryable
    assert error.hint


def test_a_missing_bucket():
    assert isinstance(raised(reply("NoSuchBucket", 404)), NotFoundError)


def test_who_is_told_to_wait_knows_how_long():
    assert raised(reply("SlowDown", 503, **{"retry-after": "7"})).retry_after_s == 7
    assert raised(reply("SlowDown", 503)).retry_after_s is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("Tue, 14 Nov 2023 22:13:30 GMT", 10.0),
        ("Tue, 14 Nov 2023 22:13:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("\u0663", None),
    ],
    ids=ascii,
)
def test_retry_after(text, seconds):
    assert retry_after_of({"retry-after": text}, NOW) == seconds


URL = "http://hidden:hidden@host/"


@pytest.mark.parametrize(
    "error",
    [
        client_errors.EndpointConnectionError(endpoint_url=URL, error="x"),
        client_errors.ConnectionClosedError(endpoint_url=URL, error="x"),
        client_errors.ConnectTimeoutError(endpoint_url=URL, error="x"),
        client_errors.ReadTimeoutError(endpoint_url=URL, error="x"),
        client_errors.ProxyConnectionError(proxy_url=URL, error="x"),
        client_errors.ResponseStreamingError(error="hidden"),
        client_errors.HTTPClientError(error="hidden"),
        client_errors.FlexibleChecksumError(error_msg="hidden"),
        client_errors.SSLError(endpoint_url=URL, error="x"),
        ResponseParserError("hidden"),
        aiohttp.ClientPayloadError("hidden"),
        aiohttp.ServerDisconnectedError("hidden"),
        ConnectionResetError("hidden"),
        TimeoutError("hidden"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_transfer_that_failed_may_work_later(error):
    assert raised(error).retryable


def test_a_certificate_that_is_refused_stays_refused():
    key: Any = SimpleNamespace(host="host", port=1, is_ssl=True)
    cause = aiohttp.ClientConnectorCertificateError(key, ValueError("hidden"))
    assert not raised(client_errors.SSLError(endpoint_url=URL, error=cause)).retryable


def test_credentials_that_are_missing_or_cannot_be_fetched():
    assert isinstance(raised(client_errors.NoCredentialsError()), AuthenticationError)
    fetched = raised(client_errors.CredentialRetrievalError(provider="process", error_msg="hidden"))
    assert isinstance(fetched, AuthenticationError)
    assert fetched.retryable


def test_a_request_that_cannot_be_made():
    assert isinstance(raised(client_errors.ParamValidationError(report="hidden")), ConfigError)
    assert not raised(client_errors.UnknownSignatureVersionError(signature_version="hidden")).retryable


def test_other_errors_are_left_alone():
    with pytest.raises(KeyError), s3_errors("put", "k", "s3://b"):
        raise KeyError
