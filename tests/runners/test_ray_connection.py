"""The connection of a process to Ray: shared by its runners, ended by the last one, and never another one unasked."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import socketserver
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest

from asynctune import ConfigError, RayRunner
from asynctune.runners import ray_connection
from asynctune.runners.ray_connection import RayConnection, join
from tests.runners.ray_checking import Place, experiment, runner_for
from tests.runners.ray_trials import train

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]


def test_an_empty_address_is_refused():
    with pytest.raises(ConfigError, match="must be that of a Ray cluster, such as"):
        RayRunner("")


class Ray(ModuleType):
    """What is asked of Ray, where every connection is another job of one cluster."""

    def __init__(self, port: int) -> None:
        super().__init__("ray")
        self.address = f"10.0.0.1:{port}"
        self.here = f"127.0.0.1:{port}"
        self.node = "node-1"
        self.jobs = 0
        self.is_on = False
        self.shutdowns = 0
        self.error: BaseException | None = None
        self.util = SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1")

    def is_initialized(self):
        return self.is_on

    def init(self, **settings):
        if self.error is not None:
            raise self.error
        self.jobs += 1
        self.is_on = True

    def shutdown(self):
        self.is_on = False
        self.shutdowns += 1

    def get_runtime_context(self):
        assert self.is_on, "it would connect by itself"
        job = f"{self.jobs:08}"
        return SimpleNamespace(
            gcs_address=self.address, get_node_id=lambda: self.node, get_job_id=lambda: job
        )


SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


@contextmanager
def answering(greeting):
    """A server on this port that greets whoever calls; `None`: that says nothing."""

    class Greets(socketserver.BaseRequestHandler):
        def handle(self):
            for part in [] if greeting is None else [greeting[:2], greeting[2:]]:
                self.request.sendall(part)
            while greeting != b"" and self.request.recv(1000):
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greets) as server:
        serving = threading.Thread(target=server.serve_forever, args=[0.01])
        serving.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            serving.join()


@pytest.fixture
def ray(monkeypatch):
    with answering(SETTINGS) as port:
        made = Ray(port)
        monkeypatch.setitem(sys.modules, "ray", made)
        monkeypatch.setattr(ray_connection, "_ours", [])
        yield made


def test_the_last_one_that_leaves_ends_what_the_first_has_made(ray):
    first, second = join(ray.here), join(None)
    first.leave()
    first.leave()
    second.check()
    assert ray.is_on
    third = join(ray.here)
    second.leave()
    assert ray.is_on
    third.leave()
    third.leave()
    assert (ray.is_on, ray.shutdowns) == (False, 1)
    again = join(ray.here)
    again.leave()
    assert (ray.jobs, ray.shutdowns) == (2, 2)


def test_what_the_user_has_made_stays(ray):
    ray.init()
    one, two = join(None), join(ray.address)
    one.leave()
    two.check()
    two.leave()
    assert (ray.is_on, ray.shutdowns) == (True, 0)


@pytest.mark.parametrize("node", ["node-1", "node-2"], ids=["same-cluster", "started-again"])
def test_what_the_user_has_made_in_place_of_the_runners_own_stays(ray, node):
    before = join(ray.here)
    ray.shutdown()
    ray.node = node
    ray.init()
    with pytest.raises(ConfigError, match="disconnected from Ray"):
        before.check()
    after = join(None)
    after.check()
    before.leave()
    after.leave()
    assert (ray.is_on, ray.shutdowns) == (True, 1)


def test_who_was_left_without_one_does_not_end_that_of_others(ray):
    before = join(ray.here)
    ray.shutdown()
    after = join(ray.here)
    before.leave()
    after.check()
    after.leave()
    assert (ray.is_on, ray.shutdowns) == (False, 2)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no"), OSError("no"), SystemExit(1), TypeError("no")],
    ids=lambda each: type(each).__name__,
)
def test_what_cannot_be_reached_is_left_behind_as_it_was(ray, error):
    ray.error = error
    with pytest.raises(ConfigError, match="cannot reach Ray at"):
        join(ray.here)
    assert (ray.is_on, ray.shutdowns) == (False, 1)
    ray.error = None
    join(ray.here).leave()
    assert not ray.is_on


@pytest.mark.parametrize(
    ("there", "is_same"),
    [("10.0.0.1", True), ("10.0.0.2", False), ("127.0.0.1", True)],
    ids=["this-machine", "another-machine", "loopback"],
)
def test_the_loopback_address_is_that_of_this_machine_alone(ray, there, is_same):
    ray.address = ray.address.replace("10.0.0.1", there)
    ray.init()
    if is_same:
        join(ray.here).check()
    else:
        with pytest.raises(ConfigError, match="is connected to Ray at"):
            join(ray.here)


@pytest.mark.parametrize(
    "greeting",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="ssh"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="http"),
        pytest.param(b"-ERR", id="short"),
        pytest.param(b"", id="hangs-up"),
        pytest.param(None, id="says-nothing"),
    ],
)
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_another_server_than_rays_is_told_soon(ray, monkeypatch, greeting, by):
    """Ray itself would try for minutes."""
    monkeypatch.setattr(ray_connection, "_ANSWERS_WITHIN_S", 0.3)
    with answering(greeting) as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(ConfigError, match=f"cannot reach Ray at 127.0.0.1:{port}: "):
            join(f"127.0.0.1:{port}" if by == "argument" else None)
    assert ray.jobs == 0


def test_where_ray_uses_tls_its_greeting_is_its_own(ray, monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with answering(None) as port:
        join(f"127.0.0.1:{port}").leave()
    assert ray.jobs == 1


def test_many_at_once_share_one(ray):
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda _: join(ray.here), range(32)))
        assert ray.jobs == 1
        list(pool.map(RayConnection.leave, parts))
    assert (ray.is_on, ray.shutdowns) == (False, 1)


async def test_the_first_runner_to_end_leaves_the_connection_to_the_other(cluster):
    ray = importlib.import_module("ray")
    short, long = Place(cluster, "short"), Place(cluster, "long")
    tuners = [
        experiment(short, train, trials=1, runner=runner_for(short), n=2, s=0.05),
        experiment(long, train, trials=3, runner=runner_for(long), n=4, s=0.4),
    ]
    ended = await asyncio.gather(*(tuner.fit() for tuner in tuners))
    assert [result.error for results in ended for result in results] == [None] * 4
    assert not ray.is_initialized()


async def test_another_cluster_than_the_one_there_is_is_refused(cluster):
    there = await asyncio.to_thread(join, cluster.address)
    try:
        with pytest.raises(ConfigError, match=r"connected to Ray at .* already"):
            await RayRunner("10.1.2.3:6379").start(train, {})
        again = await asyncio.to_thread(join, None)
        await asyncio.to_thread(again.leave)
        there.check()
    finally:
        await asyncio.to_thread(there.leave)
    with pytest.raises(ConfigError, match="disconnected from Ray"):
        there.check()
