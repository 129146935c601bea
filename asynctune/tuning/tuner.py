"""Owns `Tuner`, what users hold: it joins a store, a searcher, a scheduler and a runner, and starts them.

How trials live is `tuning.driving`'s, what is stored of a Tuner `tuning.settings`'.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from asynctune.config import RunConfig, TuneConfig, result_dir
from asynctune.errors import ConfigError, ExperimentExistsError
from asynctune.protocols import TrialRunner
from asynctune.runners.inline import InlineRunner
from asynctune.runners.process import ProcessRunner
from asynctune.store.store import ExperimentStore
from asynctune.trainable import TrainableKind, check_trainable, import_trainable, kind_of, trainable_name
from asynctune.tuning.callbacks import Callbacks
from asynctune.tuning.driving import Driver, Interrupted
from asynctune.tuning.joining import join
from asynctune.tuning.progress import Progress
from asynctune.tuning.result_grid import ResultGrid
from asynctune.tuning.settings import SETTINGS_KEY, Plan, given_again, settings_of, with_checkpoint_config
from asynctune.tuning.signals import stopping_on_signals
from asynctune.tuning.stopping import StopRule
from asynctune.tuning.variants import Space

__all__ = ["Tuner"]

logger = logging.getLogger("asynctune")

_PROGRESS_KEY: Final = "asynctune.progress"


@dataclass(frozen=True)
class _Resumed:
    """What a restored experiment is, and how it goes on."""

    requeue: dict[str, bool]
    results: ResultGrid
    is_finished: bool


class Tuner:
    """Searches the best configuration of a trainable, as an experiment that survives.

    Args:
        trainable: `def f(config)`, `async def f(config)`, or a subclass of `Trainable`.
        param_space: What is searched: nested dictionaries and lists of domains (`uniform`, `choice`,
            `grid_search`, ...) and fixed values. Left out where `search_alg` has a space of its own.
        tune_config: What is searched for, and how.
        run_config: How the experiment is run and kept.
        runner: Where trials run; `None`: coroutines in this event loop, functions and classes in processes.

    Raises:
        ConfigError: Something that cannot work together.
    """

    def __init__(
        self,
        trainable: Callable[..., Any] | type,
        *,
        param_space: Mapping[str, Any] | Space | None = None,
        tune_config: TuneConfig | None = None,
        run_config: RunConfig | None = None,
        runner: TrialRunner | None = None,
    ) -> None:
        tune = tune_config or TuneConfig()
        run = run_config or RunConfig()
        if param_space is None and tune.search_alg is None:
            param_space = {}
        space = param_space if param_space is None or isinstance(param_space, Space) else Space(param_space)
        self._take(Plan(trainable=trainable, space=space, tune=tune, run=run, runner=runner))
        directory = result_dir(run.local_dir)
        name = run.name or f"{trainable_name(trainable)}_{dt.datetime.now():%Y-%m-%d_%H-%M-%S}"  # noqa: DTZ005
        if os.sep in name or name in {".", ".."} or "\0" in name:
            raise ConfigError(f"name={name!r} cannot be a directory's; use local_dir for where it is made")
        self._path = Path(directory, name)
        self._resumed: _Resumed | None = None
        self._results: ResultGrid | None = None

    def _take(self, plan: Plan) -> None:
        kind = check_trainable(plan.trainable)
        checkpoints = plan.run.checkpoint_config
        if kind is not TrainableKind.CLASS and (
            checkpoints.checkpoint_frequency or checkpoints.checkpoint_at_end
        ):
            raise ConfigError(
                "checkpoint_frequency and checkpoint_at_end are for Trainable classes; a function decides itself, with "
                "session.report(metrics, checkpoint=...)"
            )
        searcher = plan.tune.search_alg
        if plan.space is not None and searcher is not None and not hasattr(searcher, "set_search_properties"):
            raise ConfigError(
                f"{type(searcher).__name__} has a search space of its own, so param_space would not be used; give the "
                "space to the searcher and leave param_space out"
            )
        self._plan = plan

    @property
    def location(self) -> Path:
        """The experiment's directory."""
        return self._path

    # -- running -------------------------------------------------------------------------------------------

    async def fit(self) -> ResultGrid:
        """Run the experiment to its end.

        SIGINT and SIGTERM stop it: running trials go on from their checkpoints when it is restored. A second signal
        ends the process at once.

        Returns:
            The results, one for each trial. Failed trials are among them, and raise nothing.

        Raises:
            ExperimentExistsError: There is one of this name; nothing is ever overwritten.
            TrialFailedError: With `fail_fast="raise"`.
            UserCodeError: A searcher, scheduler or stop function failed.
            KeyboardInterrupt, SystemExit: After a signal.
        """
        if self._resumed is not None and self._resumed.is_finished:
            return self._resumed.results
        if self._resumed is None:
            await asyncio.to_thread(os.makedirs, self._path.parent, exist_ok=True)
        driver: Driver | None = None

        def stop(number: signal.Signals) -> None:
            logger.warning("%s: stopping; once more to end at once", number.name)
            if driver is not None:
                driver.interrupt()

        opening = ExperimentStore.open(
            self._path,
            mode="create" if self._resumed is None else "resume",
            sync_config=self._plan.run.sync_config,
            checkpoint_config=self._plan.run.checkpoint_config,
            tensorboard=self._plan.run.tensorboard,
        )
        with stopping_on_signals(stop) as seen:
            try:
                async with opening as store:
                    runner = self._plan.runner or _runner_for(self._plan)
                    progress = self._progress(store)
                    try:
                        driver = await self._prepare(store, runner, progress)
                        if seen.received is not None:
                            driver.interrupt()
                        progress.start()
                        if await driver.run():
                            store.set_metadata(_PROGRESS_KEY, {"finished": True})
                    finally:
                        progress.stop()
                        await runner.aclose()
                        self._results = await ResultGrid.of(store)
            except Interrupted:
                print(f"stopped; to go on: Tuner.restore({str(self._path)!r})", file=sys.stderr)  # noqa: T201 - how to go on
                if seen.received is signal.SIGTERM:
                    raise SystemExit(128 + signal.SIGTERM) from None
                raise KeyboardInterrupt from None
            except ExperimentExistsError as error:
                raise ExperimentExistsError(
                    f"there is an experiment at {self._path} already, and it is never overwritten; go on with it "
                    f"(Tuner.restore({str(self._path)!r})), or choose another name (RunConfig(name=...))"
                ) from error
        return self._results

    def run(self) -> ResultGrid:
        """`fit` for scripts without an event loop."""
        return asyncio.run(self.fit())

    def get_results(self) -> ResultGrid:
        """The results as of the end of `fit`, or as they were restored.

        Raises:
            ConfigError: Nothing has run yet.
        """
        if self._results is not None:
            return self._results
        if self._resumed is None:
            raise ConfigError("there are no results yet: await tuner.fit() first")
        return self._resumed.results

    def _progress(self, store: ExperimentStore) -> Progress:
        tune = self._plan.tune
        verbose = self._plan.run.verbose
        return Progress(self._path.name, tune.metric, tune.mode, store.get_trial, verbose=verbose)

    async def _prepare(self, store: ExperimentStore, runner: TrialRunner, progress: Progress) -> Driver:
        plan = self._plan
        settings = settings_of(plan)
        callbacks = Callbacks(plan.run.callbacks, progress.line)
        before = store.metadata.get(SETTINGS_KEY)
        settings["restores"] = 0 if before is None else int(before.get("restores", 0)) + 1
        store.set_metadata(SETTINGS_KEY, settings)
        store.set_metadata(_PROGRESS_KEY, {"finished": False})
        if plan.tune.metric is not None:
            store.track_metric(plan.tune.metric, plan.tune.mode or "min")
        checkpoints = plan.run.checkpoint_config
        await runner.start(
            plan.trainable,
            {
                "checkpoint_frequency": checkpoints.checkpoint_frequency,
                "checkpoint_at_end": bool(checkpoints.checkpoint_at_end),
                "log_to_file": plan.run.log_to_file,
            },
        )
        deciding = await join(store, plan, None if self._resumed is None else self._resumed.requeue)
        limit = plan.tune.max_concurrent_trials
        return Driver(
            store,
            runner,
            deciding,
            stop=StopRule(plan.run.stop),
            failures=plan.run.failure_config,
            callbacks=callbacks,
            limit=runner.capacity if limit is None else min(limit, runner.capacity),
            trial_prefix=trainable_name(plan.trainable),
            watching=progress,
            time_budget_s=plan.tune.time_budget_s,
        )

    # -- restoring -----------------------------------------------------------------------------------------

    @classmethod
    async def restore(
        cls,
        path_or_uri: str | os.PathLike[str],
        trainable: Callable[..., Any] | type | None = None,
        resume_unfinished: bool = True,
        resume_errored: bool = False,
        restart_errored: bool = False,
        *,
        param_space: Mapping[str, Any] | None = None,
        tune_config: TuneConfig | None = None,
        run_config: RunConfig | None = None,
        runner: TrialRunner | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """A Tuner that goes on with an experiment; `fit` does.

        Args:
            path_or_uri: Of the experiment; it may have been moved.
            trainable: The same one; needed if it cannot be imported by its name.
            resume_unfinished: Trials that ran or waited go on from their latest checkpoint; else they are ended.
            resume_errored: Failed trials go on likewise.
            restart_errored: Failed trials are started over, as new ones. `resume_errored` wins.
            param_space: The same one; needed if it has functions.
            tune_config: Needed if a searcher or scheduler was given; replaces the stored one.
            run_config: Needed if callbacks or a stop function were given; replaces the stored one.
            runner: Needed if one was given.
            local_dir: Where an experiment from a URI is staged.
            storage_options: Credentials and endpoint of a bucket; never stored.

        Raises:
            ExperimentNotFoundError: There is none; it never starts over.
            CorruptStateError: It cannot be read.
            ConfigError: Something was not given again, or the trainable is another one.
        """
        location = await asyncio.to_thread(_absolute, path_or_uri)
        async with ExperimentStore.open(
            location, mode="read", local_dir=local_dir, storage_options=storage_options
        ) as store:
            results = await ResultGrid.of(store)
            finished = bool((store.metadata.get(_PROGRESS_KEY) or {}).get("finished"))
            errored = results.num_errors > 0 and (resume_errored or restart_errored)
            nothing_to_run = finished and not errored and tune_config is None
            plan = given_again(
                store.metadata.get(SETTINGS_KEY),
                trainable=trainable,
                param_space=param_space,
                tune_config=tune_config,
                run_config=run_config,
                runner=runner,
                import_trainable=import_trainable,
                complete=not nothing_to_run,
            )
            plan = with_checkpoint_config(plan, store.checkpoint_config)
        if plan.run.name not in (None, Path(location).name):
            raise ConfigError(f"the experiment is called {Path(location).name}, not {plan.run.name!r}")
        logger.info("restored %s with the trainable %s", location, trainable_name(plan.trainable))
        made = cls(
            plan.trainable,
            param_space=plan.space,
            tune_config=plan.tune,
            run_config=replace(plan.run, name=Path(location).name, local_dir=Path(location).parent),
            runner=plan.runner,
        )
        made._resumed = _Resumed(
            requeue={
                "resume_unfinished": resume_unfinished,
                "resume_errored": resume_errored,
                "restart_errored": restart_errored,
            },
            results=results,
            is_finished=nothing_to_run,
        )
        return made


def _absolute(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def _runner_for(plan: Plan) -> TrialRunner:
    limit = plan.tune.max_concurrent_trials
    if kind_of(plan.trainable) is TrainableKind.COROUTINE and not plan.run.log_to_file:
        return InlineRunner() if limit is None else InlineRunner(limit)
    return ProcessRunner()
