"""Owns one bucket as requests see it: the client, the prefix, the repetitions and the close. Has no operation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, TypeVar

from botocore.exceptions import ClientError

from asynctune.clock import Clock, SystemClock
from asynctune.storage.checks import closed
from asynctune.storage.keys import MAX_KEY_BYTES, check_key
from asynctune.storage.retry import Retry, RetryPolicy
from asynctune.storage.s3_client import S3Options
from asynctune.storage.s3_errors import code_of, s3_errors, status_of
from asynctune.storage.s3_values import RULES, Sending
from asynctune.storage.threads import Threads
from asynctune.storage.uri import StorageURI
from asynctune.storage.values import Always, Condition, UploadRules

__all__ = ["MISSING", "PAGE", "UNMET", "S3Bucket", "is_conflict", "sent"]

T = TypeVar("T")

PAGE: Final = 1000
"""How many keys or parts one request names."""
MISSING: Final = 404
UNMET: Final = 412


class S3Bucket:
    """A bucket with a prefix.

    Args:
        uri: Where.
        client: Of aiobotocore; closed with the bucket.
        threads: Likewise.
        options: Whether the server keeps conditions.
        policy: How long and how often is tried.
        clock: Reads the time, and waits.
    """

    def __init__(
        self,
        uri: StorageURI,
        client: Any,
        threads: Threads,
        options: S3Options,
        *,
        policy: RetryPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._location = str(uri)
        self._bucket = uri.bucket
        self._prefix = f"{uri.prefix}/" if uri.prefix else ""
        self._client = client
        self._threads = threads
        self._conditions = options.conditional_writes
        self._policy = RetryPolicy() if policy is None else policy
        self._clock = SystemClock() if clock is None else clock
        self._retry = Retry(self._policy, clock=self._clock, location=self._location)
        self._once = Retry(replace(self._policy, max_attempts=1), clock=self._clock, location=self._location)
        self._bucket_seen = False
        self._closed = False

    @property
    def location(self) -> str:
        """`s3://bucket/prefix`."""
        return self._location

    @property
    def supports_conditions(self) -> bool:
        """As the option `conditional_writes` says; true if it is not given."""
        return self._conditions

    @property
    def upload_rules(self) -> UploadRules:
        """Those of S3: parts of 5 MiB to 5 GiB in any order, at most 10,000."""
        return RULES

    @property
    def max_key_bytes(self) -> int:
        """1,024 bytes less the prefix."""
        return MAX_KEY_BYTES - len(self._prefix.encode())

    # -- the end ---------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """See `ObjectStorage.aclose`."""
        if not self._closed:
            self._closed = True
            self._threads.close()
            await self._client.__aexit__(None, None, None)

    # -- small things ----------------------------------------------------------------------------------------

    def _check_open(self, operation: str) -> None:
        if self._closed:
            raise closed(operation, self._location)

    def _full(self, operation: str, key: str) -> str:
        self._check_open(operation)
        return self._prefix + check_key(key, self.max_key_bytes)

    async def _call(
        self, operation: str, key: str | None, method: str, understand: Callable[[Any], T], **arguments: Any
    ) -> T:
        """What `understand` makes of a reply; a reply that it cannot use is asked for again."""
        call = getattr(self._client, method)

        async def once() -> T:
            return understand(await call(Bucket=self._bucket, **arguments))

        return await self._run(operation, key, once)

    async def _run(
        self,
        operation: str,
        key: str | None,
        request: Callable[[], Awaitable[T]],
        size_bytes: int = 0,
        *,
        retry: Retry | None = None,
    ) -> T:
        async def once() -> T:
            self._check_open(operation)
            with s3_errors(operation, key, self._location):
                return await request()

        return await (retry or self._retry).run(once, operation=operation, key=key, size_bytes=size_bytes)


async def sent(send: Callable[[], Awaitable[T]], body: bytes | Sending) -> T:
    """Of a request that failed because its source did, the error of the source."""
    try:
        return await send()
    except Exception:
        if isinstance(body, Sending) and body.error is not None:
            raise body.error from None
        raise


def is_conflict(error: ClientError, condition: Condition) -> bool:
    """Whether a refusal says that the condition did not hold."""
    if isinstance(condition, Always):
        return False
    return status_of(error) == UNMET or code_of(error) == "NoSuchKey"
