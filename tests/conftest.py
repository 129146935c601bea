"""What every test gets: a loop that must not be blocked, a seed that is printed, Hypothesis profiles."""

from __future__ import annotations

import os
import random
import secrets
import signal
from collections.abc import Generator, Iterator, Sequence
from typing import Final, Protocol, TypeVar

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

from tests.blocking import no_blocking_calls

T = TypeVar("T")

SEED_VARIABLE: Final = "ASYNCTUNE_TEST_SEED"
PROFILE_VARIABLE: Final = "HYPOTHESIS_PROFILE"

# No deadline: two cores that others use too say nothing about one example. Not derandomized: each run looks
# elsewhere, and a failure prints the blob that repeats it.
settings.register_profile(
    "default",
    deadline=None,
    derandomize=False,
    print_blob=True,
    max_examples=50,
    stateful_step_count=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("lab", settings.get_profile("default"), max_examples=2000, stateful_step_count=100)


class Sampler(Protocol):
    """Picks at most `count` of `population`, in its order; all of it when there are no more than that."""

    def __call__(self, population: Sequence[T], count: int) -> list[T]: ...


def pytest_configure() -> None:
    # In the environment, so that the workers of pytest-xdist, started after this, draw from the same seed.
    os.environ.setdefault(SEED_VARIABLE, str(secrets.randbelow(2**32)))
    # Ray listens on all addresses, here only to those who know this; it reads it once in a process, so early.
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Where a build runs in the background, SIGINT is ignored, and so it would be in the processes that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.load_profile(os.environ.get(PROFILE_VARIABLE, "default"))


def pytest_report_header() -> str:
    return f"sampled tests: {SEED_VARIABLE}={_session_seed()}"


def _session_seed() -> str:
    return os.environ[SEED_VARIABLE]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and "seed" in getattr(item, "fixturenames", ()):
        command = f"{SEED_VARIABLE}={_session_seed()} pytest -n 0 '{item.nodeid}'"
        report.sections.append(("sampled, run it again with", command))
    return report


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Fails a test in which asynctune blocks the loop. `blockbuster.deactivate()` lifts it for one test."""
    with no_blocking_calls() as watch:
        yield watch


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A number of this test and session: the same in any order and on any worker, new in each session."""
    return random.Random(f"{_session_seed()}:{request.node.nodeid}").getrandbits(64)


@pytest.fixture
def rng(seed: int) -> random.Random:
    """Randomness that a failing test's report can repeat."""
    return random.Random(seed)


@pytest.fixture
def sampled(rng: random.Random) -> Sampler:
    """Draws which of many cases this run tries."""

    def sample(population: Sequence[T], count: int) -> list[T]:
        if len(population) <= count:
            return list(population)
        return [population[i] for i in sorted(rng.sample(range(len(population)), count))]

    return sample
