"""Owns when a request to a storage is sent again: the policy, the arithmetic of one call, and a thin driver.

`Attempts` only calculates: it is given the time and a source of randomness. `Retry` waits and sends, and says so when
that takes long. What is worth another request is not decided here: each storage says it, by `StorageError.retryable`
and `retry_after_s`, where it translates the errors of its client.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, TypeVar

from asynctune.clock import Clock, SystemClock
from asynctune.errors import ConfigError, StorageError

__all__ = ["ONCE", "Attempts", "Retry", "RetryPolicy", "Trouble", "overheard"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_DOUBLINGS: Final = 64
_SILENT_S: Final = 5.0
"""How long a call fails before people are told, seconds."""
_QUIET_S: Final = 600.0
"""How long they are not told again by the same storage, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long and how often is tried.

    The pause before the n-th repetition is drawn evenly from 0 to `min(cap_s, base_s * 2 ** (n - 1))`: full jitter
    spreads clients that failed together best (AWS Architecture Blog, "Exponential Backoff And Jitter"). A storage's
    own `Retry-After` comes on top of it.

    Attributes:
        base_s: Upper end of the first pause, seconds.
        cap_s: Upper end of all later ones, seconds.
        request_s: Seconds that one request may take, besides the time its bytes take.
        total_s: Seconds that all requests and pauses of one call may take, likewise.
        min_bytes_per_s: The slowest transfer that is waited for; a slower one is given up as if it hung.
        max_attempts: How many requests at most; `None`: as many as fit.

    Raises:
        ConfigError: A value that cannot work.
    """

    base_s: float = 0.1
    cap_s: float = 20.0
    request_s: float = 30.0
    total_s: float = 120.0
    min_bytes_per_s: float = 128 * 1024
    max_attempts: int | None = None

    def __post_init__(self) -> None:
        for name in ("base_s", "cap_s", "request_s", "total_s", "min_bytes_per_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be a finite number above 0, not {getattr(self, name)!r}")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ConfigError(f"max_attempts must be at least 1, not {self.max_attempts!r}")


ONCE: Final = RetryPolicy(max_attempts=1)
"""One request, with its deadline."""


class Attempts:
    """The attempts of one call. Calculates only.

    Args:
        policy: How long and how often.
        rng: Where the jitter comes from.
        now: Monotonic seconds, at which the call begins.
        size_bytes: How many bytes a request moves.
    """

    def __init__(self, policy: RetryPolicy, rng: random.Random, now: float, size_bytes: int = 0) -> None:
        moving_s = size_bytes / policy.min_bytes_per_s
        self._policy = policy
        self._rng = rng
        self._request_s = policy.request_s + moving_s
        self._began = now
        self._ends = now + policy.total_s + moving_s
        self.failed = 0
        """How many requests have failed."""

    def request_s(self, now: float) -> float:
        """Seconds that a request may take that is sent now."""
        return max(0.0, min(self._request_s, self._ends - now))

    def elapsed_s(self, now: float) -> float:
        """Seconds since the call began."""
        return now - self._began

    def left_s(self, now: float) -> float:
        """Seconds that the call may go on."""
        return max(0.0, self._ends - now)

    def pause_s(self, now: float, *, retryable: bool, retry_after_s: float | None = None) -> float | None:
        """A request has just failed: seconds to wait before the next, or `None` to give up.

        Giving up at once, when the pause would reach beyond the end of the call, tells the caller sooner.
        """
        self.failed += 1
        policy = self._policy
        if not retryable or self.failed == policy.max_attempts:
            return None
        doublings = min(self.failed - 1, _MOST_DOUBLINGS)
        pause = self._rng.uniform(0.0, min(policy.cap_s, policy.base_s * 2.0**doublings))
        if retry_after_s is not None and retry_after_s > 0:
            pause += retry_after_s
        return pause if now + pause < self._ends else None


class Trouble:
    """What requests have met, for who waits for them and tells people by itself.

    Attributes:
        said: The newest error, as a sentence; empty: none yet.
    """

    __slots__ = ("said",)

    def __init__(self) -> None:
        self.said = ""


_overheard: ContextVar[Trouble | None] = ContextVar("asynctune_storage_trouble", default=None)


@contextmanager
def overheard() -> Iterator[Trouble]:
    """In this block, in its tasks and on side loops too, no `Retry` warns: the caller does, with what was met."""
    trouble = Trouble()
    token = _overheard.set(trouble)
    try:
        yield trouble
    finally:
        _overheard.reset(token)


class Retry:
    """Sends requests, again where that helps. A call that fails for about 5 s is told in a warning, but not each.

    Args:
        policy: How long and how often.
        clock: Reads the time, and waits.
        rng: Where the jitter comes from.
        location: Where to, for messages; without credentials.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        location: str = "",
    ) -> None:
        self._location = location
        self._told_at = -math.inf
        self._policy = RetryPolicy() if policy is None else policy
        self._clock = SystemClock() if clock is None else clock
        self._rng = random.Random() if rng is None else rng  # noqa: S311 - jitter is no secret

    @property
    def policy(self) -> RetryPolicy:
        """How long and how often is tried."""
        return self._policy

    @property
    def clock(self) -> Clock:
        """Reads the time, and waits."""
        return self._clock

    async def run(
        self, request: Callable[[], Awaitable[T]], *, operation: str, key: str | None, size_bytes: int = 0
    ) -> T:
        """Await `request()`, as often as the policy allows, until it returns; each time under a deadline.

        `request` must be one that may be applied twice (see `asynctune.storage.base` on ambiguous replies). It is
        cancelled when its deadline passes. A cancellation from outside is never held up.

        Args:
            request: Sends one request. A `StorageError` of it says whether to send another.
            operation: For messages, as in `StorageError.operation`.
            key: For messages, likewise.
            size_bytes: How many bytes it moves, which prolongs its deadline.

        Raises:
            StorageError: The last one, with a note on the attempts before it; or that no answer came in time.
        """
        clock = self._clock
        attempts = Attempts(self._policy, self._rng, clock.monotonic(), size_bytes)
        while True:
            limit_s = attempts.request_s(clock.monotonic())
            try:
                async with clock.timeout(limit_s):
                    return await request()
            except TimeoutError as cause:
                error = self._no_answer(operation, key, limit_s)
                error.__cause__ = cause
            except StorageError as caught:
                error = caught
            now = clock.monotonic()
            pause_s = attempts.pause_s(now, retryable=error.retryable, retry_after_s=error.retry_after_s)
            if pause_s is None:
                if attempts.failed > 1:
                    error.add_note(
                        f"the last of {attempts.failed} attempts in {attempts.elapsed_s(now):.1f} s"
                    )
                raise error
            self._tell(error, attempts, now, pause_s)
            try:
                await clock.sleep(pause_s)
            finally:
                del error  # its traceback holds this frame

    def _tell(self, error: StorageError, attempts: Attempts, now: float, pause_s: float) -> None:
        """A request has failed, and another is sent after a pause."""
        logger.debug("again in %.2f s: %s", pause_s, error)
        trouble = _overheard.get()
        if trouble is not None:
            trouble.said = str(error)
        elif attempts.elapsed_s(now) + pause_s >= _SILENT_S and now - self._told_at >= _QUIET_S:
            self._told_at = now
            logger.warning(
                "%s. It is tried again, for up to %.0f s; that requests fail is not told again for %.0f minutes",
                str(error).rstrip("."),
                attempts.left_s(now),
                _QUIET_S / 60,
            )

    def _no_answer(self, operation: str, key: str | None, limit_s: float) -> StorageError:
        what = operation if key is None else f"{operation} of {key!r}"
        where = f" in {self._location}" if self._location else ""
        return StorageError(
            f"{what}{where}: no answer within {limit_s:.1f} s",
            operation=operation,
            key=key,
            retryable=True,
            hint="check the network and the storage's endpoint",
        )
