"""Owns trials on Ray Core: each agent is an actor. How agents and driver talk is not Ray's: see `remote`.

Ray places actors, reserves their resources, and tells when they die. No object of Ray's store carries anything. Needs
the extra `ray`, on every machine.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from asynctune.errors import ConfigError, MissingExtraError, TrialFailedError
from asynctune.runners.agent import run_agent
from asynctune.runners.remote import RemoteRunner

__all__ = ["RayRunner"]

logger = logging.getLogger("asynctune")

_BETWEEN_S: Final = 1.0
_ANSWERS_WITHIN_S: Final = 10.0
_MORE_PLACES: Final = 3
_NEVER_RAN: Final = "The actor never ran"
_PARTS: Final = 10_000
"""Ray counts resources in ten-thousandths."""
_REASON_CHARACTERS: Final = 600


class RayRunner(RemoteRunner):
    """Runs each trial in an actor of Ray Core, on whatever node has room.

    Actors are used for one trial after the other. What trials save comes to this machine's disk, or goes straight to
    the bucket, as `SyncConfig` says. Every node needs asynctune with the same release, and has to reach this machine.

    Args:
        address: Of a running cluster, as `ray.init` takes it (not `ray://`); `None`: the one that this process or
            machine is part of, and if there is none, one is started on this machine, and stopped at the end.
        resources_per_trial: What a trial reserves: `"cpu"`, `"gpu"`, `"memory"` (bytes), and names of the cluster's
            own; `None`: one CPU.
        max_concurrent: How many trials run at the same time at most; `None`: as many as the cluster has room for when
            the Tuner starts. With more than that, those without a place wait for one, such as a node that is being
            started.
        runtime_env: As Ray takes it, for the actors.
        scheduling_strategy: Where actors go: as `ray` takes it, such as `"SPREAD"` or a placement group's.
        **options: As for `RemoteRunner`.

    Raises:
        ConfigError: A value that cannot work.
    """

    def __init__(
        self,
        address: str | None = None,
        resources_per_trial: Mapping[str, float] | None = None,
        max_concurrent: int | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        *,
        scheduling_strategy: Any = None,
        **options: Any,
    ) -> None:
        engine = _RayEngine(
            address, _checked({"cpu": 1} if resources_per_trial is None else resources_per_trial)
        )
        if runtime_env is not None:
            if not isinstance(runtime_env, Mapping):
                raise ConfigError(f"runtime_env must be a mapping, as Ray takes it, not {runtime_env!r:.80}")
            engine.actor_options["runtime_env"] = dict(runtime_env)
        if scheduling_strategy is not None:
            engine.actor_options["scheduling_strategy"] = scheduling_strategy
        super().__init__(engine, max_concurrent=max_concurrent, **options)


class _Agent:
    """The actor."""

    def run(self, order: bytes) -> str:
        import ray  # noqa: PLC0415 - the actor's process has it

        context = ray.get_runtime_context()
        return run_agent(order, f"{ray.util.get_node_ip_address()} (Ray node {context.get_node_id()[:12]})")

    def is_there(self) -> None:
        """Answered when `run` has ended, or with the reason why it never will be."""


class _RayEngine:
    """Ray as an `Engine`."""

    def __init__(self, address: str | None, resources: Mapping[str, float]) -> None:
        if address is not None:
            _refuse_client(address)
        self._address = address
        self._resources = dict(resources)
        self._connecting: asyncio.Future[str] | None = None
        self._connected = False
        self._capacity = 1
        self._actor: Any = None
        named = {"cpu": "num_cpus", "gpu": "num_gpus", "memory": "memory"}
        own = {name: amount for name, amount in resources.items() if name not in named}
        self.actor_options: dict[str, Any] = {
            "num_cpus": 0,
            **{named[name]: amount for name, amount in resources.items() if name in named},
            "resources": own,
            "max_restarts": 0,
            "max_task_retries": 0,
        }

    @property
    def capacity(self) -> int:
        """How many actors have room in the cluster as it was found; at least 1."""
        return self._capacity

    async def start(self) -> str:
        """Connect to Ray, or start it."""
        if importlib.util.find_spec("ray") is None:
            raise MissingExtraError("ray", "ray", "RayRunner")
        self._connecting = asyncio.ensure_future(asyncio.to_thread(self._connect))
        return await asyncio.shield(self._connecting)

    def _connect(self) -> str:
        # Read when Ray is imported. Its own handler prints a trace at each SIGTERM, which a Tuner takes as a wish.
        os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
        import ray  # noqa: PLC0415 - few have it

        if not ray.is_initialized():
            logging.getLogger("ray._private.worker").addFilter(_is_for_users)
            address = _found(self._address)
            settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
            if address is None:
                logger.info("no Ray is running: one is started on this machine")
                settings["include_dashboard"] = False
            try:
                ray.init(address=address or "local", **settings)
            except (
                ConnectionError,
                RuntimeError,
                ValueError,
                SystemExit,
            ) as error:  # the latter if no Ray answers
                raise ConfigError(
                    f"cannot reach Ray at {address or 'this machine'}: {error}{_cause(error)}"
                ) from error
            self._connected = True
        self._actor = ray.remote(_Agent)
        self._capacity = self._room(ray.nodes())
        return str(ray.util.get_node_ip_address())

    def _room(self, nodes: list[dict[str, Any]]) -> int:
        """How many actors fit on the nodes."""
        named = {"cpu": "CPU", "gpu": "GPU"}
        asked = {named.get(name, name): amount for name, amount in self._resources.items() if amount > 0}
        room = 0
        for node in nodes:
            if node.get("Alive"):
                has = node["Resources"]
                fits = [_parts(has.get(name, 0)) // max(1, _parts(amount)) for name, amount in asked.items()]
                room += min(fits, default=int(has.get("CPU", 1)))
        if not room:
            logger.warning("no node of the Ray cluster has %s: trials wait for one that has", asked)
        return max(1, room)

    async def launch(self, order: bytes) -> _Placement:
        """Have an actor made; Ray places it when there is room."""
        if self._actor is None:
            raise TrialFailedError("Ray was not started")
        try:
            return await asyncio.to_thread(self._launch, order)
        except Exception as error:
            raise TrialFailedError(f"Ray cannot make an actor: {type(error).__name__}: {error}") from error

    def _launch(self, order: bytes) -> _Placement:
        made = self._actor.options(**self.actor_options)

        def start() -> tuple[Any, Any]:
            actor = made.remote()
            return actor, actor.run.remote(order)

        return _Placement(start)

    async def aclose(self) -> None:
        """Leave the cluster, if this has joined it; what this has started ends."""
        if self._connecting is not None:  # who was cancelled meanwhile leaves it under way
            await asyncio.wait([self._connecting])
            if not self._connecting.cancelled() and self._connecting.exception() is not None:
                logger.debug("Ray was not reached: %s", self._connecting.exception())
            self._connecting = None
        connected, self._connected = self._connected, False
        self._actor = None
        if connected:
            await asyncio.to_thread(_disconnect)


class _Placement:
    """One actor; another one, if Ray has placed it on a node that was dead already. Made in a thread.

    Args:
        start: Makes an actor, and has it run; both. Blocking.
    """

    def __init__(self, start: Callable[[], tuple[Any, Any]]) -> None:
        self._start = start
        self._again = _MORE_PLACES
        self._actor, self._running = start()

    async def ended(self) -> str:
        """Why its process is gone; see `Placement`."""
        from ray.exceptions import ActorUnavailableError, RayActorError  # noqa: PLC0415 - few have it

        asked = self._running
        while True:
            try:
                answer = await _answer(asked)
            except ActorUnavailableError:
                # The network may be cut, or the node is dead and Ray does not know it yet.
                await asyncio.sleep(_BETWEEN_S)
                asked = await asyncio.to_thread(self._actor.is_there.remote)
            except RayActorError as error:
                if self._again > 0 and _NEVER_RAN in str(error):
                    self._again -= 1
                    logger.info("an agent was not started, and is started elsewhere: %s", error)
                    self._actor, self._running = await asyncio.to_thread(self._start)
                    asked = self._running
                    continue
                return f"is gone: {_first_of(str(error))}"
            except Exception as error:  # noqa: BLE001 - of the agent itself, as Ray tells it
                return f"has failed: {_first_of(str(error))}"
            else:
                return f"has ended: {answer or 'its actor was told to'}"

    async def kill(self) -> None:
        """End the actor."""
        self._again = 0
        await asyncio.to_thread(_kill, self._actor)


async def _answer(asked: Any) -> Any:
    """What a call of an actor returns; cancelled, it goes on, and nobody asks how it ends."""
    answer = asyncio.wrap_future(asked.future())
    answer.add_done_callback(lambda each: each.cancelled() or each.exception())
    return await asyncio.shield(answer)


def _kill(actor: Any) -> None:
    import ray  # noqa: PLC0415 - few have it

    if ray.is_initialized():
        try:
            ray.kill(actor, no_restart=True)
        except (ValueError, RuntimeError, ConnectionError) as error:  # it is gone, or Ray is
            logger.debug("an actor could not be killed: %s", error)


def _is_for_users(record: logging.LogRecord) -> bool:
    """Ray warns that it has not taken SIGTERM over: it is the Tuner that has."""
    return not str(record.msg).startswith("SIGTERM handler is not set")


def _disconnect() -> None:
    import ray  # noqa: PLC0415 - few have it

    ray.shutdown()


def _found(address: str | None) -> str | None:
    """The address of a Ray that runs; `None`: there is none. Blocking.

    Raises:
        ConfigError: Nobody answers at the one that was asked for.
    """
    if address not in (None, "auto"):
        _await_answer(address)
        return address
    from_environment = os.environ.get("RAY_ADDRESS") or None
    if from_environment not in (None, "auto", "local"):
        _refuse_client(from_environment)
        _await_answer(from_environment)
        return from_environment
    if from_environment == "local":
        return None
    from ray._private.services import canonicalize_bootstrap_address  # noqa: PLC0415 - few have it

    try:
        found = canonicalize_bootstrap_address("auto")
        if found is not None:
            _await_answer(found)
            return str(found)
    except (ConnectionError, ConfigError) as error:  # the note of one that was killed stays
        logger.debug("no Ray of this machine answers: %s", error)
    if address == "auto":
        raise ConfigError(
            "cannot reach Ray at this machine: none is running; start one, or leave out the address"
        )
    return None


def _await_answer(address: str) -> None:
    """Ray itself takes two minutes, and ends the process.

    Raises:
        ConfigError: Nobody answers there.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        return  # not one that is known here
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot reach Ray at {address}: {error}; is a cluster running there?") from error


