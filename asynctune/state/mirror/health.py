"""Owns whether the bucket is away: what is said about it, once, and when it is tried again."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any, Final

from asynctune.clock import Clock
from asynctune.errors import AsynctuneError, StorageError

__all__ = ["MAX_BACKOFF_S", "Health", "least_interval_s", "passes"]

logger = logging.getLogger("asynctune")

_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 30.0
"""The longest pause between two tries, in seconds, unless the bucket asks for more."""

_GCS_INTERVAL_S: Final = 1.0
_MAX_DOUBLINGS: Final = 16


def least_interval_s(location: str) -> float:
    """Seconds between two replacements of one object that a storage asks for (Google Cloud Storage: one a second)."""
    return _GCS_INTERVAL_S if location.startswith("gs://") else 0.0


def passes(error: BaseException | None) -> bool:
    """Whether trying again later may help without anything being changed."""
    return isinstance(error, StorageError) and error.retryable


class Health:
    """Of one mirror.

    Args:
        location: Of the bucket, for people.
        clock: Time.
        rng: Where the jitter comes from.
        happened: Is told `mirror_away` (or `mirror_failed`, if it does not pass by itself) and `mirror_back`.
    """

    def __init__(
        self, location: str, *, clock: Clock, rng: random.Random, happened: Callable[..., Any]
    ) -> None:
        self._location = location
        self._clock = clock
        self._rng = rng
        self._happened = happened
        self._failures = 0
        self.away_since: float | None = None
        """Since when it has been away, monotonic seconds; `None`: it is not."""
        self.retry_at: float | None = None
        """When to try again, monotonic seconds; `None`: nothing failed."""

    def succeeded(self) -> None:
        """The bucket answered as it should."""
        self._failures, self.retry_at = 0, None
        if self.away_since is None:
            return
        away_s = self._clock.monotonic() - self.away_since
        self.away_since = None
        message = f"the mirror at {self._location} is back after {away_s:.0f} s"
        logger.warning("%s", message)
        self._happened("mirror_back", message, away_s=away_s)

    def tell_unfenced(self, why: str) -> None:
        """Say once that the storage does not keep conditions; `why` is empty if it does."""
        if why:
            message = (
                f"{why}: two drivers that have this experiment open at once are found out late, and what one of them "
                "acknowledged meanwhile may be lost"
            )
            logger.warning("%s", message)
            self._happened("mirror_unfenced", message)

    def failed(self, error: Exception) -> AsynctuneError:
        """It did not, or the local disk refused; the error as people should see it. Full jitter until the next try."""
        if not isinstance(error, AsynctuneError):
            text = f"the local journal cannot be read for the mirror: {error}"
            wrapped = StorageError(text, operation="mirror")
            wrapped.__cause__ = error
            error = wrapped
        if self.away_since is None:
            self.away_since = self._clock.monotonic()
            message = (
                f"the mirror at {self._location} cannot be brought up to date ({error}); the run goes on, and the "
                "mirror catches up later"
            )
            logger.warning("%s", message)
            self._happened("mirror_away" if passes(error) else "mirror_failed", message)
        self._failures += 1
        pause_s = self._rng.uniform(
            0.0, min(MAX_BACKOFF_S, _BACKOFF_S * 2.0 ** min(self._failures, _MAX_DOUBLINGS))
        )
        if isinstance(error, StorageError) and error.retry_after_s is not None:
            pause_s += error.retry_after_s
        self.retry_at = self._clock.monotonic() + pause_s
        return error
