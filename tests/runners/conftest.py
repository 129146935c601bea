"""Runners that are closed after each test, and Ray's nodes, one cluster for a session."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import Final

import pytest

from asynctune import ExperimentStore, ProcessRunner
from tests.runners.cluster import Cluster, ray_cluster, why_no_cluster

NODES: Final = ("node_b", "node_c")
FAR_NODES: Final = ("node_b",)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    yield  # pytest-randomly shuffles
    # First, so that one worker of pytest-xdist gets them all, and starts the only cluster: each takes an unbroken
    # part of the list, and what is stolen comes from its end.
    items.sort(key=lambda item: not {"session_cluster", "session_far_cluster"} & set(_fixtures_of(item)))


def _fixtures_of(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])


@pytest.fixture
async def start(monkeypatch):
    """Starts a `ProcessRunner` for a trainable."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # with it nothing printed is ever held back
    runners = []

    async def make(trainable, *, hung_after_s=60.0, stop_grace_s=60.0, **options):
        runner = ProcessRunner(2, hung_after_s=hung_after_s, stop_grace_s=stop_grace_s)
        runners.append(runner)
        await runner.start(trainable, options)
        return runner

    yield make
    for runner in runners:
        await runner.aclose()


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    if (reason := why_no_cluster()) is not None:
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch, ray_cluster(NODES) as cluster:
        patch.delenv("RAY_ADDRESS", raising=False)
        yield cluster


@pytest.fixture
def cluster(session_cluster: Cluster) -> Iterator[Cluster]:
    """A head and two nodes with files of their own, all of them well when a test begins."""
    session_cluster.ensure(NODES)
    yield session_cluster
    # Ray ends a process whose cluster is gone, and that is this one.
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        ray.shutdown()


@pytest.fixture(scope="session")
def session_far_cluster() -> Iterator[Cluster]:
    if (reason := why_no_cluster(network=True)) is not None:
        pytest.skip(reason)
    with ray_cluster(FAR_NODES, network=True) as cluster:
        yield cluster


@pytest.fixture
def far_cluster(session_far_cluster: Cluster) -> Cluster:
    """A head and a node with a network between them that can be cut. Drivers run `inside` the head."""
    session_far_cluster.ensure(FAR_NODES)
    return session_far_cluster


@pytest.fixture
def carried(monkeypatch):
    """Trials whose checkpoint was brought by way of this machine."""
    restore, found = ExperimentStore.restore_checkpoint, []

    async def restore_checkpoint(self, trial_id, *arguments, **settings):
        found.append(trial_id)
        return await restore(self, trial_id, *arguments, **settings)

    monkeypatch.setattr(ExperimentStore, "restore_checkpoint", restore_checkpoint)
    return found
