"""Owns `Tuner`, what users hold: it checks what it is given, runs it, and restores what was run before.

What a run is made of is `tuning.running`'s, what is stored of a Tuner `tuning.settings`'.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import os
import secrets
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from asynctune.config import RunConfig, SyncConfig, TuneConfig, result_dir
from asynctune.errors import ConfigError, ExperimentLockedError, ExperimentNotFoundError, StorageError
from asynctune.protocols import TrialRunner
from asynctune.store.stats import StoreStats
from asynctune.trainable import (
    TrainableKind,
    check_checkpointing,
    check_trainable,
    import_trainable,
    trainable_name,
)
from asynctune.tuning.opening import Whence, is_unbegun
from asynctune.tuning.result_grid import ResultGrid
from asynctune.tuning.running import ExperimentRun
from asynctune.tuning.settings import (
    PROGRESS_KEY,
    SETTINGS_KEY,
    Plan,
    directory_name,
    given_again,
    with_checkpoint_config,
)
from asynctune.tuning.variants import Space

__all__ = ["Tuner"]

logger = logging.getLogger("asynctune")


@dataclass(frozen=True)
class _Resumed:
    """What a restored experiment is, and how it goes on.

    Attributes:
        requeue: As for `ExperimentStore.requeue`.
        results: As it was read.
        is_finished: Nothing is left to run.
        is_left_open: Its last driver is gone, and had not closed it: files or its copy may lack something.
        whence: Where it is.
    """

    requeue: dict[str, bool]
    results: ResultGrid
    is_finished: bool
    is_left_open: bool
    whence: Whence


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
        _check_types(tune_config, run_config, runner)
        tune = tune_config or TuneConfig()
        run = run_config or RunConfig()
        if param_space is None and tune.search_alg is None:
            param_space = {}
        space = param_space if param_space is None or isinstance(param_space, Space) else Space(param_space)
        plan = Plan(trainable=trainable, space=space, tune=tune, run=run, runner=runner)
        _check(plan)
        directory = result_dir(run.local_dir)
        # with something drawn: two may be made in one second
        made = f"{dt.datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"  # noqa: DTZ005
        name = run.name or f"{directory_name(trainable)}_{made}"
        if os.sep in name or name in {".", ".."} or "\0" in name:
            raise ConfigError(f"name={name!r} cannot be a directory's; use local_dir for where it is made")
        self._begin(plan, Path(directory, name))

    def _begin(self, plan: Plan, path: Path, resumed: _Resumed | None = None) -> None:
        self._plan = plan
        self._path = path
        self._resumed = resumed
        self._run: ExperimentRun | None = None

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
        resumed = self._resumed
        if resumed is not None and resumed.is_finished:
            return await self._closed(resumed) if resumed.is_left_open else resumed.results
        if self._run is not None:
            raise ConfigError(
                f"this Tuner has run; go on with its experiment: Tuner.restore({str(self._path)!r})"
            )
        run = self._run = (
            ExperimentRun(self._plan, self._path)
            if resumed is None
            else ExperimentRun(self._plan, self._path, resumed.requeue, resumed.whence)
        )
        try:
            return await run.to_its_end()
        finally:
            if not run.has_begun:
                self._run = None

    async def _closed(self, resumed: _Resumed) -> ResultGrid:
        """Of a finished experiment that was left open: complete its files and its copy, where that can be done."""
        run = ExperimentRun(self._plan, self._path, resumed.requeue, resumed.whence)
        try:
            results = await run.only_closed()
        except (ExperimentLockedError, StorageError) as error:
            if run.has_begun:
                raise
            logger.warning("%s was not closed by its last driver, and is left so: %s", self._path, error)
            return resumed.results
        self._run = run
        self._resumed = replace(resumed, results=results, is_left_open=False)
        return results

    def run(self) -> ResultGrid:
        """`fit` for scripts without an event loop; SIGINT ends them with exit code 130."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise ConfigError("tuner.run() starts an event loop, and one runs here: await tuner.fit()")
        try:
            return asyncio.run(self.fit())
        except KeyboardInterrupt as stopped:
            if not stopped.args:
                raise
            raise SystemExit(
                128 + signal.SIGINT
            ) from None  # it was said what to do, and a traceback says nothing

    def get_results(self) -> ResultGrid:
        """The results as of the end of `fit`, or as they were restored.

        Raises:
            ConfigError: Nothing has run yet.
        """
        if self._run is not None and self._run.results is not None:
            return self._run.results
        if self._resumed is None:
            raise ConfigError("there are no results yet: await tuner.fit() first")
        return self._resumed.results

    def stats(self) -> StoreStats | None:
        """What durability costs this run: the figures of its store, now or as it was closed; `None` before `fit`."""
        return None if self._run is None else self._run.stats()

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
            tune_config: Needed if a searcher or scheduler was given. What is left at its default stays as it was.
            run_config: Needed if callbacks or a stop function were given; likewise.
            runner: Needed if one was given.
            local_dir: Where an experiment from a URI is staged, in a directory of its name; by default where a Tuner
                makes its experiments.
            storage_options: Credentials and endpoint of a bucket; never stored.

        Raises:
            ExperimentNotFoundError: There is none; it never starts over.
            CorruptStateError: It cannot be read.
            ConfigError: Something was not given again, or the trainable is another one.
        """
        _check_types(tune_config, run_config, runner)
        location = await asyncio.to_thread(_absolute, path_or_uri)
        sync = None if run_config is None else run_config.sync_config
        # what is left at its default stays as it was
        whence = Whence(location, local_dir, storage_options, None if sync == SyncConfig() else sync)
        async with whence.reading() as store:
            if is_unbegun(store):
                raise ExperimentNotFoundError(
                    f"the experiment at {location} was never begun: its creation was cut short before anything was "
                    "recorded; make it with Tuner(...) and the same name"
                )
            results = await ResultGrid.of(store, **whence.read_with())
            writer = store.writer_info
            finished = bool((store.metadata.get(PROGRESS_KEY) or {}).get("finished"))
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
        path = whence.directory()
        if plan.run.name not in (None, path.name):
            raise ConfigError(f"the experiment is called {path.name}, not {plan.run.name!r}")
        if plan.trainable is not None:
            logger.info("restored %s with the trainable %s", location, trainable_name(plan.trainable))
        if not nothing_to_run:
            _check(plan)
        made = cls.__new__(cls)
        made._begin(  # noqa: SLF001 - its own class
            plan,
            path,
            _Resumed(
                requeue={
                    "resume_unfinished": resume_unfinished,
                    "resume_errored": resume_errored,
                    "restart_errored": restart_errored,
                },
                results=results,
                is_finished=nothing_to_run,
                # of one on a host that cannot be looked at, its lock and the copy tell whether it is at work
                is_left_open=writer is not None and writer["alive"] is not True,
                whence=whence,
            ),
        )
        return made


def _check_types(tune_config: Any, run_config: Any, runner: Any) -> None:
    for name, value, kind in (
        ("tune_config", tune_config, TuneConfig),
        ("run_config", run_config, RunConfig),
    ):
        if value is not None and not isinstance(value, kind):
            raise ConfigError(f"{name} must be a {kind.__name__}, not {type(value).__name__}")
    if isinstance(runner, type):
        raise ConfigError(f"runner must be an object, not a class; use {runner.__name__}()")
    missing = [name for name in ("start", "run_trial", "aclose", "capacity") if not hasattr(runner, name)]
    if runner is not None and missing:
        raise ConfigError(
            f"runner must be a TrialRunner; {type(runner).__name__} has no {', '.join(missing)}"
        )


def _check(plan: Plan) -> None:
    """Refuse what cannot work together."""
    kind = check_trainable(plan.trainable)
    checkpoints = plan.run.checkpoint_config
    wanted = bool(checkpoints.checkpoint_frequency or checkpoints.checkpoint_at_end)
    check_checkpointing(plan.trainable, wanted=wanted)
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


def _absolute(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))
