"""Owns one run of an experiment, from the opened store to its results: it makes what a plan asks for, and ends it.

How trials live meanwhile is `tuning.driving`'s; what users hold is `tuning.tuner`'s.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from asynctune.errors import AsynctuneError, UploadError
from asynctune.packing import pack
from asynctune.protocols import Searcher, TrialRunner
from asynctune.runners.inline import InlineRunner
from asynctune.runners.process import ProcessRunner
from asynctune.store.stats import StoreStats
from asynctune.store.store import ExperimentStore
from asynctune.trainable import TrainableKind, kind_of
from asynctune.tuning.callbacks import Callbacks
from asynctune.tuning.driving import Driver
from asynctune.tuning.endings import Interrupted
from asynctune.tuning.joining import join, searcher_of
from asynctune.tuning.opening import Opening, Whence
from asynctune.tuning.picture import copy_text
from asynctune.tuning.progress import Progress
from asynctune.tuning.result_grid import ResultGrid
from asynctune.tuning.settings import PROGRESS_KEY, SETTINGS_KEY, Plan, directory_name, settings_of
from asynctune.tuning.signals import StopSignal, stopping_on_signals
from asynctune.tuning.stopping import StopRule

__all__ = ["ExperimentRun"]

logger = logging.getLogger("asynctune")

_SLOW_CLOSE_S: Final = 5.0
_DRAIN_S: Final = 30.0  # what ends processes by SIGTERM seldom waits longer


class ExperimentRun:
    """One run.

    Args:
        plan: What is run.
        path: The experiment's directory.
        requeue: How a restored experiment goes on, as for `ExperimentStore.requeue`; `None`: it is a new one.
        whence: What a restored one is opened from.
    """

    def __init__(
        self,
        plan: Plan,
        path: Path,
        requeue: Mapping[str, bool] | None = None,
        whence: Whence | None = None,
    ) -> None:
        self._plan = plan
        self._path = path
        self._requeue = requeue
        self._whence = whence
        self._opening = Opening(plan, path, whence)
        self._driver: Driver | None = None
        self._progress: Progress | None = None
        self._runner: TrialRunner | None = None  # started, and not closed yet
        self._store: ExperimentStore | None = None
        self._is_behind = False  # the copy, as it was closed
        self.results: ResultGrid | None = None
        """As of the end, also of one that failed; `None` where they could not be read."""

    async def to_its_end(self) -> ResultGrid:
        """Run it.

        Raises:
            KeyboardInterrupt, SystemExit: After a signal; how to go on was said.
            Other errors as for `Tuner.fit`.
        """
        plan = self._plan
        # What cannot work is said before there is an experiment.
        settings = settings_of(plan)
        pack(settings, "what the Tuner was given")
        search = searcher_of(plan)
        callbacks = Callbacks(plan.run.callbacks, self._say)
        runner = plan.runner or _runner_for(plan)
        slow: asyncio.TimerHandle | None = None
        with stopping_on_signals(self._on_signal) as seen:
            # before it is this run's to close: one that is refused is in use by another Tuner
            options = _options(plan, self._read_with()["storage_options"])
            await runner.start(plan.trainable, options)
            self._runner = runner
            try:
                async with self._told_when_closed(), await self._opening.open() as store:
                    self._store = store
                    try:
                        await self._record(store, settings)
                        await self._drive(store, runner, search, callbacks, seen)
                        self.results = await ResultGrid.of(store, **self._read_with())
                    except BaseException as error:
                        await self._save_results(store)
                        if isinstance(error, Interrupted):
                            await self._close_soon(store)
                        raise
                    finally:
                        slow = asyncio.get_running_loop().call_later(_SLOW_CLOSE_S, self._say_slow_close)
            except Interrupted:
                self._leave(seen)
            finally:
                if slow is not None:
                    slow.cancel()
                await self._close_runner()
        assert self.results is not None
        return self.results

    async def only_closed(self) -> ResultGrid:
        """Of a finished experiment whose driver died before it had closed it: complete its files and its copy.

        Raises:
            KeyboardInterrupt, SystemExit: After a signal.
            Other errors as for `Tuner.fit`.
        """
        slow: asyncio.TimerHandle | None = None
        with stopping_on_signals(self._on_signal) as seen:
            try:
                async with self._told_when_closed(), await self._opening.open() as store:
                    self._store = store
                    slow = asyncio.get_running_loop().call_later(_SLOW_CLOSE_S, self._say_slow_close)
                    progress = self._progress = self._progress_of(store)
                    try:
                        await self._show(progress, store)
                        progress.finished()
                        self.results = await ResultGrid.of(store, **self._read_with())
                    finally:
                        await progress.aclose()
                    if seen.received is not None:
                        await self._close_soon(store)
                        raise Interrupted
            except Interrupted:
                self._leave(seen)
            finally:
                if slow is not None:
                    slow.cancel()
        assert self.results is not None
        return self.results

    @property
    def has_begun(self) -> bool:
        """Whether it came as far as an experiment."""
        return self._store is not None

    def stats(self) -> StoreStats | None:
        """Of the store, now or as it was closed; `None` before it is open."""
        return None if self._store is None else self._store.stats()

    # -- before --------------------------------------------------------------------------------------------

    def _read_with(self) -> dict[str, Any]:
        """What else it takes to read the copy."""
        sync = self._plan.run.sync_config
        given = None if self._whence is None else self._whence.options
        return {
            "storage_options": {**(sync.storage_options or {}), **(given or {})} or None,
            "sync_config": sync if sync.syncer not in (None, "auto") else None,
        }

    async def _record(self, store: ExperimentStore, settings: dict[str, Any]) -> None:
        """Keep what a restore needs, before anything else happens."""
        before = store.metadata.get(SETTINGS_KEY)
        settings["restores"] = 0 if before is None else int(before.get("restores", 0)) + 1
        store.set_metadata(SETTINGS_KEY, settings)
        store.set_metadata(PROGRESS_KEY, {"finished": False})
        tune = self._plan.tune
        if tune.metric is not None:
            store.track_metric(tune.metric, tune.mode or "min")
        await store.flush()

    # -- meanwhile -----------------------------------------------------------------------------------------

    async def _drive(
        self,
        store: ExperimentStore,
        runner: TrialRunner,
        search: tuple[Searcher, int | None],
        callbacks: Callbacks,
        seen: StopSignal,
    ) -> None:
        tune, run = self._plan.tune, self._plan.run
        progress = self._progress = self._progress_of(store)
        try:
            deciding = await join(store, self._plan, search, self._requeue)
            limit = tune.max_concurrent_trials
            self._driver = Driver(
                store,
                runner,
                deciding,
                stop=StopRule(run.stop, metric=tune.metric),
                failures=run.failure_config,
                callbacks=callbacks,
                limit=runner.capacity if limit is None else min(limit, runner.capacity),
                trial_prefix=directory_name(self._plan.trainable),
                watching=progress,
                time_budget_s=tune.time_budget_s,
            )
            if seen.received is not None:
                self._driver.interrupt()
            await self._show(progress, store)
            if await self._driver.run():
                store.set_metadata(PROGRESS_KEY, {"finished": True})
                progress.finished()
        finally:
            await progress.aclose()
            # before the store is: what a worker staged last is the store's to sweep
            await self._close_runner()

    async def _close_runner(self) -> None:
        """Once: another Tuner may have started it since."""
        if self._runner is not None:
            await self._runner.aclose()
            self._runner = None

    def _progress_of(self, store: ExperimentStore) -> Progress:
        tune, space = self._plan.tune, self._plan.space
        uri: Final = store.upload_uri
        total = None if tune.num_samples < 0 else tune.num_samples
        if total is not None and tune.search_alg is None and space is not None:
            total *= space.grid_size
        return Progress(
            self._path.name,
            tune.metric,
            tune.mode,
            store.get_trial,
            location=str(self._path),
            total=total,
            copy=None if uri is None else lambda moment: copy_text(uri, store.stats(), moment),
            verbose=self._plan.run.verbose,
        )

    async def _show(self, progress: Progress, store: ExperimentStore) -> None:
        """Begin to show, with the trials that there are."""
        async for trial in store.iterate():
            progress.known(trial)
        progress.start()

    def _say(self, message: str) -> None:
        if self._progress is not None:
            self._progress.line(message)

    def _on_signal(self, number: signal.Signals) -> None:
        logger.warning("%s: stopping; once more to end at once", number.name)
        if self._driver is not None:
            self._driver.interrupt()
        elif self._store is None:
            self._opening.give_up()

    # -- after ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _told_when_closed(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if self._progress is not None:
                await self._progress.closed()

    async def _save_results(self, store: ExperimentStore) -> None:
        try:
            self.results = await ResultGrid.of(store, **self._read_with())
        except AsynctuneError as error:
            # on the way out of something worse, which must not be hidden
            logger.warning("the results cannot be read: %s", error)

    async def _close_soon(self, store: ExperimentStore) -> None:
        """Somebody wants this process to end: what is not in the bucket by then is brought there by the next one."""
        try:
            await store.aclose(drain_timeout_s=None if store.upload_uri is None else _DRAIN_S)
        except UploadError as left:
            self._is_behind = True
            print(left, file=sys.stderr)  # noqa: T201 - what is left, and what to do

    def _say_slow_close(self) -> None:
        uri = None if self._store is None else self._store.upload_uri
        elsewhere = "" if uri is None else f", or not in {uri},"
        logger.warning(
            "%s is being closed, and what is not on the disk%s yet is waited for: is it full, or slow? Two signals end "
            "the process at once; what was acknowledged is safe",
            self._path,
            elsewhere,
        )

    def _leave(self, seen: StopSignal) -> None:
        message = f"stopped; to go on: Tuner.restore({str(self._path)!r})"
        if self._store is None:
            again = self._opening.again
            message = (
                "stopped, nothing was begun"
                if again is None
                else f"stopped; to go on: Tuner.restore({again!r})"
            )
        elif (uri := self._store.upload_uri) is not None:
            # who went on from a copy that is behind would part with what is only here
            elsewhere = f"on another machine Tuner.restore({uri!r})"
            message += ", on this machine: the copy is behind" if self._is_behind else f", {elsewhere}"
        print(message, file=sys.stderr)  # noqa: T201 - how to go on
        if seen.received is signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from None
        # with the message: a traceback may follow, under which the line would be lost
        raise KeyboardInterrupt(message) from None


def _options(plan: Plan, storage_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a runner is told."""
    checkpoints = plan.run.checkpoint_config
    return {
        "checkpoint_frequency": checkpoints.checkpoint_frequency,
        "checkpoint_at_end": bool(checkpoints.checkpoint_at_end),
        "checkpoint_config": checkpoints,
        "log_to_file": plan.run.log_to_file,
        "sync_config": plan.run.sync_config,
        "storage_options": storage_options,
    }


def _runner_for(plan: Plan) -> TrialRunner:
    limit = plan.tune.max_concurrent_trials
    if kind_of(plan.trainable) is TrainableKind.COROUTINE and not plan.run.log_to_file:
        return InlineRunner() if limit is None else InlineRunner(limit)
    return ProcessRunner()
