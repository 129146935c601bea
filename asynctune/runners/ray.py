"""Owns trials on Ray Core: each agent is an actor. How agents and driver talk is not Ray's: see `remote`.

Ray places actors, reserves their resources, and tells when they die. No object of Ray's store carries anything. Needs
the extra `ray`, on every machine.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from asynctune.checkpoints.disk import to_the_end
from asynctune.errors import ConfigError, MissingExtraError, TrialFailedError
from asynctune.runners.agent import run_agent
from asynctune.runners.ray_connection import RayConnection, first_of, join, last_of, refuse_client
from asynctune.runners.ray_placing import RayPlacing
from asynctune.runners.remote import RemoteRunner

__all__ = ["RayRunner"]

logger = logging.getLogger("asynctune")

_ANSWERS_WITHIN_S: Final = 10.0
_BETWEEN_S: Final = 1.0
_LOOK_S: Final = 10.0
_MORE_PLACES: Final = 3
_NEVER_RAN: Final = "The actor never ran"

T = TypeVar("T")


class _Started(NamedTuple):
    """An actor, and what is answered when it is there, and when it has ended."""

    actor: Any
    ready: Any
    running: Any


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
        engine = _RayEngine(address, RayPlacing(resources_per_trial, runtime_env, scheduling_strategy))
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

    def __init__(self, address: str | None, placing: RayPlacing) -> None:
        if address is not None:
            refuse_client(address)
        self._address = address
        self._placing = placing
        self._connecting: asyncio.Future[str] | None = None
        self._ray: RayConnection | None = None
        self._capacity = 1
        self._actor: Any = None
        self._has_placed = False
        self._looking = asyncio.Lock()
        self._calls: set[asyncio.Future[Any]] = set()
        """Threads that ask Ray something."""

    @property
    def capacity(self) -> int:
        """How many actors have room in the cluster as it was found; at least 1."""
        return self._capacity

    async def start(self) -> str:
        """Connect to Ray, or start it."""
        if importlib.util.find_spec("ray") is None:
            raise MissingExtraError("ray", "ray", "RayRunner")
        self._looking = asyncio.Lock()  # another event loop's, perhaps
        self._connecting = asyncio.ensure_future(asyncio.to_thread(self._connect))
        return await asyncio.shield(self._connecting)

    def _connect(self) -> str:
        self._ray = join(self._address)
        import ray  # noqa: PLC0415 - few have it

        self._actor = self._placing.made(_Agent)
        self._capacity = self._placing.room()
        self._has_placed = False
        return str(ray.util.get_node_ip_address())

    async def launch(self, order: bytes) -> _Placement:
        """Have an actor made; Ray places it when there is room."""
        if self._actor is None:
            raise TrialFailedError("Ray was not started")
        try:
            return await self._launched(order)
        except (ConfigError, TrialFailedError):
            raise
        # of the options, for the order is bytes: the next one is refused, too
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"Ray can make no actor with runtime_env and scheduling_strategy as they are: {error}"
            ) from error
        except Exception as error:
            raise TrialFailedError(f"Ray cannot make an actor: {type(error).__name__}: {error}") from error

    async def _launched(self, order: bytes) -> _Placement:
        launching = self.begun(lambda: self._launch(order))
        try:
            return await asyncio.shield(launching)
        except asyncio.CancelledError:
            launching.add_done_callback(self._unwanted)
            raise

    def _unwanted(self, launching: asyncio.Future[_Placement]) -> None:
        """Who wanted an actor was cancelled while it was made."""
        if not launching.cancelled() and launching.exception() is None:
            self.begun(launching.result().end)

    def begun(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Ask Ray something, in a thread; the connection is not left before it has answered, whoever is cancelled."""
        call = asyncio.ensure_future(asyncio.to_thread(function))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        call.add_done_callback(lambda each: each.cancelled() or each.exception())
        return call

    def _launch(self, order: bytes) -> _Placement:
        connection, made = self._ray, self._actor
        assert connection is not None

        def start() -> _Started:
            connection.check()
            self._placing.check_group()
            actor = made.remote()
            return _Started(actor, actor.__ray_ready__.remote(), actor.run.remote(order))

        return _Placement(start, connection, self)

    async def placed(self, ready: Any) -> None:
        """Return when an actor runs.

        Args:
            ready: Answered then.

        Raises:
            ConfigError: None can ever, with these settings.
            Others of Ray's: This one never will.
        """
        from ray.exceptions import ActorUnschedulableError, RuntimeEnvSetupError  # noqa: PLC0415 - few have it

        try:
            await (self._while_there_is_a_group(ready) if self._placing.has_group else _answer(ready))
        except RuntimeEnvSetupError as error:
            # Ray has tried several times. Once it has worked, it is no setting that is wrong: a node cannot reach what
            # it needs, and the trial may find another one.
            if self._has_placed:
                raise
            raise ConfigError(f"Ray cannot set up runtime_env: {last_of(str(error))}") from error
        except ActorUnschedulableError as error:
            raise ConfigError(
                f"scheduling_strategy leads nowhere: {first_of(str(error))} Give another one to a new RayRunner; "
                "Tuner.restore goes on"
            ) from error
        self._has_placed = True

    async def _while_there_is_a_group(self, ready: Any) -> None:
        """Wait, and look after the placement group meanwhile; one at a time, for Ray itself may not answer."""
        waiting = asyncio.ensure_future(_answer(ready))
        waiting.add_done_callback(lambda each: each.cancelled() or each.exception())
        try:
            while not (await asyncio.wait([waiting], timeout=_LOOK_S))[0]:
                async with self._looking:
                    await asyncio.shield(self.begun(self._look))
            await waiting
        finally:
            waiting.cancel()
            await asyncio.wait([waiting])

    def _look(self) -> None:
        if self._ray is not None:
            self._ray.check()
            self._placing.check_group()

    async def aclose(self) -> None:
        """Leave the cluster, if this has joined it; what this has started ends."""
        await to_the_end(self._close())

    async def _close(self) -> None:
        connecting, self._connecting = self._connecting, None
        if (
            connecting is not None and not connecting.done()
        ):  # who was cancelled meanwhile leaves it under way
            await asyncio.wait([connecting])
        if connecting is not None and not connecting.cancelled() and connecting.exception() is not None:
            logger.debug("Ray was not reached: %s", connecting.exception())
        # What is asked of Ray once it is left, it connects by itself for.
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWERS_WITHIN_S):
                while self._calls:
                    await asyncio.wait(set(self._calls))
        connection, self._ray = self._ray, None
        self._actor = None
        if connection is not None:
            await asyncio.to_thread(connection.leave)


