"""Owns the process on a node that runs trials for a driver elsewhere: an engine starts it, and it calls the driver.

It starts the worker process (`worker`, the same as on the driver's own machine), passes messages on, and says what
became of it. What a trial writes goes below a directory of this agent's own, unless the node sees the driver's: how it
gets to the driver then is `bringing`'s. Which trial runs here is the driver's business.

Calls from the driver: `open` (what is run), `run` (one start of a trial; answered at its end), `abort` (end it),
`bring`, `upload` and `drop` (a checkpoint that waits here), `bye`. To the driver: `placed`, `report`, and those of
`bringing`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

from asynctune.checkpoints.travelling import Call
from asynctune.errors import (
    AsynctuneError,
    CheckpointNotFoundError,
    ConfigError,
    MissingExtraError,
    TrialFailedError,
)
from asynctune.packing import pack, unpack
from asynctune.protocols import CONTINUE, Decision
from asynctune.runners.bringing import Bringing, Settings, bringing_of
from asynctune.runners.connection import Connection, WorkerLostError
from asynctune.runners.frames import frame
from asynctune.runners.meeting import StrangerError, dial
from asynctune.runners.node_directory import NodeDirectory
from asynctune.runners.peer import Peer, PeerLostError
from asynctune.runners.spawning import spawn_worker
from asynctune.runners.told_errors import told

__all__ = ["Order", "run_agent"]

logger = logging.getLogger("asynctune")

_AGAIN_S: Final = 0.5
_GOODBYE_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an engine gives to an agent that it starts.

    Attributes:
        host: Where the driver listens.
        port: Likewise.
        agent_id: Who this agent is.
        secret: That of the run; shown to nobody.
        hung_after_s: See `ProcessRunner`.
        lost_after_s: Without a word of the driver for so long, everything here ends.
        worker_dir: Where trials write on a node that does not see the driver's directory; `None`: below the node's
            directory for temporary files.
    """

    host: str
    port: int
    agent_id: str
    secret: bytes
    hung_after_s: float
    lost_after_s: float
    worker_dir: str | None = None

    def pack(self) -> bytes:
        """As bytes, for an engine."""
        return pack({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Take back what `pack` made."""
        return cls(**unpack(packed))

    def __repr__(self) -> str:
        return f"Order(agent {self.agent_id}, driver at {self.host}:{self.port})"


def run_agent(order: bytes, node: str = "") -> str:
    """Be an agent, until the driver says good-bye or is lost; why it ended. Blocking; for engines.

    Args:
        order: What the engine was given.
        node: What the engine calls this machine, for messages.
    """
    return asyncio.run(_Agent(Order.unpack(order), node).run())


class _Agent:
    def __init__(self, order: Order, node: str) -> None:
        self._order = order
        self._node = node
        self._peer = Peer(
            self._handle,
            name="the driver",
            lost_after_s=order.lost_after_s,
            renew_after_s=order.lost_after_s / 3,
        )
        self._directory = NodeDirectory(order.worker_dir, order.agent_id)
        self._hello = b""
        self._settings = Settings()
        self._unfit: AsynctuneError | None = None
        """Why no trial can run here, which the driver is told when it asks."""
        self._where: dict[str, Any] = {"hostname": socket.gethostname()}
        self._worker: Connection | None = None
        self._bringing: Bringing | None = None
        self._running: asyncio.Task[dict[str, Any]] | None = None

    async def run(self) -> str:
        try:
            await asyncio.to_thread(self._directory.make)
        except AsynctuneError as error:
            self._unfit = error
        try:
            async with asyncio.TaskGroup() as tasks:
                dialing = tasks.create_task(self._dial())
                await self._peer.run()
                dialing.cancel()
        finally:
            try:
                await self._end_worker()
                if self._bringing is not None:
                    await self._bringing.aclose()
            finally:
                await asyncio.to_thread(self._directory.remove)
        return f"the driver {self._peer.why_closed}"

    async def _dial(self) -> None:
        """Call the driver whenever there is no connection; how long that may go on, the peer knows."""
        while True:
            await self._peer.detached()
            if self._peer.why_closed is not None:
                return
            try:
                reader, writer = await dial(
                    self._order.host, self._order.port, self._order.agent_id, self._order.secret
                )
            except StrangerError as error:
                self._peer.close(f"does not want this agent: {error}")
            except OSError:  # TimeoutError included
                await asyncio.sleep(_AGAIN_S)
            else:
                self._where["node_ip"] = str(writer.get_extra_info("sockname")[0])
                self._peer.attach(reader, writer)

    # -- what the driver asks ------------------------------------------------------------------------------

    async def _handle(self, op: str, arguments: Mapping[str, Any]) -> Any:
        match op:
            case "open":
                if self._unfit is not None:
                    raise type(self._unfit)(
                        f"on {self._node or 'a node'} ({socket.gethostname()}): {self._unfit}"
                    )
                self._hello = arguments["hello"]
                self._settings = Settings.of(arguments["settings"])
                return {"host": socket.gethostname(), "pid": os.getpid(), "node": self._node}
            case "run":
                return await self._run_one(arguments)
            case "abort":
                await self._abort()
                return None
            case "bring" | "upload" if self._bringing is not None:
                return await self._bringing.bring(op, arguments)
            case "drop" if self._bringing is not None:
                await self._bringing.drop(arguments["waits"])
                return None
            case "bye":
                await self._end_worker(politely=True)
                asyncio.get_running_loop().call_later(0.1, self._peer.close, "said good-bye")
                return None
        raise ConfigError(f"no agent knows {op!r} now; driver and nodes need the same asynctune")

    async def _run_one(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._running is not None:
            raise ConfigError("a trial runs here already")
        self._running = asyncio.create_task(self._run(arguments))
        try:
            await asyncio.wait([self._running])
            if self._running.cancelled():
                return {"kind": "aborted"}
            return self._running.result()
        finally:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._running
            self._running = None

    async def _abort(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    # -- one trial -----------------------------------------------------------------------------------------

    async def _run(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Run one start of a trial; how it ended."""
        if self._bringing is not None:
            await self._bringing.aclose()
        call = partial(self._call, arguments["run"])
        bringing = await bringing_of(call, arguments, self._settings, self._directory.path)
        await call("placed", {"shared": bringing.is_shared})
        if not bringing.is_allowed:
            return {"kind": "not shared"}
        self._bringing = bringing
        try:
            try:
                task = await bringing.task()
            except (ConfigError, MissingExtraError) as error:  # of the node, such as no client for the bucket
                return {"kind": "unfit", "error": str(error)}
            except CheckpointNotFoundError as error:
                return {"kind": "unread", "error": str(error)}
            worker = await self._ready_worker()
            await self._serve(worker, task, call, bringing)
        except WorkerLostError as error:
            await self._end_worker()
            return {"kind": "failed", "error": f"the worker process of trial {bringing.trial_id} {error}"}
        except PeerLostError:
            await self._end_worker()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this start that has failed
            await self._end_worker()
            return {"kind": "failed", "error": told(error)["text"]}
        except BaseException:
            await self._end_worker()
            raise
        finally:
            await bringing.finish()
        return {"kind": "ended"}

    async def _call(self, run: str, op: str, arguments: Mapping[str, Any]) -> Any:
        """Ask the driver for this start of a trial, and for no later one."""
        return await self._peer.call(op, {**arguments, "run": run})

    async def _serve(
        self, worker: Connection, task: Mapping[str, Any], call: Call, bringing: Bringing
    ) -> None:
        await worker.send(
            frame({"kind": "run", "task": dict(task)}, f"the config of trial {bringing.trial_id}")
        )
        while True:
            message = await worker.receive()
            match message.get("kind"):
                case "report":
                    await worker.send(await self._report(message, call, bringing))
                case "ended":
                    return
                case "failed":
                    raise TrialFailedError(str(message.get("error")))
                case unknown:
                    raise TrialFailedError(f"the worker of trial {bringing.trial_id} said {unknown!r:.80}")

    async def _report(self, message: Mapping[str, Any], call: Call, bringing: Bringing) -> dict[str, Any]:
        """What the worker is told."""
        checkpoint = message["checkpoint"]
        try:
            brought = None if checkpoint is None else await bringing.offer(checkpoint)
            metrics = message["metrics"]
            if metrics is not None:  # rows say where a trial ran; otherwise they would name the driver
                metrics = {**self._where, **metrics}
            answer = await call("report", {"metrics": metrics, "checkpoint": brought})
        except ConfigError as error:  # the trial's own mistake, which is raised where it was made
            if checkpoint is not None:
                bringing.refused(checkpoint)
            return {"kind": "answer", "error": str(error)}
        decision: Decision = answer["decision"]
        if checkpoint is not None:
            await bringing.taken(checkpoint)
        return {"kind": "answer", "decision": decision or CONTINUE}

    # -- the worker ----------------------------------------------------------------------------------------

    async def _ready_worker(self) -> Connection:
        if self._worker is not None and self._worker.is_alive:
            return self._worker
        await self._end_worker()
        worker = self._worker = await spawn_worker(hung_after_s=self._order.hung_after_s)
        try:
            await worker.send(self._hello)
            answer = await worker.receive()
        except WorkerLostError as error:
            raise TrialFailedError(f"a worker process {error}, before it was ready") from error
        if answer.get("kind") != "ready":
            raise TrialFailedError(f"a worker could not load the trainable:\n{answer.get('error')}")
        self._where["pid"] = worker.pid
        return worker

    async def _end_worker(self, *, politely: bool = False) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.aclose({"kind": "bye"} if politely else None, grace_s=_GOODBYE_S)
