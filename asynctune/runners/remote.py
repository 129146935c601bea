"""Owns the runner of trials on other machines, whatever starts processes there: an `Engine`.

It keeps the agents: starts one when a trial needs it, lends it to one trial at a time, uses it again, and ends it. What
an agent does is `agents`' and `agent`'s; which machine it is on is the engine's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Protocol

from asynctune.checkpoints.disk import DiskThreads
from asynctune.config import CheckpointConfig, SyncConfig
from asynctune.errors import ConfigError, TrialFailedError
from asynctune.protocols import CheckpointPlace, Decision, TrialReport, TrialTask
from asynctune.runners.agent import Order
from asynctune.runners.agents import AgentHandle, Placement
from asynctune.runners.bringing import Settings
from asynctune.runners.inline import in_use
from asynctune.runners.meeting import Listener, new_secret
from asynctune.runners.node_directory import checked_worker_dir
from asynctune.runners.orders import hello_for
from asynctune.runners.peer import PeerLostError
from asynctune.storage.budget import ByteBudget

__all__ = ["Engine", "RemoteRunner"]

logger = logging.getLogger("asynctune")

Report = Callable[[TrialReport], Awaitable[Decision]]

_READ_AHEAD_BYTES: Final = 64 << 20
_DIRECT: Final = ("s3://", "gs://")
_TELL_S: Final = 30.0
_MAX_PORT: Final = 65_535


class Engine(Protocol):
    """Starts processes on machines. One runner at a time calls `start`, `launch` for each agent, and `aclose`."""

    async def start(self) -> str:
        """Get ready; the address under which its machines reach this one.

        Raises:
            ConfigError: It cannot be reached, or can run no trial.
            MissingExtraError: Its package is not installed.
        """
        ...

    @property
    def capacity(self) -> int:
        """How many agents there may be at the same time; asked after `start`."""
        ...

    async def launch(self, order: bytes) -> Placement:
        """Have `run_agent(order, node)` called in a new process on some machine, soon.

        Does not wait for it: the agent calls. Cancelled, it may have been started or not.

        Raises:
            TrialFailedError: It cannot be.
            ConfigError: Nor can any other, with these settings: the experiment ends.
        """
        ...

    async def aclose(self) -> None:
        """End what `start` has started, and nothing else. Again: does nothing."""
        ...


class RemoteRunner:
    """Runs trials on the machines of an engine; a `TrialRunner`.

    What trials save comes to this machine, or goes to the bucket, as `SyncConfig` says; see `docs/many-machines.md`.

    Args:
        engine: Where processes are started.
        max_concurrent: How many trials run at the same time at most; `None`: as many as the engine has room for.
        hung_after_s: See `ProcessRunner`.
        stop_grace_s: See `ProcessRunner`.
        lost_after_s: A node that gives no sign of life for so many seconds is lost, and its trial has failed. On the
            node, a trial whose driver gives none for so long is ended.
        listen_host: Address of this machine that the nodes reach; `None`: the one that the engine knows.
        listen_port: Where it listens for them; 0: any free port.
        worker_dir: Directory on the nodes' disks where trials write that do not see this machine's; `None`: below that
            for temporary files.

    Raises:
        ConfigError: A value that makes no sense.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_concurrent: int | None = None,
        hung_after_s: float = 60.0,
        stop_grace_s: float = 600.0,
        lost_after_s: float = 60.0,
        listen_host: str | None = None,
        listen_port: int = 0,
        worker_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if max_concurrent is not None and (
            not isinstance(max_concurrent, int) or isinstance(max_concurrent, bool) or max_concurrent < 1
        ):
            raise ConfigError(
                f"max_concurrent must be a whole number from 1, or None, not {max_concurrent!r}"
            )
        seconds = {"hung_after_s": hung_after_s, "stop_grace_s": stop_grace_s, "lost_after_s": lost_after_s}
        for name, value in seconds.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise ConfigError(f"{name} must be a number of seconds above 0, not {value!r}")
        if not isinstance(listen_port, int) or not 0 <= listen_port <= _MAX_PORT:
            raise ConfigError(
                f"listen_port must be a whole number from 0 to {_MAX_PORT}, not {listen_port!r:.80}"
            )
        self._engine = engine
        self._max_concurrent = max_concurrent
        self._hung_after_s = hung_after_s
        self._stop_grace_s = stop_grace_s
        self._lost_after_s = lost_after_s
        self._listen_host = listen_host
        self._listen_port = listen_port
        self._worker_dir = checked_worker_dir(worker_dir)
        self._host = ""
        self._secret = b""
        self._hello = b""
        self._settings: dict[str, Any] = {}
        self._goes_straight = False
        self._listener: Listener | None = None
        self._budget = ByteBudget(_READ_AHEAD_BYTES)
        self._threads: DiskThreads | None = None
        self._idle: list[AgentHandle] = []
        self._waiting: deque[asyncio.Future[AgentHandle]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._coming = 0
        """How many agents are being started: never fewer than there are trials that wait."""
        self._all: dict[AgentHandle, asyncio.Task[None]] = {}
        self._in_use = False
        self._closed = True
        self._runs = 0
        self._keep: int | None = None

    @property
    def capacity(self) -> int:
        """How many trials it runs at the same time at most; known after `start`."""
        if self._max_concurrent is not None:
            return self._max_concurrent
        return self._engine.capacity

    async def start(self, trainable: Any, options: Mapping[str, Any]) -> None:
        """Pack the trainable, reach the engine, and listen for agents.

        Raises:
            ConfigError: The trainable cannot be packed, the engine cannot be reached, or nobody can listen; or the
                runner was started and not closed since.
            MissingExtraError: The engine's package is not installed.
        """
        if self._in_use:
            raise ConfigError(in_use(self))
        self._in_use = True
        try:
            self._hello = await hello_for(trainable, options, hung_after_s=self._hung_after_s)
            self._settings = self._settings_of(options)
            self._secret = new_secret()
            host = await self._engine.start()
            self._host = self._listen_host or host
            self._threads = DiskThreads()
            self._listener = Listener(self._secret)
            await self._listener.start(self._host, self._listen_port)
        except BaseException:
            try:
                await self._let_go()
            finally:
                self._in_use = False
            raise
        self._closed = False

    def _settings_of(self, options: Mapping[str, Any]) -> dict[str, Any]:
        sync = options.get("sync_config") or SyncConfig()
        self._goes_straight = sync.syncer == "auto"
        checkpoints = options.get("checkpoint_config") or CheckpointConfig()
        is_scored = checkpoints.checkpoint_score_attribute is not None
        self._keep = None if is_scored else checkpoints.num_to_keep
        return Settings(
            must_be_shared=sync.syncer is None,
            storage_options=dict(options.get("storage_options") or sync.storage_options or {}) or None,
            sync_on_checkpoint=sync.sync_on_checkpoint,
            sync_period_s=float(sync.sync_period),
            sync_timeout_s=float(sync.sync_timeout),
        ).to_value()

    def can_fetch(self, place: CheckpointPlace, copy: str | None) -> bool:
        """Whether nodes read a checkpoint where it is: in a bucket, or in the directory that all machines share."""
        if self._settings.get("must_be_shared"):
            return place.path is not None
        return place.is_in_copy and self._is_straight(copy)

    def _is_straight(self, copy: str | None) -> bool:
        """Whether nodes reach the experiment's copy by themselves."""
        return copy is not None and self._goes_straight and copy.startswith(_DIRECT)

    async def run_trial(self, task: TrialTask, report: Report) -> None:
        """Run the trial on some machine; cancelling the caller ends it there.

        Raises:
            TrialFailedError: The trial raised, its worker died or hung, or its node was lost.
            CheckpointNotFoundError: Its node could not read the checkpoint at `task.place`.
            ConfigError: Its node does not see this machine's directory, and `syncer=None` says that it does; or a
                setting is wrong, so that no trial can run on that node.
        """
        if not self._is_straight(task.copy):
            task = replace(task, copy=None)
        agent = await self._borrow(task)
        self._runs += 1
        try:
            await agent.run(task, report, self._settings, keep=self._keep)
        finally:
            self._runs -= 1
            await self._give_back(agent)

    async def aclose(self) -> None:
        """End all agents: idle ones let go of their `Trainable` object first. Again: does nothing."""
        self._closed = True
        while self._waiting:
            self._waiting.popleft().set_exception(ConfigError("the runner was closed"))
        for starting in self._starting:
            starting.cancel()
        if self._starting:
            await asyncio.wait(self._starting)
        self._coming = 0
        idle, self._idle = self._idle, []
        try:
            async with asyncio.TaskGroup() as tasks:
                for agent in list(self._all):
                    tasks.create_task(self._end(agent, politely=agent in idle))
        finally:
            try:
                if self._in_use:
                    await self._let_go()
            finally:
                self._in_use = False

    async def _let_go(self) -> None:
        """Close what `start` has opened."""
        listener, self._listener = self._listener, None
        threads, self._threads = self._threads, None
        try:
            if listener is not None:
                await listener.aclose()
        finally:
            if threads is not None and not self._runs:  # else they end with the last run
                threads.close()
            await self._engine.aclose()

    # -- agents --------------------------------------------------------------------------------------------

    async def _borrow(self, task: TrialTask) -> AgentHandle:
        """An agent for one trial: an idle one, one that becomes idle, or a new one, whichever is there first."""
        while self._idle:
            agent = self._idle.pop()
            if agent.peer.why_closed is None:
                return agent
            await self._end(agent)
        if self._listener is None or self._closed:
            raise ConfigError("the runner was not started: await runner.start(trainable, options) first")
        turn: asyncio.Future[AgentHandle] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if self._coming < len(self._waiting):
            self._coming += 1
            starting = asyncio.create_task(self._start_one(), name="asynctune-agent-start")
            self._starting.add(starting)
            starting.add_done_callback(self._starting.discard)
        try:
            return await self._told_if_long(turn, task)
        except TrialFailedError as error:
            raise TrialFailedError(f"trial {task.trial_id} could not start: {error}") from error
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                await self._give_back(turn.result())  # it came in the moment when it was not wanted any more
            raise
        finally:
            with suppress(ValueError):
                self._waiting.remove(turn)

    async def _told_if_long(self, turn: asyncio.Future[AgentHandle], task: TrialTask) -> AgentHandle:
        waited_s = 0.0
        while not (await asyncio.wait([turn], timeout=_TELL_S))[0]:
            waited_s += _TELL_S
            logger.warning(
                "trial %s has waited for %g s for a place to run: are there machines with the resources that it asks "
                "for, on which a process can start? The engine's own logs may say more",
                task.trial_id,
                waited_s,
            )
        return turn.result()

    async def _give_back(self, agent: AgentHandle) -> None:
        """A trial needs it no more: the next one that waits gets it."""
        if self._closed or not agent.is_usable or agent.peer.why_closed is not None:
            await self._end(agent)
            return
        if self._waiting:
            self._waiting.popleft().set_result(agent)
        else:
            self._idle.append(agent)

    async def _start_one(self) -> None:
        """Start an agent, for whichever trial waits when it is there.

        The engine may have no room for it before others end; the trials use those meanwhile.
        """
        assert self._listener is not None
        assert self._threads is not None
        agent: AgentHandle | None = None
        try:
            try:
                agent = await self._launch(self._listener, self._threads)
                await self._opened(agent)
            except BaseException:
                if agent is not None:
                    await self._end(agent)
                raise
        except Exception as error:  # noqa: BLE001 - the trial is told
            self._coming -= 1
            self._not_started(error)
        else:
            self._coming -= 1
            await self._give_back(agent)

    def _not_started(self, error: Exception) -> None:
        """Tell a trial that waits, unless there are enough other agents on their way; of a wrong setting at once."""
        if self._waiting and (isinstance(error, ConfigError) or self._coming < len(self._waiting)):
            self._waiting.popleft().set_exception(error)
        else:
            logger.warning("an agent could not be started, and is not missed: %s", error)

    async def _launch(self, listener: Listener, threads: DiskThreads) -> AgentHandle:
        order = Order(
            host=self._host,
            port=listener.port,
            agent_id=secrets.token_hex(8),
            secret=self._secret,
            hung_after_s=self._hung_after_s,
            lost_after_s=self._lost_after_s,
            worker_dir=self._worker_dir,
        )
        placement = await self._engine.launch(order.pack())
        agent = AgentHandle(
            order.agent_id,
            placement,
            stop_grace_s=self._stop_grace_s,
            lost_after_s=self._lost_after_s,
            budget=self._budget,
            threads=threads,
        )
        self._all[agent] = asyncio.create_task(agent.serve(), name=f"asynctune-agent-{order.agent_id}")
        listener.expect(order.agent_id, agent.peer)
        return agent

    async def _opened(self, agent: AgentHandle) -> None:
        """Wait until the agent has a place and has called: for as long as the engine has no room."""
        try:
            await agent.open(self._hello, self._settings)
        except PeerLostError as error:
            raise TrialFailedError(await agent.why(error)) from error
        if agent.peer.why_closed is not None:  # since it has answered
            raise TrialFailedError(f"{agent.peer.name} {agent.peer.why_closed}")

    async def _end(self, agent: AgentHandle, *, politely: bool = False) -> None:
        serving = self._all.pop(agent, None)
        if self._listener is not None:
            self._listener.forget(agent.agent_id)
        try:
            await agent.aclose(politely=politely)
        finally:
            if serving is not None:
                await asyncio.wait([serving])
                if not serving.cancelled() and (error := serving.exception()) is not None:
                    logger.error("%s ended badly", agent.peer.name, exc_info=error)
