"""Owns the demo's experiment: where it is, what is searched, how, and the Tuner that begins it or goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import optuna  # noqa: F401 - here, and not in the event loop when the searcher is made

from asynctune.config import CheckpointConfig, FailureConfig, RunConfig, SyncConfig, TuneConfig
from asynctune.demo.training import METRIC, DigitsTrial
from asynctune.errors import ConfigError, ExperimentNotFoundError
from asynctune.runners.process import ProcessRunner
from asynctune.store.finding import local_path
from asynctune.store.place import is_uri
from asynctune.store.store import ExperimentStore
from asynctune.tuning.optuna_search import OptunaSearcher
from asynctune.tuning.result_grid import ResultGrid
from asynctune.tuning.settings import SETTINGS_KEY
from asynctune.tuning.space import choice, lograndint, loguniform, randint
from asynctune.tuning.tuner import Tuner

__all__ = ["Places", "Prepared", "prepare"]

_DEFAULTS: Final = {"trials": 24, "epochs": 24, "seed": 1}

_SPACE: Final = {
    "learning_rate": loguniform(1e-4, 3e-2),
    "layers": randint(1, 3),
    "units": lograndint(16, 129),
    "batch_size": choice([16, 32, 64]),
    "alpha": loguniform(1e-6, 1e-1),
    "activation": choice(["relu", "tanh"]),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the experiment is, as the user has said.

    Attributes:
        shown: Its directory, as the user gave it.
        directory: The same, absolute.
        upload_dir: Below which its copy is; `None`: there is none, or the experiment knows.
        copy: The copy's own URI or path, likewise.
        by_copy: The copy was named, and no directory: there has to be one.
    """

    shown: str
    directory: Path
    upload_dir: str | None
    copy: str | None
    by_copy: bool = False

    @property
    def elsewhere(self) -> list[str]:
        """The command's arguments with which another machine goes on from the copy; empty without one."""
        if self.copy is None or self.upload_dir is None:
            return []
        return [self.copy] if is_uri(self.copy) else [self.directory.name, "--upload-dir", self.upload_dir]

    @classmethod
    def of(cls, location: str, upload_dir: str | None) -> Self:
        """Of a directory or the URI of a copy, and what `--upload-dir` says.

        Raises:
            ConfigError: Both are URIs.
        """
        if is_uri(location):
            if upload_dir is not None:
                raise ConfigError(
                    f"{location} is a copy, and the experiment goes on there; leave --upload-dir out"
                )
            copy = location.rstrip("/")
            above, _, name = copy.rpartition("/")
            return cls(shown=name, directory=Path(name).absolute(), upload_dir=above, copy=copy, by_copy=True)
        directory = Path(local_path(location))
        if upload_dir is None:
            return cls(shown=location, directory=directory, upload_dir=None, copy=None)
        above = upload_dir.rstrip("/") if is_uri(upload_dir) else local_path(upload_dir)
        return cls(shown=location, directory=directory, upload_dir=above, copy=f"{above}/{directory.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An experiment that is about to run.

    Attributes:
        tuner: That runs it.
        trials: How many there will be.
        before: Those of an experiment that was there; `None` for a new one.
        found_at: Where that was found.
        is_left_open: Its last driver is gone, and had not closed it.
    """

    tuner: Tuner
    trials: int
    before: ResultGrid | None
    found_at: str | None = None
    is_left_open: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        if self.before is None or len(self.before) < self.trials or self.is_left_open:
            return False
        return all(each.status.is_finished for each in self.before)


async def prepare(places: Places, given: Mapping[str, int], workers: int) -> Prepared:
    """Begin the experiment, or go on with the one that is there: in its directory, else from its copy.

    Args:
        places: Where.
        given: Of `trials`, `epochs`, `seed` what the user has set. Of an experiment that is there only `trials` may
            differ from what it was begun with.
        workers: Worker processes at a time.

    Raises:
        ConfigError: The experiment is another one, or was begun with other numbers.
        AsynctuneError: It cannot be read.
    """
    runner = ProcessRunner(workers)
    if not places.by_copy:
        try:
            return await _restored(places, str(places.directory), given, runner)
        except ExperimentNotFoundError:
            pass
    if places.copy is not None:
        try:
            return await _restored(places, places.copy, given, runner)
        except ExperimentNotFoundError:
            if places.by_copy:
                raise
    numbers = _DEFAULTS | dict(given)
    tuner = Tuner(
        DigitsTrial,
        param_space=_SPACE | {"seed": numbers["seed"]},
        tune_config=_searching(numbers),
        run_config=RunConfig(
            name=places.directory.name,
            local_dir=places.directory.parent,
            stop={"training_iteration": numbers["epochs"]},
            sync_config=SyncConfig(upload_dir=places.upload_dir),
            checkpoint_config=CheckpointConfig(
                checkpoint_frequency=1, num_to_keep=2, checkpoint_score_attribute=METRIC
            ),
            failure_config=FailureConfig(max_failures=2),
        ),
        runner=runner,
    )
    return Prepared(tuner=tuner, trials=numbers["trials"], before=None)


async def _restored(
    places: Places, location: str, given: Mapping[str, int], runner: ProcessRunner
) -> Prepared:
    recorded, is_left_open = await _recorded(location, given)
    numbers = _DEFAULTS | recorded | dict(given)
    from_copy = location == places.copy
    # What holds code is given again; everything else is in the experiment.
    tuner = await Tuner.restore(
        location,
        DigitsTrial,
        tune_config=_searching(numbers),
        run_config=None if from_copy else RunConfig(sync_config=SyncConfig(upload_dir=places.upload_dir)),
        runner=runner,
        local_dir=places.directory.parent if from_copy else None,
    )
    return Prepared(
        tuner=tuner,
        trials=numbers["trials"],
        before=tuner.get_results(),
        found_at=location,
        is_left_open=is_left_open,
    )


def _searching(numbers: Mapping[str, int]) -> TuneConfig:
    searcher = OptunaSearcher(seed=numbers["seed"])
    return TuneConfig(
        metric=METRIC,
        mode="max",
        num_samples=numbers["trials"],
        search_alg=searcher,
        scheduler=searcher.scheduler(),
    )


async def _recorded(location: str, given: Mapping[str, int]) -> tuple[dict[str, int], bool]:
    """What the experiment was begun with, and whether it was left open.

    Raises:
        ConfigError: The user has set something else.
        ExperimentNotFoundError: There is none.
    """
    async with ExperimentStore.open(location, mode="read") as store:
        settings = store.metadata.get(SETTINGS_KEY) or {}
        config = store.trials[0].config if len(store.trials) else {}
        writer = store.writer_info
    found = {
        "trials": settings.get("num_samples"),
        "epochs": (settings.get("stop") or {}).get("training_iteration"),
        "seed": config.get("seed"),
    }
    recorded = {name: value for name, value in found.items() if isinstance(value, int)}
    for name in ("epochs", "seed"):
        if name in given and recorded.get(name, given[name]) != given[name]:
            raise ConfigError(
                f"the experiment in {location} was begun with --{name} {recorded[name]}, not {given[name]}; "
                "leave the option out to go on with it, or choose another directory"
            )
    return recorded, writer is not None and writer["alive"] is not True
