"""Owns what a Tuner stores of itself, and what has to be given again to go on: everything that is code. Pure.

Values are stored as msgpack; a searcher, a scheduler, a function cannot be without pickle, so only its name is.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, TypeVar

from asynctune.config import CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from asynctune.errors import ConfigError, CorruptStateError, UnsupportedFormatError
from asynctune.trainable import importable_name, kind_of, trainable_name
from asynctune.tuning.basic import BasicSearcher
from asynctune.tuning.stored_space import functions_of, stored, unstored
from asynctune.tuning.variants import Space, path_text

__all__ = [
    "PROGRESS_KEY",
    "SETTINGS_KEY",
    "Plan",
    "directory_name",
    "given_again",
    "settings_of",
    "with_checkpoint_config",
]

logger = logging.getLogger("asynctune")

SETTINGS_KEY: Final = "asynctune.tuner"
"""Key of the metadata that holds them."""

PROGRESS_KEY: Final = "asynctune.progress"
"""Key of the metadata that says whether the experiment is finished."""

_FORM: Final = 1
_MAX_NAME: Final = 80
_DEFAULT_CHECKPOINTS: Final = CheckpointConfig()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that one Tuner was given.

    Attributes:
        trainable: What trials run.
        space: The search space; `None`: the searcher has its own.
        tune: Searching.
        run: Running.
        runner: Where trials run; `None`: by the kind of the trainable.
    """

    trainable: Callable[..., Any] | type
    space: Space | None
    tune: TuneConfig
    run: RunConfig
    runner: Any = None


def directory_name(trainable: Any) -> str:
    """What names of the trainable's directories begin with."""
    return re.sub(r"[^\w.-]+", "_", trainable_name(trainable)).strip("._-")[:_MAX_NAME] or "trial"


def settings_of(plan: Plan) -> dict[str, Any]:
    """What is stored of a plan.

    Raises:
        ConfigError: A value of the space cannot be stored.
    """
    tune, run = plan.tune, plan.run
    functions = [] if plan.space is None else functions_of(plan.space)
    return {
        "form": _FORM,
        "trainable": trainable_name(plan.trainable),
        "import": importable_name(plan.trainable),
        "kind": kind_of(plan.trainable).value,
        "space": None if plan.space is None or functions else stored(plan.space.tree),
        "grid_size": None if plan.space is None else plan.space.grid_size,
        "functions": [path_text(path) for path in functions],
        "metric": tune.metric,
        "mode": tune.mode,
        "num_samples": tune.num_samples,
        "max_concurrent_trials": tune.max_concurrent_trials,
        "time_budget_s": tune.time_budget_s,
        "searcher": _name(tune.search_alg),
        "scheduler": _name(tune.scheduler),
        "stop": dict(run.stop) if isinstance(run.stop, Mapping) else None,
        "stop_function": None if run.stop is None or isinstance(run.stop, Mapping) else _name(run.stop),
        "failure": asdict(run.failure_config),
        "callbacks": [_name(each) for each in run.callbacks],
        "verbose": run.verbose,
        "log_to_file": run.log_to_file,
        "tensorboard": run.tensorboard,
        "runner": _name(plan.runner),
    }


