"""Real Ray nodes on one machine for a test session: a head, and nodes that may see other files and other networks.

Each node is `ray start --block` in a PID and a mount namespace of its own (`tests.runners.cluster_node` is its process
1), so that a node ends at once and whole, and its private directories are truly its own. With `network=True` each has
a network namespace too, joined by a bridge in that of the head, and can be cut off; a driver then has to run in
the head's (`inside`). Nothing of it is seen from outside or outlives the process that made it, however that ends.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import psutil

__all__ = ["HEAD", "Cluster", "Node", "ray_cluster", "why_no_cluster"]

HEAD: Final = "head"
WITHIN_S: Final = 40.0

_OBJECTS_BYTES: Final = 80_000_000  # Ray takes no less than 75 MiB; pages that nobody touches cost nothing
_NAMESPACES: Final = (
    "--mount",
    "--propagation=slave",
    "--pid",
    "--fork",
    "--kill-child=KILL",
    "--mount-proc",
)
_STARTED: Final = "Ray runtime started"
_BRIDGE: Final = "bridge"
# `ray start` as if there were no grpcio: with it, the head starts a server for Ray Client on a fixed port, 100 MB more.
_RAY: Final = "import sys; sys.modules['grpc'] = None; from ray.scripts.scripts import main; main()"
_CUT: Final = """
add table inet cut
add chain inet cut in { type filter hook input priority 0; policy drop; }
add chain inet cut out { type filter hook output priority 0; policy drop; }
add rule inet cut in iif lo accept
add rule inet cut out oif lo accept
"""


def why_no_cluster(*, network: bool = False) -> str | None:
    """Why this machine cannot have a `Cluster`, None if it can."""
    programs = ["mount", "nsenter", "unshare", *(["ip", "nft"] if network else [])]
    if find_spec("ray") is None:
        return "Ray is not installed"
    if os.geteuid() != 0:
        return "only root makes namespaces"
    if missing := [program for program in programs if shutil.which(program) is None]:
        return f"not installed: {', '.join(missing)}"
    command = ["mount", "-t", "tmpfs", "none", "/mnt"]
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, *(["--net"] if network else []), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


@dataclass(frozen=True)
class Node:
    """One that runs. `pid` is its process 1, as it is called out here."""

    name: str
    ip: str
    pid: int
    log: Path
    process: subprocess.Popen[bytes]


class Cluster:
    """Nodes by their names; `HEAD` is one of them and is there from `start` on.

    Attributes:
        address: What a driver connects to: `ray.init(address)`.
        environment: What a driver's environment has to hold before it calls Ray for the first time.
        root: For the files of tests; every node sees it as it is here, but for `apart`.
        apart: A directory in `root` of which each node has its own, empty at first. The head's is the one out here.
        nodes: Those that were not killed.
    """

    def __init__(
        self,
        *,
        network: bool = False,
        head_cpus: int = 0,
        dead_after_s: int = 3,
        silent_after_s: int = 10,
        objects_bytes: int = _OBJECTS_BYTES,
    ) -> None:
        """Make one that is not started.

        Args:
            network: A network for each node.
            head_cpus: Ray's CPUs on the head; without any, all actors run on the nodes.
            dead_after_s: When Ray gives up a node whose processes are gone, in seconds.
            silent_after_s: How long Ray waits for the answer of a node that is paused or cut off, `dead_after_s` times.
        """
        self.root = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets need short paths
        self.apart = self.root / "apart"
        self.apart.mkdir()
        self.nodes: dict[str, Node] = {}
        self._network = network
        self._head_cpus = head_cpus
        self._objects_bytes = objects_bytes
        # without networks from 2: Ray takes 127.0.0.1 for the machine's other address
        self._numbers = itertools.count(1 if network else 2)
        self._ip_prefix = "10.77.0." if network else "127.0.0."
        self.address = f"{self._ip_prefix}{1 if network else 2}:{_free_port()}"
        # Ray listens on every address of the machine, so a stranger must not be let in.
        # Ray reads the token once in a process: what tests.conftest set, wherever it did.
        token = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        self._node_environment = self.environment | {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_prestart_worker_first_driver": "0",  # no process that nobody asked for
            "RAY_event_stats": "0",  # no dump of its state to the logs
            "RAY_enable_metrics_collection": "0",
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": str(1000 * silent_after_s),
            "RAY_health_check_failure_threshold": str(dead_after_s),
        }

    # -- nodes ---------------------------------------------------------------------------------------------------

    def start(self, names: Iterable[str] = ()) -> None:
        """Start the head and then, side by side, nodes."""
        self._await(self._launch(HEAD, self._head_options(), private=()))
        for node in [self._launch(name, self._node_options(name), private=()) for name in names]:
            self._await(node)

    def add_node(
        self, name: str, private: Sequence[str | os.PathLike[str]] = (), *, num_cpus: int = 2
    ) -> Node:
        """Start a node with so many CPUs and as much of a resource of its name; returns when Ray runs there.

        Args:
            name: Of no node that runs. It may be that of one that was killed: it is another machine then.
            private: Directories, besides `apart`, that are empty at first and the node's own.
            num_cpus: Ray's, for scheduling alone.
        """
        return self._await(self._launch(name, self._node_options(name, num_cpus), private))

    def ensure(self, names: Iterable[str]) -> None:
        """Bring it about that these nodes run, and are not paused or cut off, and no others but the head."""
        wanted = set(names)
        for name in set(self.nodes) - wanted - {HEAD}:
            self.kill_node(name)
        for name in wanted & set(self.nodes):
            self.resume(name)
            if self._network:
                self.heal(name)
        for node in [
            self._launch(name, self._node_options(name), ()) for name in sorted(wanted - set(self.nodes))
        ]:
            self._await(node)

    def kill_node(self, name: str) -> None:
        """End all processes of a node at once, as SIGKILL does; its private files are gone too."""
        node = self.nodes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(node.pid, signal.SIGKILL)
        _end(node.process)

    def pause(self, name: str) -> None:
        """Stop the processes of a node, as a machine that hangs does."""
        self.run_in(name, ["sh", "-c", "kill -STOP -1"])

    def resume(self, name: str) -> None:
        """Go on after `pause`."""
        self.run_in(name, ["sh", "-c", "kill -CONT -1"])

    def stop(self) -> None:
        """End everything and remove `root`."""
        for name in list(self.nodes):
            self.kill_node(name)
        shutil.rmtree(self.root, ignore_errors=True)

    # -- looking inside ------------------------------------------------------------------------------------------

    def inside(self, name: str, command: Sequence[str]) -> list[str]:
        """The command that runs a command in a node: with its files, processes and network."""
        enter = ["nsenter", f"--target={self.nodes[name].pid}", "--mount", "--pid", f"--wd={os.getcwd()}"]
        return [*enter, *(["--net"] if self._network else []), "--", *command]

    def run_in(self, name: str, command: Sequence[str], **options: Any) -> str:
        """What a command prints that is run in a node."""
        done = subprocess.run(
            self.inside(name, command),
            capture_output=True,
            text=True,
            check=False,
            timeout=WITHIN_S,
            **options,
        )
        assert done.returncode == 0, f"{name}: {command} ended with {done.returncode}: {done.stderr}"
        return done.stdout

    def hide(self, name: str, directory: str | os.PathLike[str]) -> None:
        """Give a node that runs its own empty directory in place of an existing one."""
        self.run_in(name, ["mount", "-t", "tmpfs", "none", os.fspath(directory)])

    def processes(self, name: str) -> list[psutil.Process]:
        """What runs in a node but for its process 1, as it is called out here."""
        return psutil.Process(self.nodes[name].pid).children(recursive=True)

    def log(self, name: str) -> str:
        """What `ray start` printed."""
        return self.nodes[name].log.read_text(errors="replace")

    # -- its network ---------------------------------------------------------------------------------------------

    def cut(self, name: str) -> None:
        """Let no packet in or out of a node, without a word to either end."""
        self.run_in(name, ["nft", "-f", "-"], input=_CUT)

    def heal(self, name: str) -> None:
        """Undo `cut`."""
        self.run_in(name, ["nft", "flush", "ruleset"])

    def _join(self, name: str, ip: str, pid: int) -> None:
        """Give a node its address, before Ray starts there."""
        in_node = ["nsenter", f"--target={pid}", "--net", "ip"]
        _call([*in_node, "link", "set", "lo", "up"])
        if name == HEAD:
            _call([*in_node, "link", "add", _BRIDGE, "type", "bridge"])
            _call([*in_node, "address", "add", f"{ip}/24", "dev", _BRIDGE])
            _call([*in_node, "link", "set", _BRIDGE, "up"])
            return
        head = self.nodes[HEAD].pid
        port = f"port{ip.rpartition('.')[2]}"
        ends = ["name", port, "netns", str(head), "type", "veth", "peer", "name", "eth0", "netns", str(pid)]
        _call(["ip", "link", "add", *ends])
        _call([*in_node, "address", "add", f"{ip}/24", "dev", "eth0"])
        _call([*in_node, "link", "set", "eth0", "up"])
        _call(["nsenter", f"--target={head}", "--net", "ip", "link", "set", port, "master", _BRIDGE, "up"])

    # -- starting ------------------------------------------------------------------------------------------------

    def _head_options(self) -> list[str]:
        port = self.address.rpartition(":")[2]
        return [
            "--head",
            f"--port={port}",
            "--include-dashboard=false",
            "--no-monitor",
            f"--num-cpus={self._head_cpus}",
        ]

    def _node_options(self, name: str, num_cpus: int = 2) -> list[str]:
        resources = json.dumps({name: num_cpus})
        return [f"--address={self.address}", f"--num-cpus={num_cpus}", f"--resources={resources}"]

    def _launch(self, name: str, options: Sequence[str], private: Sequence[str | os.PathLike[str]]) -> Node:
        assert name not in self.nodes, f"{name} runs already"
        number = next(self._numbers)
        ip = f"{self._ip_prefix}{number}"
        own = self.root / f"{name}{number}"
        own.mkdir()
        log = own / "start.log"
        unshare = ["unshare", *_NAMESPACES, *(["--net"] if self._network else [])]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*unshare, sys.executable, "-I", str(Path(__file__).with_name("cluster_node.py"))],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=own,  # not that of the tests: nothing is found there by luck
                env=_without_ray(os.environ) | self._node_environment,
                start_new_session=True,  # Ctrl-C is for the tests
            )
        try:
            node = Node(name, ip, _child_of(process, log), log, process)
            if self._network:
                self._join(name, ip, node.pid)
            command = [sys.executable, "-c", _RAY, "start", "--block", *options]
            command += [f"--node-ip-address={ip}", f"--node-name={name}", f"--temp-dir={own}"]
            command += [f"--object-store-memory={self._objects_bytes}", "--disable-usage-stats"]
            # ports that are free: the default range is one per machine
            command += ["--min-worker-port=0", "--max-worker-port=0", "--include-log-monitor=false"]
            own_directories = [] if name == HEAD else [os.fspath(path) for path in (self.apart, *private)]
            leftover = os.fspath(self.root) if name == HEAD else None
            order = {"private": own_directories, "command": command, "leftover": leftover}
            assert process.stdin is not None
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        except BaseException:
            _end(process)
            raise
        self.nodes[name] = node
        return node

    def _await(self, node: Node) -> Node:
        ends = time.monotonic() + WITHIN_S
        while _STARTED not in (printed := node.log.read_text(errors="replace")):
            if node.process.poll() is not None or time.monotonic() > ends:
                self.kill_node(node.name)
                raise AssertionError(f"Ray did not start on {node.name}: {printed[-3000:]}")
            time.sleep(0.05)
        return node


@contextmanager
def ray_cluster(names: Iterable[str] = ("node_b", "node_c"), **options: Any) -> Iterator[Cluster]:
    """A cluster with these nodes, see `Cluster`; everything is gone at the end."""
    cluster = Cluster(**options)
    try:
        cluster.start(names)
        yield cluster
    finally:
        cluster.stop()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let go of a node and wait until its last process is gone."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.wait(WITHIN_S)


def _child_of(process: subprocess.Popen[bytes], log: Path) -> int:
    ends = time.monotonic() + WITHIN_S
    while process.poll() is None and time.monotonic() < ends:
        if children := psutil.Process(process.pid).children():
            return children[0].pid
        time.sleep(0.005)
    raise AssertionError(log.read_text(errors="replace"))


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _without_ray(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("RAY_")}
