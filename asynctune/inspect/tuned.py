"""Owns what an experiment says of its search: what a Tuner stored of itself, saved states, its own metric. Pure.

Reads plain values and needs nothing of the tuning room. Whatever of the settings makes no sense here, as in those
of a newer release, is unknown and no error: what can be told is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from asynctune.errors import ConfigError, CorruptStateError
from asynctune.inspect.report import Head, Mode, SavedState, Tuning
from asynctune.inspect.text import printable, setting
from asynctune.store.store import ExperimentStore

__all__ = ["KNOWN_FORM", "OWN_PREFIX", "UNKNOWN", "objective", "own_objective", "saved_states", "tuning"]

KNOWN_FORM: Final = 1
"""The newest form of a Tuner's settings that is known here."""

OWN_PREFIX: Final = "asynctune."
"""What keys of the metadata start with that are the Tuner's, and no notes of a driver."""

UNKNOWN: Final = "unknown"
"""The name of a searcher or scheduler of which the settings say nothing."""

_SETTINGS: Final = f"{OWN_PREFIX}tuner"
_PROGRESS: Final = f"{OWN_PREFIX}progress"
_STATES: Final = ("searcher", "scheduler", "callbacks")
_DOMAIN: Final = "__domain__"
_GRID: Final = "grid"
_LONGEST: Final = 80
_EVENTS_BETWEEN_YIELDS: Final = 500


# -- a Tuner's settings ------------------------------------------------------------------------------------


def tuning(metadata: Mapping[str, Any], proposed: int) -> Tuning | None:
    """What a Tuner stored of itself; `None` for an experiment that is no Tuner's.

    Args:
        metadata: Of the experiment.
        proposed: How many configs were proposed, which are its trials.
    """
    if _SETTINGS not in metadata:
        return None
    stored = metadata[_SETTINGS]
    settings: Mapping[Any, Any] = stored if isinstance(stored, Mapping) else {}
    failure = _mapping(settings.get("failure")) or {}
    progress = _mapping(metadata.get(_PROGRESS)) or {}
    finished = progress.get("finished")
    fail_fast = failure.get("fail_fast")
    searcher = _name(settings, "searcher")
    num_samples = _count(settings.get("num_samples"))
    search, grid_size = _built_in(settings) if searcher is None else (searcher, 1)
    planned = None
    if num_samples is not None and num_samples > 0 and grid_size is not None and searcher != UNKNOWN:
        planned = num_samples * grid_size
    listed = settings.get("callbacks")
    return Tuning(
        form=_count(settings.get("form")),
        trainable=_text(settings.get("trainable")),
        kind=_text(settings.get("kind")),
        runner=_text(settings.get("runner")),
        searcher=searcher,
        search=search,
        scheduler=_name(settings, "scheduler"),
        callbacks=tuple(map(_shown, listed)) if isinstance(listed, list | tuple) else (),
        metric=_text(settings.get("metric")),
        mode=_text(settings.get("mode")),
        num_samples=num_samples,
        grid_size=grid_size,
        samples_planned=planned,
        samples_proposed=proposed,
        max_concurrent_trials=_count(settings.get("max_concurrent_trials")),
        stop=_mapping(settings.get("stop")),
        stop_function=_text(settings.get("stop_function")),
        max_failures=_count(failure.get("max_failures")),
        fail_fast=fail_fast if isinstance(fail_fast, bool | str) else None,
        restores=_count(settings.get("restores")) or 0,
        finished=finished if isinstance(finished, bool) else None,
    )


def _built_in(settings: Mapping[Any, Any]) -> tuple[str, int | None]:
    """In words what the built-in searcher does, and how many combinations its grids have, if that is known."""
    space = settings.get("space")
    if not isinstance(space, Mapping):
        # with functions the space is not stored
        return "random or grid search", _count(settings.get("grid_size"))
    size, others = 1, 0
    for domain in _domains(space):
        values = domain.get("values")
        if domain[_DOMAIN] == _GRID and isinstance(values, list | tuple):
            size *= len(values)
        else:
            others += 1
    has_grid = any(domain[_DOMAIN] == _GRID for domain in _domains(space))
    if has_grid:
        return ("random and grid search" if others else "grid search"), size
    return "random search", size


def _domains(value: Any) -> Iterator[Mapping[Any, Any]]:
    if isinstance(value, Mapping):
        if _DOMAIN in value:
            yield value
            return
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _domains(each)


def _name(settings: Mapping[Any, Any], key: str) -> str | None:
    """A stored name; `None`: the default one; `UNKNOWN`: nothing is said of it."""
    return _text(settings[key]) if key in settings else UNKNOWN


def _text(value: Any) -> str | None:
    return None if value is None else _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return printable(value)
    text = setting(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _mapping(value: Any) -> Mapping[Any, Any] | None:
    return value if isinstance(value, Mapping) else None


# -- saved states ------------------------------------------------------------------------------------------


async def saved_states(store: ExperimentStore) -> dict[str, SavedState]:
    """How far the saved states of searcher, scheduler and callbacks are, where there are any."""
    found = {}
    is_tuned = _SETTINGS in store.metadata
    for name in _STATES:
        try:
            saved = store.saved_state(name)
        except CorruptStateError as error:
            found[name] = SavedState(None, error=printable(str(error)))
            continue
        if saved is not None:
            seq, state = saved
            found[name] = SavedState(seq, await _behind(store, state) if is_tuned else None)
    return found


async def _behind(store: ExperimentStore, state: Any) -> int | None:
    """How many events of a Tuner's log the state does not know."""
    position = _count(state.get("position")) if isinstance(state, Mapping) else None
    if position is None:
        return None
    behind = 0
    for behind, _ in enumerate(store.logged_events(position), 1):
        if behind % _EVENTS_BETWEEN_YIELDS == 0:
            await asyncio.sleep(0)
    return behind


# -- the metric ----------------------------------------------------------------------------------------------


def own_objective(settings: Tuning | None, tracked: tuple[str | None, str | None]) -> tuple[str, Mode] | None:
    """The metric that the experiment is about, and which end of it is best.

    Args:
        settings: What a Tuner stored.
        tracked: What the store says, see `ExperimentStore.tracked_metric`.
    """
    told = (None, None) if settings is None else (settings.metric, settings.mode)
    for metric, mode in (told, tracked):
        if isinstance(metric, str) and mode in {"min", "max"}:
            return metric, cast("Mode", mode)
    return None


def objective(head: Head, metric: str | None, mode: Mode | None) -> tuple[str, Mode] | None:
    """By what to name the best trial: as asked, else the experiment's own; `None` where neither says it.

    Raises:
        ConfigError: One half was asked for, and the experiment does not say the other.
    """
    own = head.objective
    if metric is None:
        if own is None and mode is not None:
            raise ConfigError("--mode needs --metric: the experiment names no metric of its own")
        return own if own is None or mode is None else (own[0], mode)
    if mode is not None:
        return metric, mode
    if own is None or own[0] != metric:
        says = "names none of its own" if own is None else f"has {own[1]} for {printable(own[0])!r} alone"
        raise ConfigError(
            f"--metric {printable(metric)} needs --mode min or --mode max: the experiment {says}"
        )
    return own
