"""Owns `OptunaSearcher`: Optuna's samplers and pruners through ask and tell, resumable exactly.

The state that is stored is sampler and pruner, in bytes that only this room reads, Optuna's own notes on trials, and
the values of those that have not ended. The study lives in memory; it is made again of the experiment's trials: their
configs, ends and result rows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from asynctune.errors import ConfigError, CorruptStateError
from asynctune.metrics import find_number
from asynctune.protocols import CONTINUE, STOP, Decision
from asynctune.trial import Trial
from asynctune.tuning.optuna_sampler import draw_seeds, import_optuna, pruner_of, quiet, sampler_of
from asynctune.tuning.optuna_space import OptunaSpace

if TYPE_CHECKING:
    import optuna

__all__ = ["OptunaScheduler", "OptunaSearcher"]

logger = logging.getLogger("asynctune")

_STUDY: Final = "asynctune"  # some pruners decide by the name of the study
_FORM: Final = 1


class OptunaSearcher:
    """Proposes what an Optuna sampler samples. Needs the extra `optuna`.

    Give it to `TuneConfig(search_alg=...)`; the space, the metric and the mode are the Tuner's, unless given here.
    The sampler runs on the event loop: one that takes long delays everything else for so long.

    When an experiment is restored, an `OptunaSearcher` with the same arguments is given again. Its sampler is taken
    from the experiment, which therefore has to be one that you trust: it is unpickled, here and nowhere else.

    Args:
        space: A `param_space` of uniform, integer and categorical domains, fixed values, and functions of those.
        metric: What is tuned, where that is not what `TuneConfig` says: what is shown, and the best result, go by that.
        mode: `"min"` or `"max"`, likewise.
        sampler: An Optuna sampler for one objective; `None`: TPE, with `seed`.
        pruner: An Optuna pruner, for `scheduler()`; `None`: the median pruner.
        seed: Of the default sampler; `None`: a random one.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigError: Arguments that cannot work.
    """

    def __init__(
        self,
        space: Mapping[str, Any] | None = None,
        *,
        metric: str | None = None,
        mode: str | None = None,
        sampler: optuna.samplers.BaseSampler | None = None,
        pruner: optuna.pruners.BasePruner | None = None,
        seed: int | None = None,
    ) -> None:
        self._optuna = import_optuna()
        if mode not in {None, "min", "max"}:
            raise ConfigError(f"mode must be 'min' or 'max', not {mode!r}")
        self._states = self._optuna.trial.TrialState
        self._sampler = sampler_of(self._optuna, sampler, seed)
        self._pruner = pruner_of(self._optuna, pruner)
        self._prunes = False
        self._metric, self._mode = metric, mode
        self._space = None if space is None else OptunaSpace(space, self._optuna.distributions)
        self._given = metric, mode, self._space
        self._study: Any = None
        self._study_id = 0
        self._storage: Any = None
        self._numbers: dict[str, int] = {}  # of the trials that run, in the study
        self._pruned: dict[str, None] = {}
        self._has_stopped = False
        self._added: dict[int, str] = {}  # trials that stand in the study a second time, or out of order
        self._count = 0
        self._notes: dict[str, Any] = {}  # of a restored state, while the past is added
        self._running: dict[str, dict[int, float]] = {}  # likewise, values of trials that had not ended
        self._repeated: dict[str, _Known] = {}  # likewise, trials that have to be placed once more
        self._told_missing = False

    def scheduler(self) -> OptunaScheduler:
        """A scheduler that stops the trials which the pruner gives up; for the same Tuner."""
        self._prunes = True
        return OptunaScheduler(self)

    # -- the protocol --------------------------------------------------------------------------------------

    def set_search_properties(
        self, metric: str | None, mode: str | None, space: Mapping[str, Any] | None
    ) -> None:
        """Take from the Tuner what was not given to the searcher itself.

        Raises:
            ConfigError: Something is missing, cannot be searched by Optuna, or this searcher was another Tuner's.
        """
        if self._count:
            raise ConfigError(
                "this OptunaSearcher has searched for another Tuner; make a new one for each of them"
            )
        own_metric, own_mode, own_space = self._given
        self._metric, self._mode = own_metric or metric, own_mode or mode
        if own_space is not None and space is not None:
            raise ConfigError("both the Tuner and OptunaSearcher have a search space; leave one of them out")
        self._space = own_space if space is None else OptunaSpace(space, self._optuna.distributions)
        self._study = None
        self._ready()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Ask the sampler; `None` after one that goes through a list has come to its end."""
        self._place_repeated()
        study, space = self._ready()
        if self._has_stopped:
            return None
        trial = study.ask(space.distributions)
        self._numbers[trial_id] = trial.number
        self._count += 1
        config: dict[str, Any] = space.config(trial.params)
        return config

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Note the metric at this iteration, and whether the pruner gives the trial up."""
        self._place_repeated()
        number, value = self._numbers.get(trial_id), self._value(result)
        if number is None or value is None:
            return
        # Not Trial.report(): that keeps the first value of an iteration, and here the newest counts.
        self._storage.set_trial_intermediate_value(self._id(number), _step(result), value)
        if self._prunes and trial_id not in self._pruned:
            study, _ = self._ready()
            if self._pruner.prune(study, self._storage.get_trial(self._id(number))):
                self._pruned[trial_id] = None

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study how the trial ended."""
        self._place_repeated()
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        study, _ = self._ready()
        state, value = self._end(trial_id, result, failed=error)
        if state is self._states.COMPLETE:
            study.tell(number, value)
        else:
            study.tell(number, state=state)

    def on_trial_rewind(self, trial_id: str, iteration: int) -> None:
        """Forget what the trial reported after this iteration: it reports that anew."""
        self._place_repeated()
        number = self._numbers.get(trial_id)
        if number is not None:
            # The storage's own mapping: there is no other way to take a value back, and pruners look at the last one.
            values = self._storage.get_trial(self._id(number)).intermediate_values
            for step in [step for step in values if step > iteration]:
                del values[step]

    def on_trial_add(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """A trial that the sampler did not propose is one of the study all the same."""
        self._place_repeated()
        self._added[self._count] = trial_id
        self._numbers[trial_id] = self._count
        self._add(config, {}, self._states.RUNNING, None)

    def get_state(self) -> dict[str, Any]:
        """The sampler, and what Optuna notes about trials."""
        import cloudpickle  # noqa: PLC0415 - for samplers with functions of the user's

        draw_seeds(self._sampler)
        notes: dict[str, Any] = {}
        about: dict[str, Any] = {}
        if self._study is not None:
            about = dict(self._storage.get_study_system_attrs(self._study_id))
            for trial in self._storage.get_all_trials(self._study_id, deepcopy=False):
                if trial.system_attrs:
                    notes[str(trial.number)] = dict(trial.system_attrs)
        return {
            "form": _FORM,
            "sampler": cloudpickle.dumps((self._sampler, self._pruner)),
            "study": about,
            "trials": notes,
            "running": {trial_id: self._values(number) for trial_id, number in self._numbers.items()},
            "pruned": list(self._pruned),
            "stopped": self._has_stopped,
            "added": [[number, trial_id] for number, trial_id in self._added.items()],
        }

    def set_state(self, state: Any) -> None:
        """Take the sampler back; the past of its study comes with `add_past_trial`.

        Raises:
            CorruptStateError: It cannot be read, perhaps by another version of Optuna.
        """
        import cloudpickle  # noqa: PLC0415

        try:
            if state["form"] != _FORM:
                raise ValueError(f"form {state['form']}")
            self._sampler, self._pruner = cloudpickle.loads(state["sampler"])
            self._running = {str(trial_id): dict(values) for trial_id, values in state["running"].items()}
            self._has_stopped = bool(state["stopped"])
            self._pruned = dict.fromkeys(state["pruned"])
            self._added = {int(number): str(trial_id) for number, trial_id in state["added"]}
            self._notes = dict(state["trials"])
            about = dict(state["study"])
        except Exception as error:
            raise CorruptStateError(
                f"the stored Optuna sampler cannot be used ({error!r}); use the Optuna version that wrote it"
            ) from error
        study, _ = self._ready()
        study.sampler, study.pruner = self._sampler, self._pruner
        for key, value in about.items():
            self._storage.set_study_system_attr(self._study_id, key, value)

    def add_past_trial(
        self, trial: Trial, rows: Sequence[Mapping[str, Any]], *, ended: bool, failed: bool
    ) -> None:
        """Put a trial of before back into the study; called after `set_state`, oldest first."""
        self._place_repeated()
        known = _Known(trial, rows, ended=ended, failed=failed)
        if any(again == trial.trial_id and number > self._count for number, again in self._added.items()):
            self._repeated[trial.trial_id] = known
            known = _Known(trial, (), ended=True, failed=True)
        self._place(known)

    # -- inside --------------------------------------------------------------------------------------------

    def gave_up(self, trial_id: str) -> bool:
        """Whether the pruner has given the trial up.

        Raises:
            ConfigError: Nobody tells this searcher anything: it is not the Tuner's.
        """
        if self._study is None:
            raise ConfigError(
                "the scheduler belongs to an OptunaSearcher that is not this Tuner's search_alg"
            )
        return trial_id in self._pruned

    def _place_repeated(self) -> None:
        """Trials that failed and were resumed stand in the study again, where that happened."""
        while (known := self._repeated.get(self._added.get(self._count, ""))) is not None:
            trial_id = known.trial.trial_id
            is_last = all(again != trial_id or number <= self._count for number, again in self._added.items())
            if is_last:
                del self._repeated[trial_id]
            self._place(known if is_last else _Known(known.trial, (), ended=True, failed=True))

    def _place(self, known: _Known) -> None:
        trial = known.trial
        values = {_step(row): value for row in known.rows if (value := self._value(row)) is not None}
        if not known.ended:
            # As the state knew them, not as the files have them: some may have been cut off since.
            values = self._running.pop(trial.trial_id, {})
            self._numbers[trial.trial_id] = self._count
            self._add(trial.config, values, self._states.RUNNING, None)
            return
        state, value = self._end(trial.trial_id, trial.last_result, failed=known.failed)
        if state is self._states.PRUNED:
            # what `tell` takes for the value of one
            last = values.get(max(values, default=0))
            value = None if last is None or math.isnan(last) else last
        self._add(trial.config, values, state, value)

    def _add(
        self, config: Mapping[str, Any], values: Mapping[int, float], state: Any, value: float | None
    ) -> None:
        study, space = self._ready()
        params = space.params(config)
        if params is None:
            logger.warning(
                "a trial's config is not of the search space, so Optuna learns nothing of it: %s", config
            )
            if state is not self._states.RUNNING:
                state, value = self._states.FAIL, None
        study.add_trial(
            self._optuna.trial.create_trial(
                state=state,
                value=value,
                params=params or {},
                distributions={} if params is None else space.distributions,
                intermediate_values=dict(values),
                system_attrs=dict(self._notes.pop(str(self._count), {})),
            )
        )
        self._count += 1

    def _end(
        self, trial_id: str, result: Mapping[str, Any] | None, *, failed: bool
    ) -> tuple[Any, float | None]:
        value = None if result is None else self._value(result)
        if failed:
            return self._states.FAIL, None
        if trial_id in self._pruned:
            return self._states.PRUNED, None
        if value is None and not self._told_missing:
            self._told_missing = True
            logger.warning(
                "trial %s ended without the metric %r; Optuna counts it as failed", trial_id, self._metric
            )
        if value is None or math.isnan(value):
            return self._states.FAIL, None
        return self._states.COMPLETE, value

    def _value(self, result: Mapping[str, Any]) -> float | None:
        found = find_number(result, self._metric or "")
        if found is None:
            return None
        try:
            return float(found)
        except OverflowError:  # an integer beyond every float
            return math.inf if found > 0 else -math.inf

    def _values(self, number: int) -> dict[int, float]:
        return dict(self._storage.get_trial(self._id(number)).intermediate_values)

    def _stop(self) -> None:
        self._has_stopped = True

    def _id(self, number: int) -> int:
        return int(self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number))

    def _ready(self) -> tuple[Any, OptunaSpace]:
        if self._space is None:
            raise ConfigError("OptunaSearcher needs a search space: Tuner(param_space=...), or space=...")
        if self._metric is None or self._mode is None:
            raise ConfigError("OptunaSearcher needs TuneConfig(metric=..., mode=...)")
        if self._study is None:
            self._storage = self._optuna.storages.InMemoryStorage()
            with quiet(self._optuna.logging):
                self._study = self._optuna.create_study(
                    storage=self._storage,
                    study_name=_STUDY,
                    direction="minimize" if self._mode == "min" else "maximize",
                    sampler=self._sampler,
                    pruner=self._pruner,
                )
            self._study.stop = (
                self._stop
            )  # samplers of a list call it, which Optuna allows in its own loop only
            self._study_id = self._storage.get_study_id_from_name(_STUDY)
        return self._study, self._space


class OptunaScheduler:
    """First in, first out, and stops what the searcher's pruner gives up. Its state is the searcher's.

    Made by `OptunaSearcher.scheduler()`.
    """

    def __init__(self, searcher: OptunaSearcher) -> None:
        self._searcher = searcher

    @property
    def belongs_to(self) -> OptunaSearcher:
        """The searcher that has to be the same Tuner's."""
        return self._searcher

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> Decision:  # noqa: ARG002 - the searcher was told
        """`STOP` for one that the pruner gives up."""
        return STOP if self._searcher.gave_up(trial_id) else CONTINUE

    def choose_trial_to_run(self, trial_ids: Sequence[str]) -> str | None:
        """The first."""
        return trial_ids[0] if trial_ids else None

    def get_state(self) -> None:
        """Nothing."""

    def set_state(self, state: Any) -> None:
        """Nothing."""


@dataclass(frozen=True)
class _Known:
    """What is known of a trial of before."""

    trial: Trial
    rows: Sequence[Mapping[str, Any]]
    ended: bool
    failed: bool


def _step(row: Mapping[str, Any]) -> int:
    return int(row.get("training_iteration", 0))
