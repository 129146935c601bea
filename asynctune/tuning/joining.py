"""Owns how a searcher, a scheduler and callbacks are joined to an experiment, a new one or a restored one.

Afterwards they know what they knew when the experiment was interrupted, each trial has the status to go on with, and
all that a further restore needs is on the disk. What they are asked later is `tuning.deciding`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from asynctune.errors import ConfigError, StorageError, UserCodeError
from asynctune.protocols import Searcher
from asynctune.store.store import ExperimentStore
from asynctune.trial import TrialStatus
from asynctune.tuning.basic import BasicSearcher
from asynctune.tuning.callback_states import CallbackStates
from asynctune.tuning.deciding import Deciding
from asynctune.tuning.following import (
    ADDED,
    COMPLETED,
    REPORTED,
    SUGGESTED,
    Event,
    EventLog,
    Follower,
    catch_up,
)
from asynctune.tuning.settings import Plan
from asynctune.tuning.variants import Space
from asynctune.tuning.waiting import DECIDED

__all__ = ["CALLBACKS", "join", "searcher_of"]

logger = logging.getLogger("asynctune")

_EVENTS_PER_SLICE: Final = 100

CALLBACKS: Final = "callbacks"
"""Name under which the store keeps the state of callbacks."""


async def join(
    store: ExperimentStore,
    plan: Plan,
    search: tuple[Searcher, int | None],
    requeue: Mapping[str, bool] | None,
) -> Deciding:
    """Join the objects of a plan to its experiment.

    Args:
        store: Open for writing.
        plan: With the objects.
        search: Of `searcher_of`.
        requeue: How a restored experiment goes on, as for `ExperimentStore.requeue`; `None` for a new one.

    Raises:
        CorruptStateError: A saved state cannot be used.
        UserCodeError: One of them failed.
    """
    searcher, limit = search
    scheduler = plan.tune.scheduler

    def forget(who: object) -> None:
        if who is not scheduler:
            store.detach_state("searcher")
        if who is not searcher:
            store.detach_state("scheduler")

    log = EventLog(store)
    log.resume()
    deciding = Deciding(
        searcher,
        scheduler,
        log,
        max_suggestions=limit,
        suggestions=len(store.trials),
        on_failure=forget,
    )
    follower = Follower("searcher", searcher, log)
    told: list[tuple[Follower, Callable[[Event], None]]] = [(follower, deciding.tell_searcher)]
    has_past = store.attach_searcher(follower) is not None
    if scheduler is not None:
        second = Follower("scheduler", scheduler, log)
        told.append((second, deciding.tell_scheduler))
        if store.attach_scheduler(second) is None:
            second.begin_here()
    if any(callable(getattr(each, "get_state", None)) for each in plan.run.callbacks):
        store.attach_state(CALLBACKS, CallbackStates(plan.run.callbacks))
    if requeue is not None:
        _requeue(store, deciding, requeue)
    if has_past and callable(getattr(searcher, "add_past_trial", None)):
        await _tell_past(store, searcher, log, follower.position)
    await catch_up(log, told)
    # Before any trial starts: what a restore needs, such as a seed that was drawn, is on the disk.
    await store.flush()
    return deciding


def searcher_of(plan: Plan) -> tuple[Searcher, int | None]:
    """The searcher of a plan, and how many configs it is asked for; `None`: as many as it has.

    Raises:
        ConfigError: It cannot be used like this.
        UserCodeError: It failed.
    """
    tune = plan.tune
    if tune.search_alg is None:
        return BasicSearcher(plan.space or Space({}), tune.num_samples), None
    searcher: Searcher = tune.search_alg
    take = getattr(searcher, "set_search_properties", None)
    if callable(take):
        try:
            take(tune.metric, tune.mode, None if plan.space is None else plan.space.tree)
        except ConfigError:
            raise
        except Exception as error:
            kind = type(searcher).__name__
            raise UserCodeError(f"{kind}.set_search_properties() failed: {error!r}") from error
    return searcher, tune.num_samples if tune.num_samples > 0 else None


async def _tell_past(store: ExperimentStore, searcher: Any, log: EventLog, position: int) -> None:
    """Tell the searcher of each trial what its saved state knows: all but the events after it."""
    later_rows: dict[str, set[Any]] = {}
    later_trials, later_ends, failed_before = set(), set(), set()
    for count, (_, (kind, trial_id, data, failed)) in enumerate(log.since(position), 1):
        if kind == REPORTED:
            later_rows.setdefault(trial_id, set()).add(data.get("training_iteration"))
        elif kind == COMPLETED:
            later_ends.add(trial_id)
        elif kind == ADDED and failed:
            failed_before.add(trial_id)
        elif kind in {ADDED, SUGGESTED}:
            later_trials.add(trial_id)
        if count % _EVENTS_PER_SLICE == 0:
            await asyncio.sleep(0)
    async for trial in store.iterate(with_replaced=True):
        trial_id = trial.trial_id
        if trial_id in later_trials:
            continue
        later = later_rows.get(trial_id, ())
        try:
            rows = await store.history(trial_id)
        except StorageError as error:
            logger.warning("the searcher is not told the past results of trial %s: %s", trial_id, error)
            rows = []
        rows = [row for row in rows if row.get("training_iteration") not in later]
        failed = trial_id in failed_before or trial.status is TrialStatus.ERROR
        ended = trial_id in failed_before or (trial.status.is_finished and trial_id not in later_ends)
        try:
            searcher.add_past_trial(trial, rows, ended=ended, failed=ended and failed)
        except Exception as error:
            name = type(searcher).__name__
            raise UserCodeError(f"{name}.add_past_trial({trial_id!r}) failed: {error!r}") from error


def _requeue(store: ExperimentStore, deciding: Deciding, requeue: Mapping[str, bool]) -> None:
    """Give each trial the status to go on with, and log what that means to the searcher, in one commit.

    O(all trials) in one step, as `ExperimentStore.requeue` is: a commit between the two would lose the second.
    """
    before = {trial.trial_id: trial.status for trial in store.trials}
    store.requeue(**requeue)
    for trial in store.trials:
        was = before.get(trial.trial_id)
        if was is None or (was is TrialStatus.ERROR and trial.status is not was):
            if was is None and DECIDED in trial.metadata:
                store.update_trial(trial.trial_id, metadata={DECIDED: None})  # of the one that it replaces
            deciding.note_added(trial.trial_id, trial.config, had_failed=was is not None)
        elif not was.is_finished and trial.status.is_finished:
            deciding.note_completed(trial.trial_id, trial.last_result or None)