def given_again(
    settings: Any,
    *,
    trainable: Any,
    param_space: Mapping[str, Any] | None,
    tune_config: TuneConfig | None,
    run_config: RunConfig | None,
    runner: Any,
    import_trainable: Callable[[str], Any],
    complete: bool = True,
) -> Plan:
    """The plan of a stored experiment, with what was given again in its place.

    Args:
        settings: As stored.
        trainable: The same one; needed if it cannot be imported by name.
        param_space: Replaces the stored one.
        tune_config: Likewise, but for what is left at its default.
        run_config: Likewise.
        runner: The same one.
        import_trainable: Imports by name.
        complete: Whether everything that was code is needed; not for an experiment with nothing to run.

    Raises:
        ConfigError: Something is missing, or the trainable is another one. The message names all of it.
        CorruptStateError, UnsupportedFormatError: The settings cannot be used.
    """
    settings = _checked(settings)
    missing = []
    if trainable is None and settings["import"] is not None:
        trainable = import_trainable(settings["import"])
    if trainable is None:
        missing.append(f"the trainable {settings['trainable']} (it cannot be imported by name)")
    elif (there := _described(trainable)) != (made_with := f"{settings['kind']} {settings['trainable']}"):
        raise ConfigError(
            f"the experiment was made with the {made_with}, and this is the {there}, which its checkpoints are not of"
        )
    _check_same(
        "searcher", settings["searcher"] or BasicSearcher.__name__, tune_config and tune_config.search_alg
    )
    _check_same("scheduler", settings["scheduler"], tune_config and tune_config.scheduler)
    tune, run = _tune_config(settings), _run_config(settings)
    tune = tune if tune_config is None else _filled(tune_config, tune, TuneConfig())
    run = run if run_config is None else _filled(run_config, run, RunConfig())
    space = Space(param_space) if param_space is not None else None
    if space is None and settings["space"] is not None:
        space = Space(unstored(settings["space"]))
    for what, name, given in (
        ("tune_config=TuneConfig(search_alg=...)", settings["searcher"], tune.search_alg),
        ("tune_config=TuneConfig(scheduler=...)", settings["scheduler"], tune.scheduler),
        ("run_config=RunConfig(stop=...)", settings["stop_function"], run.stop),
        ("runner=...", settings["runner"], runner),
    ):
        if name and not given:
            missing.append(f"{name}, as {what}")
    absent = ", ".join((Counter(settings["callbacks"]) - Counter(map(_name, run.callbacks))).elements())
    if absent and not run.callbacks:
        missing.append(f"{absent}, as run_config=RunConfig(callbacks=...)")
    elif absent:
        logger.warning("callbacks of before that were not given again: %s", absent)
    if settings["functions"] and space is None:
        missing.append(f"param_space=..., for the functions of {', '.join(settings['functions'])}")
    if missing and complete:
        raise ConfigError(
            "these cannot be stored, so give them again to Tuner.restore(): " + "; ".join(missing)
        )
    return Plan(trainable=trainable, space=space, tune=tune, run=run, runner=runner)


def with_checkpoint_config(plan: Plan, config: CheckpointConfig) -> Plan:
    """The plan with the experiment's own checkpoint settings, where none were given again."""
    if plan.run.checkpoint_config != _DEFAULT_CHECKPOINTS:
        return plan
    return replace(plan, run=replace(plan.run, checkpoint_config=config))


def _tune_config(settings: Mapping[str, Any]) -> TuneConfig:
    names = ("metric", "mode", "num_samples", "max_concurrent_trials", "time_budget_s")
    return TuneConfig(**{name: settings[name] for name in names})


def _run_config(settings: Mapping[str, Any]) -> RunConfig:
    return RunConfig(
        stop=settings["stop"],
        failure_config=FailureConfig(**settings["failure"]),
        **{name: settings[name] for name in ("verbose", "log_to_file", "tensorboard")},
    )


_C = TypeVar("_C", TuneConfig, RunConfig)


def _filled(given: _C, stored: _C, default: _C) -> _C:
    """What was given, and in the place of defaults what was stored: a config given for one field drops no other."""
    kept = {}
    for field in fields(given):
        value, before = getattr(given, field.name), getattr(stored, field.name)
        if value == getattr(default, field.name) and before != value:
            kept[field.name] = before
    if kept:
        logger.info(
            "kept as it was stored: %s", ", ".join(f"{name}={value!r}" for name, value in kept.items())
        )
    return replace(given, **kept)


def _checked(settings: Any) -> dict[str, Any]:
    if not isinstance(settings, dict) or not isinstance(settings.get("form"), int):
        raise CorruptStateError(
            "the experiment was not made by a Tuner; go on with it through ExperimentStore, as it was made"
        )
    if settings["form"] > _FORM:
        raise UnsupportedFormatError(
            f"the Tuner's settings have form {settings['form']}, and this asynctune knows {_FORM}; upgrade asynctune"
        )
    try:
        _tune_config(settings), _run_config(settings)
        for name in (
            "trainable",
            "kind",
            "import",
            "space",
            "searcher",
            "scheduler",
            "stop_function",
            "runner",
        ):
            _ = settings[name]
        for name in ("functions", "callbacks"):
            ", ".join(settings[name])
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CorruptStateError(
            f"the Tuner's settings in the experiment cannot be used ({error!r}); "
            "ResultGrid.load() reads the results all the same"
        ) from error
    return dict(settings)


def _described(trainable: Any) -> str:
    return f"{kind_of(trainable).value} {trainable_name(trainable)}"


def _check_same(what: str, before: str | None, given: Any) -> None:
    """A state is given back to what it came from."""
    if given is not None and before is not None and _name(given) != before:
        raise ConfigError(
            f"the experiment was made with the {what} {before}, and {_name(given)} was given, which cannot go on with "
            "its state"
        )


def _name(value: Any) -> str | None:
    if value is None:
        return None
    return str(getattr(value, "__qualname__", type(value).__qualname__))
