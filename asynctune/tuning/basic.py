"""Owns the searcher that every Tuner has: random and grid search, resumable at any suggestion.

The n-th suggestion depends on the seed and on n alone, so the state is two numbers, and a resumed search proposes
exactly what an uninterrupted one would have.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from asynctune.errors import CorruptStateError
from asynctune.tuning.variants import Space

__all__ = ["BasicSearcher"]


class BasicSearcher:
    """Draws each config from a `param_space`; with grids, each combination in turn.

    Args:
        param_space: Nested dictionaries and lists of domains and fixed values.
        num_samples: How often the whole grid is gone through, each time with other random values; without grids,
            the number of configs. -1: without end.
        seed: Same seed, same configs; `None`: a random one, which the state keeps.
    """

    def __init__(
        self, param_space: Mapping[str, Any] | Space, num_samples: int = 1, seed: int | None = None
    ) -> None:
        self._space = param_space if isinstance(param_space, Space) else Space(param_space)
        self._num_samples = num_samples
        self._seed = random.SystemRandom().getrandbits(63) if seed is None else seed
        self._next = 0

    @property
    def total(self) -> int | None:
        """How many configs there are in all; `None`: without end."""
        return None if self._num_samples < 0 else self._num_samples * self._space.grid_size

    def suggest(self, trial_id: str) -> dict[str, Any] | None:  # noqa: ARG002 - the n-th is the same for any trial
        """The next config; `None` after the last."""
        if self.total is not None and self._next >= self.total:
            return None
        number, combination = divmod(self._next, self._space.grid_size)
        rng = random.Random(f"{self._seed}:{number}:{combination}")  # noqa: S311 - hyperparameters, not secrets
        config = self._space.config(rng, combination)
        self._next += 1
        return config

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Results change nothing."""

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ends change nothing."""

    def get_state(self) -> dict[str, Any]:
        """Seed and position."""
        return {"seed": self._seed, "next": self._next}

    def set_state(self, state: Any) -> None:
        """Go on from there.

        Raises:
            CorruptStateError: It is no state of this searcher.
        """
        try:
            self._seed, self._next = int(state["seed"]), int(state["next"])
        except (TypeError, KeyError, ValueError) as error:
            raise CorruptStateError(f"not the state of a BasicSearcher: {state!r:.100}") from error
