"""The claims of the cluster that other tests rely on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.killing import ROOT
from tests.runners.cluster import HEAD, why_no_cluster

WITHIN_S = 20.0

# A driver on the head: an actor on the node, asked again at each line that it reads.
DRIVER = """
import ray, sys

class Echo:
    def say(self):
        return ray.util.get_node_ip_address()

ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)
echo = ray.remote(Echo).options(num_cpus=1, resources={"node_b": 1}).remote()
while True:
    ready, _ = ray.wait([said := echo.say.remote()], timeout=float(sys.argv[2]))
    print(ray.get(said) if ready else "silent", flush=True)
    if not sys.stdin.readline():
        break
"""

# What pytest's process is to a cluster, killed when it has one.
HOLDER = """
import time
from tests.runners.cluster import ray_cluster
with ray_cluster(()) as cluster:
    print(cluster.root, flush=True)
    time.sleep(600)
"""


class Somewhere:
    """Tells where it runs."""

    def where(self):
        import ray  # noqa: PLC0415 -- in the actor's process

        return ray.util.get_node_ip_address(), os.getpid()

    def start_sleeper(self):
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid


@pytest.fixture
def ray(cluster):
    import ray  # noqa: PLC0415 -- 0.4 s for those who need it

    # In the main thread Ray would take SIGTERM to itself for good.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(ray.init, cluster.address, log_to_driver=False, configure_logging=False).result()
    yield ray
    ray.shutdown()


def actor_on(ray, name):
    return ray.remote(Somewhere).options(num_cpus=1, resources={name: 1}).remote()


def eventually(condition):
    ends = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_each_node_has_private_directories_and_shares_the_others(cluster, tmp_path):
    mine = cluster.apart / "of-the-head"
    mine.touch()
    seen_by_all = cluster.root / "of-all"
    seen_by_all.touch()
    cluster.run_in("node_b", ["touch", str(cluster.apart / "of-b")])
    cluster.hide("node_c", tmp_path)
    (tmp_path / "hidden").touch()

    def listed(name, directory):
        return cluster.run_in(name, ["ls", str(directory)]).split()

    seen = {name: {"of-the-head", "of-b"} & set(listed(name, cluster.apart)) for name in cluster.nodes}
    assert seen == {HEAD: {"of-the-head"}, "node_b": {"of-b"}, "node_c": set()}
    assert (listed("node_b", tmp_path), listed("node_c", tmp_path)) == (["hidden"], [])
    for name in cluster.nodes:
        cluster.run_in(name, ["test", "-e", str(seen_by_all)])
    mine.unlink()
    seen_by_all.unlink()


def test_a_killed_node_ends_with_all_that_it_started_and_no_other_does(cluster, ray):
    on_b, on_c = actor_on(ray, "node_b"), actor_on(ray, "node_c")
    (ip_b, _), (ip_c, _) = ray.get([on_b.where.remote(), on_c.where.remote()])
    assert (ip_b, ip_c) == (cluster.nodes["node_b"].ip, cluster.nodes["node_c"].ip)
    ray.get([on_b.start_sleeper.remote(), on_c.start_sleeper.remote()])
    there, elsewhere = cluster.processes("node_b"), cluster.processes("node_c")
    assert "sleep" in [process.name() for process in there]

    cluster.kill_node("node_b")
    assert not any(process.is_running() for process in there)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(on_b.where.remote())
    eventually(
        lambda: (
            not [
                node
                for node in ray.nodes()
                if node["NodeID"] and node["NodeName"] == "node_b" and node["Alive"]
            ]
        )
    )
    assert all(process.is_running() for process in elsewhere)
    assert ray.get(on_c.where.remote())[0] == ip_c

    cluster.add_node("node_b")
    assert ray.get(actor_on(ray, "node_b").where.remote())[0] == cluster.nodes["node_b"].ip != ip_b


def test_a_paused_node_is_silent_until_it_goes_on(cluster, ray):
    actor = actor_on(ray, "node_b")
    ray.get(actor.where.remote())
    cluster.pause("node_b")
    asked = actor.where.remote()
    assert ray.wait([asked], timeout=0.5)[0] == []
    cluster.resume("node_b")
    assert ray.get(asked)[0] == cluster.nodes["node_b"].ip


def test_a_node_is_cut_off_and_comes_back(far_cluster):
    """Ray forgives a silence of seconds."""
    command = far_cluster.inside(HEAD, [sys.executable, "-c", DRIVER, far_cluster.address, "3"])
    driver = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | far_cluster.environment,
    )
    with driver:
        questions, answers = driver.stdin, driver.stdout
        assert questions is not None
        assert answers is not None

        here = far_cluster.nodes["node_b"].ip

        def said():
            while (line := answers.readline().strip()) not in {here, "silent"}:
                assert line  # Ray tells of other nodes in between
            return line

        def answer():
            questions.write("\n")
            questions.flush()
            return said()

        said()  # an actor may take its time to start
        eventually(lambda: answer() == here)
        far_cluster.cut("node_b")
        assert answer() == "silent"
        far_cluster.heal("node_b")
        eventually(lambda: answer() == here)
        questions.close()


@pytest.mark.skipif(why_no_cluster() is not None, reason=str(why_no_cluster()))
def test_nothing_is_left_when_the_one_who_started_it_is_killed(tmp_path):
    token = f"token-of-{os.urandom(16).hex()}"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_TOKEN": token},
    )
    with holder:
        assert holder.stdout is not None
        root = Path(holder.stdout.readline().strip())
        assert root.is_dir()
        assert len(having(token)) > 3
        holder.kill()
    eventually(lambda: having(token) == [])
    assert not root.exists()


def having(token):
    """The processes that know this token."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_AUTH_TOKEN") == token:
                found.append(process)
        except psutil.Error:  # it has just ended
            continue
    return found
