"""When a request is sent again: the arithmetic without time or chance, the driver with a clock moved by hand."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import AuthenticationError, ConfigError, StorageError
from asynctune.storage.aside import StorageAside
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.retry import ONCE, Attempts, Retry, RetryPolicy, overheard
from asynctune.testing import ManualClock

SECONDS = st.floats(min_value=1e-3, max_value=1e4)
POLICIES = st.builds(
    RetryPolicy,
    base_s=SECONDS,
    cap_s=SECONDS,
    request_s=SECONDS,
    total_s=SECONDS,
    min_bytes_per_s=st.floats(min_value=1, max_value=1e9),
    max_attempts=st.none() | st.integers(1, 20),
)
FAILURES = st.lists(st.tuples(SECONDS, st.none() | st.floats(0, 1e4)), max_size=30)


def passing(retry_after_s: float | None = None) -> StorageError:
    return StorageError("busy", operation="put", key="k", retryable=True, retry_after_s=retry_after_s)


class Sure(random.Random):
    """Draws a fixed share of what is asked for."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.ends: list[float] = []

    def uniform(self, a, b):
        assert a == 0
        self.ends.append(b)
        return self.share * b


# -- the arithmetic ----------------------------------------------------------------------------------------


@given(POLICIES, FAILURES, st.integers(0, 1 << 40), st.integers(0, 2**32))
def test_a_call_ends_within_its_time(policy, failures, size_bytes, seed):
    now = start = 1000.0
    attempts = Attempts(policy, random.Random(seed), now, size_bytes)
    moving_s = size_bytes / policy.min_bytes_per_s
    limit = policy.total_s + moving_s
    for number, (took_s, retry_after_s) in enumerate(failures, 1):
        allowed = attempts.request_s(now)
        assert 0 <= allowed <= policy.request_s + moving_s
        now += min(took_s, allowed)
        assert now - start <= limit * (1 + 1e-9) + 1e-9
        pause_s = attempts.pause_s(now, retryable=True, retry_after_s=retry_after_s)
        assert attempts.failed == number
        if pause_s is None:
            break
        assert policy.max_attempts is None or number < policy.max_attempts
        jitter = min(policy.cap_s, policy.base_s * 2.0 ** (number - 1))
        least = retry_after_s or 0.0
        assert least <= pause_s <= least + jitter
        now += pause_s
        assert now - start < limit * (1 + 1e-9)


@given(POLICIES, st.none() | SECONDS)
def test_what_no_repetition_helps_is_given_up_at_once(policy, retry_after_s):
    attempts = Attempts(policy, random.Random(1), 0.0)
    assert attempts.pause_s(0.0, retryable=False, retry_after_s=retry_after_s) is None


def test_the_jitter_is_full_and_doubles_up_to_its_cap():
    rng = Sure(0.5)
    attempts = Attempts(RetryPolicy(base_s=1, cap_s=10, total_s=1e6), rng, 0.0)
    pauses = [attempts.pause_s(0.0, retryable=True) for _ in range(100)]
    assert rng.ends == [1, 2, 4, 8] + [10] * 96
    assert pauses == [end / 2 for end in rng.ends]


def test_a_storage_that_says_when_is_not_asked_before():
    attempts = Attempts(RetryPolicy(base_s=1, total_s=100), Sure(0.0), 0.0)
    assert attempts.pause_s(0.0, retryable=True, retry_after_s=30) == 30
    assert attempts.pause_s(30.0, retryable=True, retry_after_s=70) is None, "that would be after the end"
    assert attempts.pause_s(30.0, retryable=True, retry_after_s=-5) == 0


def test_bytes_take_their_time():
    policy = RetryPolicy(request_s=10, total_s=20, min_bytes_per_s=100)
    attempts = Attempts(policy, random.Random(1), 0.0, 1000)
    assert attempts.request_s(0.0) == 20
    assert attempts.request_s(15.0) == 15
    assert attempts.request_s(40.0) == 0