def _cause(error: BaseException) -> str:
    """What Ray hides under its error, such as a wrong token: the end of a trace."""
    told = str(error.__cause__ or "").strip().rpartition("\n")[2]
    return f" ({_first_of(told)})" if told else ""


def _refuse_client(address: str) -> None:
    if address.startswith("ray://"):
        raise ConfigError(
            f"{address} is of Ray's client, whose nodes cannot call this process; run the driver on a machine of "
            "the cluster, with the address of the cluster itself"
        )


def _parts(amount: float) -> int:
    return round(amount * _PARTS)


def _first_of(text: str) -> str:
    """The lines that say why, without the trace."""
    told = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return told if len(told) <= _REASON_CHARACTERS else f"{told[:_REASON_CHARACTERS]}..."


def _checked(resources: Mapping[str, float]) -> Mapping[str, float]:
    if not isinstance(resources, Mapping):
        raise ConfigError(f"resources_per_trial must be a mapping of names to amounts, not {resources!r:.80}")
    for name, amount in resources.items():
        if (
            not isinstance(name, str)
            or not isinstance(amount, int | float)
            or isinstance(amount, bool)
            or not 0 <= amount < math.inf
        ):
            raise ConfigError(f"resources_per_trial has {name!r}: {amount!r:.80}; amounts are numbers from 0")
    return resources
