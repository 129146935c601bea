"""Owns one agent as its driver sees it: the trial it runs, what comes of that, and its end. Not where agents come from.

What the agent sends of a trial's files is taken here, beside the trial on the driver's disk; what it becomes is the
store's. The other end is `agent`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, Protocol

from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.homecoming import TreeReceiver
from asynctune.checkpoints.lending import TreeSource
from asynctune.checkpoints.staging import STAGED_PREFIX
from asynctune.checkpoints.trial_receiving import FileReceiver
from asynctune.checkpoints.trial_walking import own_files
from asynctune.errors import AsynctuneError, CheckpointNotFoundError, ConfigError, TrialFailedError
from asynctune.protocols import CONTINUE, TrialReport, TrialTask
from asynctune.runners.arrivals import Arrivals
from asynctune.runners.orders import packed_place, packed_task
from asynctune.runners.peer import Peer, PeerLostError
from asynctune.runners.starts import Report, Start
from asynctune.storage.budget import ByteBudget

__all__ = ["AgentHandle", "Placement"]

logger = logging.getLogger("asynctune")

_ABORT_S: Final = 10.0
_REASON_S: Final = 5.0
_GOODBYE_S: Final = 15.0


class Placement(Protocol):
    """An agent that an engine has started, or is about to. Made by `Engine.launch`."""

    async def ended(self) -> str:
        """Return when its process is gone for good: why, to follow "the agent". Awaited by several, and cancelled.

        Raises:
            ConfigError: It was never started, nor can any other be, as the engine is set up: the experiment ends.
        """
        ...

    async def kill(self) -> None:
        """End its process, and whatever it started, at once. Again, or of one that is gone: does nothing."""
        ...


class AgentHandle:
    """One agent.

    Args:
        agent_id: Who it is.
        placement: Its process.
        stop_grace_s: See `ProcessRunner`.
        lost_after_s: Without a sign of life for so long it is lost.
        budget: Bounds what is read ahead from all agents.
        threads: Where blocking calls go.
    """

    def __init__(
        self,
        agent_id: str,
        placement: Placement,
        *,
        stop_grace_s: float,
        lost_after_s: float,
        budget: ByteBudget,
        threads: DiskThreads,
    ) -> None:
        self.agent_id: Final = agent_id
        self.placement: Final = placement
        self.node = ""
        self.is_usable = True
        self.peer: Final = Peer(
            self._handle, name="the agent", lost_after_s=lost_after_s, waits_first=True, budget=budget
        )
        self._stop_grace_s = stop_grace_s
        self._threads = threads
        self._numbers = itertools.count(1)
        self._run: Start | None = None
        self._arrivals: Arrivals | None = None
        self._receiver: TreeReceiver | None = None
        self._source: TreeSource | None = None
        self._own: TreeSource | None = None
        self._files: FileReceiver | None = None
        self._never: ConfigError | None = None
        """Why its engine can start none, if it has said so."""

    @property
    def has_connected(self) -> bool:
        """Whether it has called."""
        return self.peer.has_connected

    async def serve(self) -> None:
        """Serve the agent until it is lost or closed; its owner keeps this task."""
        ended = asyncio.create_task(self._watch())
        try:
            await self.peer.run()
        finally:
            ended.cancel()
            await asyncio.wait([ended])

    async def _watch(self) -> None:
        """Whoever is told by the engine that its process is gone need not wait for it to come back."""
        try:
            why = await self.placement.ended()
        except ConfigError as error:  # nobody's process: it is told by `why`
            why, self._never = str(error), error
        except Exception as error:
            logger.exception("%s: its engine cannot say what became of it", self.peer.name)
            why = f"is out of sight of its engine: {error}"
        self.peer.close(why)

    async def open(self, hello: bytes, settings: Mapping[str, Any]) -> None:
        """Tell the agent what it runs; to be called when it has connected.

        Raises:
            PeerLostError: It is gone.
            ConfigError: No trial can ever run on its node, as it is set up.
            TrialFailedError: None can now.
        """
        # Credentials go to who needs them, with each trial.
        about = await self.peer.call(
            "open", {"hello": hello, "settings": {**settings, "storage_options": None}}
        )
        names = [str(about.get(name) or "") for name in ("node", "host")]
        self.node = " ".join(dict.fromkeys(name for name in names if name)) or "an unknown node"
        self.peer.name = f"the agent on {self.node} (process {about.get('pid')})"

    # -- one trial -----------------------------------------------------------------------------------------

    async def run(
        self, task: TrialTask, report: Report, settings: Mapping[str, Any], *, keep: int | None = None
    ) -> None:
        """Run one start of a trial; cancelling the caller ends it.

        Args:
            task: What is run.
            report: Awaited for each report.
            settings: Those that the agent was opened with.
            keep: Of checkpoints that come late, how many of the newest are wanted; `None`: all.

        Raises:
            TrialFailedError: The trial raised, its worker died or hung, or the node was lost.
            CheckpointNotFoundError: The node could not read the one at `task.place`.
            ConfigError: The node does not see the driver's directory, and has to; or no trial can run there.
        """
        number = f"{task.epoch}.{self.agent_id}.{next(self._numbers)}"  # in whatever is said of it
        run = self._run = Start(number, task, report)
        async with AsyncExitStack() as ends:
            ends.push_async_callback(asyncio.to_thread, run.remove_marker)
            arrivals = self._arrivals = Arrivals(
                self.peer,
                task.trial_id,
                period_s=None if settings["sync_on_checkpoint"] else settings["sync_period_s"],
                keep=keep,
                claimed=run.claimed,
                unasked_s=settings["sync_timeout_s"],
            )
            self._receiver = TreeReceiver(task.trial_dir, threads=self._threads)
            ends.push_async_callback(self._receiver.aclose, claimed=run.claimed)
            self._files = FileReceiver(task.trial_dir, threads=self._threads)
            ends.push_async_callback(self._files.aclose)
            self._own = TreeSource(task.trial_dir, threads=self._threads, look=own_files)
            ends.push_async_callback(self._own.aclose)
            self._source = None
            if task.checkpoint is not None and task.checkpoint.path is not None:
                self._source = TreeSource(task.checkpoint.path, threads=self._threads)
                ends.push_async_callback(self._source.aclose)
            try:
                await self._run_to_its_end(run, arrivals, settings)
                await arrivals.settled()
            except PeerLostError as error:
                raise await self._lost(task, error) from error
            except BaseException as error:
                if not run.has_ended:
                    await self._abort()
                if isinstance(error, TrialFailedError):
                    await arrivals.settled()
                raise
            finally:
                self._run = None
                arrivals.close()
                run.refuse()

    async def _lost(self, task: TrialTask, error: PeerLostError) -> TrialFailedError:
        self.is_usable = False
        return TrialFailedError(f"trial {task.trial_id} was lost with its node: {await self.why(error)}")

    async def _run_to_its_end(self, run: Start, arrivals: Arrivals, settings: Mapping[str, Any]) -> None:
        try:
            await self._threads.run(run.prepare)  # a cancellation waits for it: it makes the marker
        except OSError as error:
            run.has_ended = True  # it never began
            raise TrialFailedError(f"cannot write to {run.task.trial_dir}: {error}") from error
        told = {
            "run": run.number,
            "own": run.has_files,
            "task": packed_task(run.task),
            "marker": run.marker,
            "place": packed_place(run.task.place),
            "copy": run.task.copy,
            "storage_options": None if run.task.copy is None else settings["storage_options"],
        }
        running = asyncio.ensure_future(self.peer.call("run", told))
        running.add_done_callback(lambda _: run.inbox.put_nowait(None))
        try:
            while (item := await self._next(run)) is not None:
                await run.answer(item, arrivals)
            if run.had_to_be_ended:
                return
            run.has_ended = self.peer.why_closed is None
            try:
                ended = running.result()
            except AsynctuneError as error:  # such as a config that cannot be packed
                raise TrialFailedError(str(error)) from error
            self._judge(run, ended)
        finally:
            running.cancel()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # what was raised first is told

    async def _next(self, run: Start) -> Any:
        """The next report; `None`: the run has ended, or was ended because it did not stop."""
        try:
            async with asyncio.timeout(None if run.decision == CONTINUE else self._stop_grace_s):
                return await run.inbox.get()
        except TimeoutError:
            logger.warning(
                "trial %s was told to %s and did not end for %g s: its worker was killed; a trial has to let "
                "TrialInterrupted pass",
                run.task.trial_id,
                run.decision,
                self._stop_grace_s,
            )
            run.had_to_be_ended = True
            if not await self._abort():
                await self.placement.kill()
            return None

    def _judge(self, run: Start, ended: Mapping[str, Any]) -> None:
        match ended.get("kind"):
            case "ended":
                return
            case "aborted":  # an agent that is on its way out has ended it: that is no end of its own
                raise TrialFailedError(
                    f"on {self.node}: the agent ended trial {run.task.trial_id}, which nobody asked for"
                )
            case "failed":
                raise TrialFailedError(f"on {self.node}: {ended.get('error')}")
            case "unfit":
                raise ConfigError(f"on {self.node}: {ended.get('error')}")
            case "unread":
                raise CheckpointNotFoundError(
                    f"{self.node} cannot read the checkpoint that trial {run.task.trial_id} goes on from: "
                    f"{ended.get('error')}"
                )
            case "not shared":
                raise ConfigError(
                    f"{self.node} does not see {run.task.trial_dir}, and syncer=None says that all machines share it: "
                    "mount the same filesystem there, or leave syncer out, so that what workers save is sent to this "
                    "machine (or to upload_dir)"
                )
            case unknown:
                raise TrialFailedError(f"{self.peer.name} said {unknown!r:.80} of trial {run.task.trial_id}")

    async def _abort(self) -> bool:
        """End what runs there, and keep the agent if it obeys; whether it does."""
        try:
            async with asyncio.timeout(_ABORT_S):
                await self.peer.call("abort")
        except (TimeoutError, AsynctuneError, PeerLostError):
            self.is_usable = False
        except BaseException:
            self.is_usable = False
            raise
        return self.is_usable

    async def why(self, error: PeerLostError) -> str:
        """Why the agent is gone, as its engine or the connection tells it.

        Raises:
            ConfigError: See `Placement.ended`.
        """
        if self._never is not None:
            raise self._never
        try:
            async with asyncio.timeout(_REASON_S):
                return f"{self.peer.name} {await self.placement.ended()}"
        except TimeoutError:
            return str(error)

    # -- what the agent asks -------------------------------------------------------------------------------

    async def _handle(self, op: str, arguments: Mapping[str, Any]) -> Any:
        run = self._run
        if run is None or arguments.get("run") != run.number:
            raise ConfigError("this start of the trial has ended, and takes no more reports")
        room, _, _ = op.partition(".")
        match room:
            case "report":
                report = await self._report_of(run, arguments)
                if self._run is not run:
                    raise ConfigError("this start of the trial has ended meanwhile")
                answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                run.inbox.put_nowait((report, arguments["checkpoint"], answer))
                return await answer
            case "placed":
                await asyncio.to_thread(run.remove_marker)
                return None
            case "home" if self._receiver is not None:
                return await self._receiver.handle(op, arguments)
            case "away" if self._source is not None:
                return await self._source.handle(op, arguments)
            case "own" if self._own is not None:
                return await self._own.handle(op.replace("own.", "away."), arguments)
            case "files" if self._files is not None:
                return await self._files.handle(op, arguments)
        raise ConfigError(f"no driver knows {op!r} now; driver and nodes need the same asynctune")

    async def _report_of(self, run: Start, arguments: Mapping[str, Any]) -> TrialReport:
        told = arguments["checkpoint"]
        checkpoint: Any = told
        if isinstance(told, Mapping) and "waits" in told:
            assert self._arrivals is not None
            checkpoint = await self._arrivals.promised(told)
        elif told is not None:
            # Beside the trial: the node may know that directory by another name.
            name = os.path.basename(str(told["path"]))
            if not name.startswith(STAGED_PREFIX):  # what nobody adopts is removed
                raise ConfigError(f"the node told of {told['path']!r:.200}, which is no staged checkpoint")
            checkpoint = {**told, "path": os.path.join(run.real_dir, name)}
        return TrialReport(metrics=arguments["metrics"], checkpoint=checkpoint, move=True)

    # -- the end -------------------------------------------------------------------------------------------

    async def aclose(self, *, politely: bool) -> None:
        """End the agent's process.

        Args:
            politely: Let its worker go of what it holds first.
        """
        if politely and self.is_usable and self.peer.why_closed is None:
            with suppress(TimeoutError, PeerLostError):
                async with asyncio.timeout(_GOODBYE_S):
                    await self.peer.call("bye")
                    await self.placement.ended()
        self.peer.close("was ended")
        await self.placement.kill()