@pytest.mark.parametrize("name", ["base_s", "cap_s", "request_s", "total_s", "min_bytes_per_s"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_impossible_policies_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        RetryPolicy(**{name: value})


def test_at_least_one_attempt():
    with pytest.raises(ConfigError, match="max_attempts"):
        RetryPolicy(max_attempts=0)


# -- the driver --------------------------------------------------------------------------------------------


class Requests:
    """Answers in turn: raises what is an exception, waits for ever for `...`, else returns it."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.times: list[float] = []
        self.clock = ManualClock(monotonic=0.0)

    async def __call__(self):
        self.times.append(self.clock.monotonic())
        answer = self.answers.pop(0)
        if answer is ...:
            await asyncio.Event().wait()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def start(self, policy=None, share=1.0, **options):
        retry = Retry(
            policy or RetryPolicy(base_s=1, request_s=10, total_s=60), clock=self.clock, rng=Sure(share)
        )
        return asyncio.create_task(retry.run(self, operation="put", key="k", **options))


async def test_it_is_sent_until_it_succeeds():
    requests = Requests(passing(), passing(3), "done")
    running = requests.start()
    await requests.clock.advance(10)
    assert await running == "done"
    assert requests.times == [0, 1, 1 + 3 + 2]
    assert requests.clock.sleepers == 0


async def test_what_no_repetition_helps_is_raised_as_it_came():
    error = AuthenticationError("no", operation="put", key="k")
    requests = Requests(error)
    with pytest.raises(AuthenticationError) as caught:
        await requests.start()
    assert caught.value is error
    assert not hasattr(error, "__notes__")


async def test_the_last_error_is_raised_with_the_number_of_attempts():
    errors = [passing() for _ in range(3)]
    requests = Requests(*errors)
    running = requests.start(RetryPolicy(base_s=1, max_attempts=3))
    await requests.clock.advance(10)
    with pytest.raises(StorageError) as caught:
        await running
    assert caught.value is errors[2]
    assert caught.value.__notes__ == ["the last of 3 attempts in 3.0 s"]


async def test_a_request_that_hangs_is_sent_again():
    requests = Requests(..., "done")
    running = requests.start()
    await requests.clock.advance(11)
    assert await running == "done"
    assert requests.times == [0, 11]


async def test_a_call_that_hangs_ends():
    requests = Requests(*[...] * 100)
    running = requests.start(share=0.0)
    await requests.clock.advance(61)
    with pytest.raises(StorageError, match=r"put of 'k': no answer within 10\.0 s") as caught:
        await running
    assert caught.value.retryable
    assert (caught.value.operation, caught.value.key) == ("put", "k")
    assert requests.times == [0, 10, 20, 30, 40, 50]
    assert requests.clock.sleepers == 0


async def test_a_large_request_may_take_longer():
    requests = Requests(..., "never asked")
    running = requests.start(RetryPolicy(request_s=10, min_bytes_per_s=10, max_attempts=1), size_bytes=1000)
    await requests.clock.advance(109)
    assert not running.done()
    await requests.clock.advance(1)
    with pytest.raises(StorageError, match="within 110"):
        await running


@pytest.mark.parametrize("seconds", [0, 1.5], ids=["request", "pause"])
async def test_a_cancellation_ends_it_at_once(seconds):
    requests = Requests(*([passing(100)] if seconds else [...]), "never asked")
    running = requests.start(RetryPolicy(total_s=1000))
    await requests.clock.advance(seconds)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(requests.times) == 1
    assert requests.clock.sleepers == 0


async def test_a_cancellation_wins_against_a_failure_of_the_same_moment():
    release = asyncio.Event()

    async def request():
        try:
            await release.wait()
        finally:
            await asyncio.sleep(0)

    running = asyncio.create_task(Retry(ONCE).run(request, operation="get", key=None))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_other_errors_are_not_touched():
    requests = Requests(KeyError("a bug"))
    with pytest.raises(KeyError, match="a bug"):
        await requests.start()


async def test_it_works_with_the_machines_own_clock():
    requests = Requests(passing(), "done")
    retry = Retry(RetryPolicy(base_s=1e-6))
    assert await retry.run(requests, operation="get", key=None) == "done"


# -- what people are told ----------------------------------------------------------------------------------


def told(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


async def test_a_call_that_fails_for_long_is_told_once_and_soon(caplog):
    requests = Requests(*[passing() for _ in range(60)])
    running = requests.start(RetryPolicy(base_s=1, cap_s=2, total_s=100))
    await requests.clock.advance(2.9)  # after 0, 1 and 3 s
    assert not told(caplog)
    await requests.clock.advance(2.2)
    (message,) = told(caplog)
    assert message.startswith("busy. It is tried again, for up to 97 s;")
    await requests.clock.advance(100)
    with pytest.raises(StorageError):
        await running
    assert told(caplog) == [message]


async def test_a_request_without_an_answer_is_told_with_where(caplog):
    requests = Requests(..., "done")
    retry = Retry(
        RetryPolicy(request_s=10), clock=requests.clock, rng=Sure(1.0), location="s3://bucket/some/where"
    )
    running = asyncio.create_task(retry.run(requests, operation="put", key="k"))
    await requests.clock.advance(11)
    assert await running == "done"
    (message,) = told(caplog)
    assert message.startswith("put of 'k' in s3://bucket/some/where: no answer within 10.0 s;")


async def test_calls_of_one_storage_do_not_all_tell_it(caplog):
    requests = Requests(*[passing() for _ in range(1000)])
    policy = RetryPolicy(base_s=4, cap_s=4, total_s=1000)
    retry = Retry(policy, clock=requests.clock, rng=Sure(1.0))
    calls = [asyncio.create_task(retry.run(requests, operation="put", key="k")) for _ in range(3)]
    await requests.clock.advance(500)
    assert len(told(caplog)) == 1
    await requests.clock.advance(200)
    assert len(told(caplog)) == 2, "after ten minutes again"
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def test_who_overhears_tells_by_itself(caplog):
    requests = Requests(*[passing() for _ in range(8)], "done")
    with overheard() as trouble:
        assert trouble.said == ""
        running = requests.start()
    await requests.clock.advance(60)
    assert trouble.said == "busy"
    assert not told(caplog)
    running.cancel()
    await asyncio.wait([running])


async def test_what_is_overheard_comes_from_the_side_loop_too(caplog):
    class Busy(MemoryStorage):
        async def head(self, key):
            clock = ManualClock()
            retry = Retry(RetryPolicy(max_attempts=2, base_s=1e-6), clock=clock, rng=Sure(0.0))
            return await retry.run(Requests(passing(), passing()), operation="head", key=key)

    async def opened():
        return Busy()

    storage = await StorageAside.open(opened)
    try:
        with overheard() as trouble, pytest.raises(StorageError):
            await storage.head("k")
        assert trouble.said == "busy"
    finally:
        await storage.aclose()
