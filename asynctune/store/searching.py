"""Owns the part of a store for drivers that search: the tracked metric, the event log, states of their objects."""

from __future__ import annotations

from typing import Any

from asynctune.errors import ConfigError
from asynctune.protocols import Stateful
from asynctune.store.runs import full_result
from asynctune.store.saving import SavingStore

__all__ = ["SearchingStore"]


class SearchingStore(SavingStore):
    """What a searcher and a scheduler need of an experiment. `ExperimentStore` adds trials and the end."""

    def last_result(self, trial_id: str) -> dict[str, Any]:
        """A trial's last result row, as `Trial.last_result`, without making the trial; empty before the first.

        Raises:
            TrialNotFoundError: No such trial.
        """
        return full_result(self._table.run(trial_id))

    def track_metric(self, metric: str, mode: str) -> None:
        """Keep minimum, maximum, average and that of the last ten rows of this metric, from now on, for each trial.

        Args:
            metric: Its name, `"a/b"` for nested ones.
            mode: `"min"` or `"max"`: which end is best.

        Raises:
            ConfigError: Another mode, or no name.
        """
        engine = self._writable()
        if not isinstance(metric, str) or not metric.strip("/") or mode not in {"min", "max"}:
            msg = f"track_metric takes the name of a metric and 'min' or 'max', not {metric!r} and {mode!r}"
            raise ConfigError(msg)
        before = engine.experiment.get("tracked") or [None, None, 0]
        if before[:2] != [metric, mode]:
            generation = before[2] + (before[0] != metric)
            engine.experiment["tracked"] = [metric, mode, generation]
            self._records.put("experiment", engine.experiment)
            self._table.track(metric, generation)

    def append_event(self, value: Any) -> int:
        """Add a value of the driver's own to the experiment's log, durable with what is changed beside it.

        Returns:
            Its number, above those of all values before.

        Raises:
            ConfigError: It cannot be stored.
        """
        return self._writable().log.append(value)

    @property
    def next_event(self) -> int:
        """The number that `append_event` gives next."""
        return self._writable().log.next

    def drop_events(self, before: int) -> None:
        """Remove those of the log with smaller numbers; the newest one stays."""
        self._writable().log.drop(before)

    def attach_searcher(self, searcher: Stateful) -> int | None:
        """Keep a searcher's state with the experiment; a state saved before is given to its `set_state` at once.

        Returns:
            The seq of the commit whose events that state knows, `None` if there was none.

        Raises:
            ConfigError: It lacks `get_state` or `set_state`, or another one is attached.
        """
        return self._writable().attach("searcher", searcher)

    def attach_scheduler(self, scheduler: Stateful) -> int | None:
        """Likewise for a scheduler."""
        return self._writable().attach("scheduler", scheduler)

    def attach_state(self, name: str, value: Stateful) -> int | None:
        """Likewise for an object of the driver's own, kept under `name`; one for each name.

        Raises:
            ConfigError: As for a searcher, or the name is not a text.
        """
        engine = self._writable()
        if not isinstance(name, str) or not name:
            msg = f"the name of a state must be a text of at least one character, not {name!r}"
            raise ConfigError(msg)
        return engine.attach(name, value)

    def detach_state(self, name: str) -> None:
        """Save the state of this object no more, `"searcher"` and `"scheduler"` included; what was saved stays.

        For one that has failed and whose state makes no sense any more. Does nothing where none is attached.
        """
        self._writable().attached.pop(name, None)
