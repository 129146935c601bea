"""Owns the demo's experiment: what is searched, how, and the Tuner that begins it or goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from asynctune.config import CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from asynctune.demo.training import METRIC, DigitsTrial
from asynctune.errors import ConfigError, ExperimentNotFoundError
from asynctune.runners.process import ProcessRunner
from asynctune.store.store import ExperimentStore
from asynctune.tuning.optuna_search import OptunaSearcher
from asynctune.tuning.result_grid import ResultGrid
from asynctune.tuning.settings import SETTINGS_KEY
from asynctune.tuning.space import choice, lograndint, loguniform, randint
from asynctune.tuning.tuner import Tuner

__all__ = ["Prepared", "prepare"]

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
class Prepared:
    """An experiment that is about to run.

    Attributes:
        tuner: That runs it.
        trials: How many there will be.
        before: Those of an experiment that was there; `None` for a new one.
    """

    tuner: Tuner
    trials: int
    before: ResultGrid | None

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to run."""
        if self.before is None or len(self.before) < self.trials:
            return False
        return all(each.status.is_finished for each in self.before)


async def prepare(directory: Path, given: Mapping[str, int], workers: int) -> Prepared:
    """Begin the experiment in `directory`, or go on with the one that is there.

    Args:
        directory: Absolute.
        given: Of `trials`, `epochs`, `seed` what the user has set. Of an experiment that is there only `trials` may
            differ from what it was begun with.
        workers: Worker processes at a time.

    Raises:
        ConfigError: The experiment is another one, or was begun with other numbers.
        AsynctuneError: It cannot be read.
    """
    numbers = _DEFAULTS | await _recorded(directory, given) | dict(given)
    searcher = OptunaSearcher(seed=numbers["seed"])
    searching = TuneConfig(
        metric=METRIC,
        mode="max",
        num_samples=numbers["trials"],
        search_alg=searcher,
        scheduler=searcher.scheduler(),
    )
    runner = ProcessRunner(workers)
    try:
        # What holds code is given again; everything else is in the experiment.
        tuner = await Tuner.restore(directory, DigitsTrial, tune_config=searching, runner=runner)
        return Prepared(tuner=tuner, trials=numbers["trials"], before=tuner.get_results())
    except ExperimentNotFoundError:
        pass
    tuner = Tuner(
        DigitsTrial,
        param_space=_SPACE | {"seed": numbers["seed"]},
        tune_config=searching,
        run_config=RunConfig(
            name=directory.name,
            local_dir=directory.parent,
            stop={"training_iteration": numbers["epochs"]},
            checkpoint_config=CheckpointConfig(
                checkpoint_frequency=1, num_to_keep=2, checkpoint_score_attribute=METRIC
            ),
            failure_config=FailureConfig(max_failures=2),
        ),
        runner=runner,
    )
    return Prepared(tuner=tuner, trials=numbers["trials"], before=None)


async def _recorded(directory: Path, given: Mapping[str, int]) -> dict[str, int]:
    """What the experiment was begun with; nothing if there is none.

    Raises:
        ConfigError: The user has set something else.
    """
    try:
        async with ExperimentStore.open(directory, mode="read") as store:
            settings = store.metadata.get(SETTINGS_KEY) or {}
            config = store.trials[0].config if len(store.trials) else {}
    except ExperimentNotFoundError:
        return {}
    found = {
        "trials": settings.get("num_samples"),
        "epochs": (settings.get("stop") or {}).get("training_iteration"),
        "seed": config.get("seed"),
    }
    recorded = {name: value for name, value in found.items() if isinstance(value, int)}
    for name in ("epochs", "seed"):
        if name in given and recorded.get(name, given[name]) != given[name]:
            raise ConfigError(
                f"the experiment in {directory} was begun with --{name} {recorded[name]}, not {given[name]}; "
                "leave the option out to go on with it, or choose another directory"
            )
    return recorded