class _Placement:
    """One actor; another one, if Ray has placed it on a node that was dead already. Made in a thread.

    Args:
        start: Makes an actor, and has it run. Blocking.
        connection: By which Ray was reached.
        engine: Knows when it is placed.
    """

    def __init__(self, start: Callable[[], _Started], connection: RayConnection, engine: _RayEngine) -> None:
        self._start = start
        self._connection = connection
        self._engine = engine
        self._again = _MORE_PLACES
        self._changing = threading.Lock()
        self._is_over = False
        self._now = start()

    async def ended(self) -> str:
        """Why its process is gone; see `Placement`."""
        from ray.exceptions import (  # noqa: PLC0415 - few have it
            ActorUnavailableError,
            RayActorError,
            RuntimeEnvSetupError,
        )

        asked = None
        while True:
            now = self._now
            try:
                if asked is None:
                    await self._while_connected(self._engine.placed(now.ready))
                    asked = now.running
                answer = await self._while_connected(_answer(asked))
            except ConfigError:
                raise
            except ActorUnavailableError:
                # The network may be cut, or the node is dead and Ray does not know it yet.
                await asyncio.sleep(_BETWEEN_S)
                try:
                    asked = await asyncio.shield(self._engine.begun(self._asked))
                except TrialFailedError as error:
                    return f"is out of reach: {error}"
            except RayActorError as error:
                if self._again > 0 and _NEVER_RAN in str(error):
                    self._again -= 1
                    logger.info("an agent was not started, and is started elsewhere: %s", error)
                    if (why := await self._elsewhere(now)) is not None:
                        return why
                    asked = None
                    continue
                self._connection.check()
                return f"is gone: {first_of(str(error))}"
            except RuntimeEnvSetupError as error:
                return f"was not started: Ray could not set up runtime_env: {last_of(str(error))}"
            except Exception as error:  # noqa: BLE001 - of the agent itself, as Ray tells it
                self._connection.check()
                return f"has failed: {_reason(error)}"
            else:
                return f"has ended: {answer or 'its actor was told to'}"

    async def _while_connected(self, asked: Awaitable[T]) -> T:
        """Wait for an answer of Ray's; where somebody disconnects this process, some never come."""
        waiting = asyncio.ensure_future(asked)
        waiting.add_done_callback(lambda each: each.cancelled() or each.exception())
        try:
            while not (await asyncio.wait([waiting], timeout=_BETWEEN_S))[0]:
                self._connection.check()
            return await waiting
        finally:
            waiting.cancel()
            await asyncio.wait([waiting])

    def _asked(self) -> Any:
        self._connection.check()
        return self._now.actor.is_there.remote()

    async def kill(self) -> None:
        """End the actor."""
        self._again = 0
        await asyncio.shield(self._engine.begun(self.end))

    async def _elsewhere(self, failed: _Started) -> str | None:
        """Start another one in its place; why that cannot be."""
        try:
            await asyncio.shield(self._engine.begun(partial(self._start_again, failed)))
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever Ray says
            return f"could not be started elsewhere: {_reason(error)}"
        return None

    def _start_again(self, failed: _Started) -> None:
        """In place of the actor that has failed, once, whoever has seen that."""
        with self._changing:
            if not self._is_over and self._now is failed:
                self._now = self._start()

    def end(self) -> None:
        """End the actor, and start none in its place. Blocking."""
        import ray  # noqa: PLC0415 - few have it

        with self._changing:
            self._is_over = True
            try:
                self._connection.check()
                ray.kill(self._now.actor, no_restart=True)
            except Exception as error:  # noqa: BLE001 - it is gone, or Ray is: nothing can be done about it
                logger.debug("an actor could not be killed: %s", error)


async def _answer(asked: Any) -> Any:
    """What a call of an actor returns; cancelled, it goes on, and nobody asks how it ends."""
    answer = asyncio.wrap_future(asked.future())
    answer.add_done_callback(lambda each: each.cancelled() or each.exception())
    return await asyncio.shield(answer)


def _reason(error: BaseException) -> str:
    """What an exception in the actor's process says, without Ray's trace of it."""
    cause = getattr(error, "cause", None) or error
    return first_of(f"{type(cause).__name__}: {cause}")
