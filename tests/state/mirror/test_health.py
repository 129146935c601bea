"""What is said of a bucket that is away, and when it is tried again."""

from __future__ import annotations

import random

from asynctune.errors import CorruptStateError, StorageError
from asynctune.state.mirror.health import MAX_BACKOFF_S, Health, passes
from asynctune.testing import ManualClock
from tests.state.mirror.world import Told


def healthy() -> tuple[Health, ManualClock, Told]:
    clock, told = ManualClock(), Told()
    return Health("memory://b", clock=clock, rng=random.Random(3), happened=told.happened), clock, told


def test_it_is_said_once_that_it_is_away_and_once_that_it_is_back():
    health, clock, told = healthy()
    health.succeeded()
    for _ in range(5):
        health.failed(StorageError("away", retryable=True))
        clock.move(10.0)
    health.succeeded()
    health.succeeded()
    assert told.kinds() == ["mirror_away", "mirror_back"]
    assert told.events[1][2] == {"away_s": 50.0}
    assert health.retry_at is None


def test_the_pauses_grow_and_stay_below_half_a_minute():
    health, clock, _ = healthy()
    pauses = []
    for _ in range(200):
        health.failed(StorageError("away", retryable=True))
        assert health.retry_at is not None
        pauses.append(health.retry_at - clock.monotonic())
    assert max(pauses[:3]) < 5.0
    assert 0.8 * MAX_BACKOFF_S < max(pauses) <= MAX_BACKOFF_S
    assert min(pauses[20:]) < 3.0  # full jitter


def test_what_the_storage_asks_for_comes_on_top():
    health, clock, _ = healthy()
    health.failed(StorageError("busy", retryable=True, retry_after_s=90.0))
    assert health.retry_at is not None
    assert health.retry_at >= clock.monotonic() + 90.0


def test_what_does_not_pass_by_itself_is_said_otherwise():
    health, _, told = healthy()
    shown = health.failed(OSError(5, "the disk"))
    assert isinstance(shown, StorageError)
    assert "the disk" in str(shown)
    assert told.kinds() == ["mirror_failed"]
    assert not passes(shown)
    assert not passes(CorruptStateError("damage"))
    assert passes(StorageError("away", retryable=True))


def test_a_storage_without_conditions_is_said_so():
    health, _, told = healthy()
    health.tell_unfenced("")
    assert told.kinds() == []
    health.tell_unfenced("memory://b does not keep conditional writes")
    assert told.kinds() == ["mirror_unfenced"]
