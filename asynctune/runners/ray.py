"""Owns trials on Ray Core: each agent is an actor. How agents and driver talk is not Ray's: see `remote`.

Ray places actors, reserves their resources, and tells when they die. No object of Ray's store carries anything. Needs
the extra `ray`, on every machine.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from asynctune.errors import ConfigError, MissingExtraError, TrialFailedError
from asynctune.runners.agent import run_agent
from asynctune.runners.ray_connection import RayConnection, first_of, join, refuse_client
from asynctune.runners.remote import RemoteRunner

__all__ = ["RayRunner"]

logger = logging.getLogger("asynctune")

_BETWEEN_S: Final = 1.0
_MEANT: Final = {
    "cpu": "cpu",
    "cpus": "cpu",
    "num_cpus": "cpu",
    "gpu": "gpu",
    "gpus": "gpu",
    "num_gpus": "gpu",
}
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
            refuse_client(address)
        self._address = address
        self._resources = dict(resources)
        self._connecting: asyncio.Future[str] | None = None
        self._ray: RayConnection | None = None
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
        self._ray = join(self._address)
        import ray  # noqa: PLC0415 - few have it

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
        connection = self._ray
        assert connection is not None
        made = self._actor.options(**self.actor_options)

        def start() -> tuple[Any, Any]:
            connection.check()
            actor = made.remote()
            return actor, actor.run.remote(order)

        return _Placement(start, connection)

    async def aclose(self) -> None:
        """Leave the cluster, if this has joined it; what this has started ends."""
        if self._connecting is not None:  # who was cancelled meanwhile leaves it under way
            await asyncio.wait([self._connecting])
            if not self._connecting.cancelled() and self._connecting.exception() is not None:
                logger.debug("Ray was not reached: %s", self._connecting.exception())
            self._connecting = None
        connection, self._ray = self._ray, None
        self._actor = None
        if connection is not None:
            await asyncio.to_thread(connection.leave)


class _Placement:
    """One actor; another one, if Ray has placed it on a node that was dead already. Made in a thread.

    Args:
        start: Makes an actor, and has it run; both. Blocking.
        connection: By which Ray was reached.
    """

    def __init__(self, start: Callable[[], tuple[Any, Any]], connection: RayConnection) -> None:
        self._start = start
        self._connection = connection
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
                try:
                    asked = await asyncio.to_thread(self._asked)
                except TrialFailedError as error:
                    return f"is out of reach: {error}"
            except RayActorError as error:
                if self._again > 0 and _NEVER_RAN in str(error):
                    self._again -= 1
                    logger.info("an agent was not started, and is started elsewhere: %s", error)
                    self._actor, self._running = await asyncio.to_thread(self._start)
                    asked = self._running
                    continue
                return f"is gone: {first_of(str(error))}"
            except Exception as error:  # noqa: BLE001 - of the agent itself, as Ray tells it
                return f"has failed: {_reason(error)}"
            else:
                return f"has ended: {answer or 'its actor was told to'}"

    def _asked(self) -> Any:
        self._connection.check()
        return self._actor.is_there.remote()

    async def kill(self) -> None:
        """End the actor."""
        self._again = 0
        await asyncio.to_thread(self._kill)

    def _kill(self) -> None:
        import ray  # noqa: PLC0415 - few have it

        try:
            self._connection.check()
            ray.kill(self._actor, no_restart=True)
        except (
            TrialFailedError,
            ValueError,
            RuntimeError,
            ConnectionError,
        ) as error:  # it is gone, or Ray is
            logger.debug("an actor could not be killed: %s", error)


async def _answer(asked: Any) -> Any:
    """What a call of an actor returns; cancelled, it goes on, and nobody asks how it ends."""
    answer = asyncio.wrap_future(asked.future())
    answer.add_done_callback(lambda each: each.cancelled() or each.exception())
    return await asyncio.shield(answer)


def _parts(amount: float) -> int:
    return round(amount * _PARTS)


def _reason(error: BaseException) -> str:
    """What an exception in the actor's process says, without Ray's trace of it."""
    cause = getattr(error, "cause", None) or error
    return first_of(f"{type(cause).__name__}: {cause}")


def _checked(resources: Mapping[str, float]) -> Mapping[str, float]:
    if not isinstance(resources, Mapping):
        raise ConfigError(f"resources_per_trial must be a mapping of names to amounts, not {resources!r:.80}")
    for name, amount in resources.items():
        if isinstance(name, str) and (known := _MEANT.get(name.lower(), name)) != name:
            raise ConfigError(f"resources_per_trial has {name!r}; it is called {known!r} here")
        if (
            not isinstance(name, str)
            or not isinstance(amount, int | float)
            or isinstance(amount, bool)
            or not 0 <= amount < math.inf
        ):
            raise ConfigError(f"resources_per_trial has {name!r}: {amount!r:.80}; amounts are numbers from 0")
    return resources
