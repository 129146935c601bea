"""Owns what is needed of Optuna itself: importing it, samplers and pruners that can be used, seeds, silence.

What is asked of them, and how they are kept, is `tuning.optuna_search`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from asynctune.errors import ConfigError, MissingExtraError

__all__ = ["draw_seeds", "import_optuna", "pruner_of", "quiet", "sampler_of"]


def import_optuna() -> Any:
    """The package.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import optuna  # noqa: PLC0415 - the extra, when it is used
    except ImportError as error:
        raise MissingExtraError("optuna", "optuna", "OptunaSearcher") from error
    return optuna


def sampler_of(optuna: Any, given: Any, seed: int | None) -> Any:
    """The sampler that was given, or TPE with this seed.

    Raises:
        ConfigError: It is none, or has a seed of its own.
    """
    if given is None:
        return optuna.samplers.TPESampler(seed=seed)
    if seed is not None:
        raise ConfigError("seed is for the default sampler; give it to your own sampler itself")
    return _checked("sampler", given, optuna.samplers.BaseSampler, "optuna.samplers.TPESampler()")


def pruner_of(optuna: Any, given: Any) -> Any:
    """The pruner that was given, or the median pruner.

    Raises:
        ConfigError: It is none.
    """
    if given is None:
        return optuna.pruners.MedianPruner()
    return _checked("pruner", given, optuna.pruners.BasePruner, "optuna.pruners.MedianPruner()")


def _checked(name: str, given: Any, base: type, example: str) -> Any:
    if isinstance(given, base):
        return given
    if isinstance(given, type):
        raise ConfigError(
            f"{name} must be an object, not the class {given.__name__}; write {given.__name__}(...)"
        )
    raise ConfigError(f"{name} must be one of Optuna's, such as {example}, not {given!r:.80}")


def draw_seeds(sampler: Any) -> None:
    """Let random states that are seeded when they are used first be seeded now: they are about to be stored."""
    for part in vars(sampler).values():
        if type(part).__name__ == "LazyRandomState":
            _ = part.rng
        elif type(part).__module__.startswith("optuna.samplers") and hasattr(part, "__dict__"):
            draw_seeds(part)


@contextlib.contextmanager
def quiet(logs: Any) -> Iterator[None]:
    """Without Optuna's line about a study that it made.

    Args:
        logs: The module `optuna.logging`.
    """
    before = logs.get_verbosity()
    logs.set_verbosity(max(before, logs.WARNING))
    try:
        yield
    finally:
        logs.set_verbosity(before)
