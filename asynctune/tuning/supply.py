"""Owns where the next trial to run comes from: from those that wait, or from the searcher. Runs none."""

from __future__ import annotations

import asyncio
from typing import Final

from asynctune.errors import ConfigError, UserCodeError
from asynctune.store.store import ExperimentStore
from asynctune.trial import Trial, TrialStatus
from asynctune.tuning.deciding import Deciding
from asynctune.tuning.waiting import Waiting

__all__ = ["Supply"]

_TRIALS_PER_SLICE: Final = 20


class Supply:
    """The trials of an experiment that are to be run.

    Args:
        store: Open for writing.
        deciding: Searcher and scheduler.
        trial_prefix: What names of trials start with.
    """

    def __init__(self, store: ExperimentStore, deciding: Deciding, trial_prefix: str) -> None:
        self._store = store
        self._deciding = deciding
        self._trial_prefix = trial_prefix
        self._waiting = Waiting()
        self._exhausted = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, trial: Trial) -> None:
        """One waits to be started, or started again."""
        self._waiting.add(trial)

    async def find(self) -> None:
        """Look through the store for those that wait."""
        for number, trial in enumerate(self._store.trials):
            if trial.status in {TrialStatus.PENDING, TrialStatus.PAUSED}:
                self._waiting.add(trial)
            if number % _TRIALS_PER_SLICE == 0:
                await asyncio.sleep(0)

    def take(self) -> str | None:
        """Remove and return the next one that the scheduler starts; `None`: it starts none of them."""
        return self._waiting.take(self._deciding.choose)

    def grow(self, *, others_run: bool) -> Trial | None:
        """Let the searcher propose one more, which waits then; `None`: there is none, or none is needed.

        Args:
            others_run: Trials run, from which a searcher may learn that there is more to be tried.

        Raises:
            UserCodeError: It failed, or proposed what cannot be stored.
        """
        # a scheduler that starts no PENDING one waits for something, and needs no more of them
        if self._waiting.has_pending or self._exhausted:
            return None
        trial_id = self._store.new_trial_id()
        config = self._deciding.suggest(trial_id)
        if config is None:
            # one that says so while trials run may know more when they have ended
            self._exhausted = not others_run
            return None
        try:
            name = f"{self._trial_prefix}_{trial_id}"
            trial = self._store.add_trial(config, trial_id=trial_id, trial_name=name)
        except ConfigError as error:
            raise UserCodeError(f"the searcher proposed a config that cannot be stored: {error}") from error
        self._deciding.suggested(trial_id, config)
        self._waiting.add(trial)
        return trial
