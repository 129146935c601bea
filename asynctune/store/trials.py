"""Owns what the records of a trial mean, and what may happen to a trial: statuses, results, restarts.

Works on `Records` alone: synchronous, no I/O. Two records make a trial, so that what changes often stays small:

- `trial/<id>`: `[trial_name or None (the id), created_at, config, metadata or None]`
- `run/<id>`: see `store.runs`; missing while nothing has happened
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asynctune.clock import Clock
from asynctune.errors import ConfigError, CorruptStateError, TransitionError, TrialNotFoundError
from asynctune.metrics import find_number
from asynctune.packing import pack, unpack
from asynctune.results.rows import Announce, Cut, ResultRow, encode
from asynctune.store.marks import cut_back, kept_rows, mark, mark_of
from asynctune.store.names import check_name, suggest_trial_id
from asynctune.store.records import Records
from asynctune.store.runs import (
    CODES,
    STATUSES,
    Run,
    error_text,
    full_result,
    next_iteration,
    pack_map,
    pack_run,
    parse_status,
    peek_status,
    unpack_run,
)
from asynctune.store.summary import as_named, updated
from asynctune.trial import ALLOWED_TRANSITIONS, Checkpoint, Trial, TrialStatus

__all__ = ["TrialTable"]


class TrialTable:
    """The trials of one experiment.

    Args:
        records: Where they are.
        clock: Time.
        prefix: What generated trial ids start with.
    """

    def __init__(self, records: Records, clock: Clock, prefix: str) -> None:
        self._records = records
        self._clock = clock
        self._prefix = prefix
        self._marks: dict[str, float] = {}
        self._tracked: tuple[str, int] | None = None

    def track(self, metric: str, generation: int) -> None:
        """Keep a summary of this metric from now on; another generation begins it anew."""
        self._tracked = (metric, generation)

    def summary(self, trial_id: str) -> dict[str, float]:
        """What the rows of the present timeline have been, see `store.summary`; empty if nothing is tracked."""
        return {} if self._tracked is None else as_named(self.run(trial_id).summary, self._tracked[1])

    def new_id(self) -> str:
        """An id that no trial has."""
        ids, names = self._records.trial_ids, self._records.named("name")
        return suggest_trial_id(self._prefix, len(ids), taken=lambda i: i in ids or i in names)

    # -- reading -------------------------------------------------------------------------------------------

    def given(self, trial_id: str) -> tuple[str, float, dict[str, Any], dict[str, Any]]:
        """Name, creation time, config and metadata.

        Raises:
            TrialNotFoundError: No such trial.
        """
        data = self._records.packed(f"trial/{trial_id}")
        if data is None:
            raise self._not_found(trial_id)
        try:
            name, created_at, config, metadata = unpack(data)
        except ValueError as error:
            msg = f"the record of trial {trial_id!r} cannot be read ({error})"
            raise CorruptStateError(msg) from error
        return name or trial_id, created_at, config, metadata or {}

    def run(self, trial_id: str) -> Run:
        """What has happened to the trial so far.

        Raises:
            TrialNotFoundError: No such trial.
        """
        values = self._records.get(f"run/{trial_id}")
        if values is None:
            if not isinstance(trial_id, str) or trial_id not in self._records.trial_ids:
                raise self._not_found(trial_id)
            return Run()
        return unpack_run(trial_id, values)

    def _not_found(self, trial_id: object) -> TrialNotFoundError:
        if isinstance(trial_id, Trial):
            return TrialNotFoundError(
                f"a trial is named by its id; give trial.trial_id, {trial_id.trial_id!r}, not the Trial"
            )
        ids = list(self._records.trial_ids)
        some = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")  # noqa: PLR2004 - enough to see their form
        return TrialNotFoundError(
            f"no trial {trial_id!r}; " + (f"there are {some}" if ids else "there are none yet")
        )

    def get(self, trial_id: str, checkpoints: Sequence[Checkpoint]) -> Trial:
        """The trial as a value.

        Raises:
            TrialNotFoundError: No such trial.
        """
        name, created_at, config, metadata = self.given(trial_id)
        run = self.run(trial_id)
        return Trial(
            trial_id=trial_id,
            trial_name=name,
            status=STATUSES[run.status],
            config=config,
            metadata=metadata,
            last_result=full_result(run),
            num_results=run.num_results,
            error=run.error,
            num_failures=run.num_failures,
            created_at=created_at,
            started_at=run.started_at,
            ended_at=run.ended_at,
            checkpoints=tuple(checkpoints),
        )

    def status(self, trial_id: str) -> TrialStatus:
        """Where the trial stands."""
        return STATUSES[self.run(trial_id).status]

    def replaced_by(self, trial_id: str) -> str | None:
        """Id of the trial that was made to start this one over, if one was."""
        return self._records.get(f"replaced/{trial_id}")

    def listed(self) -> list[str]:
        """Ids of all trials in the order they were added, without replaced ones."""
        replaced = self._records.named("replaced")
        return (
            [i for i in self._records.trial_ids if i not in replaced]
            if replaced
            else list(self._records.trial_ids)
        )

    # -- changing ------------------------------------------------------------------------------------------

    def add(
        self,
        config: Mapping[str, Any],
        trial_id: str | None = None,
        trial_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Add a PENDING trial and return its id.

        Raises:
            ConfigError: A name that cannot be a directory or is taken, or values that cannot be stored.
        """
        ids, names = self._records.trial_ids, self._records.named("name")
        if trial_id is None:
            trial_id = self.new_id()
        check_name(trial_id, "trial_id")
        if trial_id in ids:
            msg = f"trial_id {trial_id!r} is taken; ids are never reused, leave it out to get a new one"
            raise ConfigError(msg)
        name = trial_id if trial_name is None else trial_name
        check_name(name, "trial_name")
        if name in names or name in ids:
            msg = f"trial_name {name!r} is the directory of another trial; choose another name"
            raise ConfigError(msg)
        self._put_given(trial_id, None if name == trial_id else name, self._clock.time(), config, metadata)
        if name != trial_id:
            self._records.put(f"name/{name}", trial_id)
        return trial_id

    def _put_given(
        self,
        trial_id: str,
        name: str | None,
        created_at: float,
        config: Mapping[str, Any],
        metadata: Mapping[str, Any] | None,
    ) -> None:
        parts = [pack(name), pack(created_at), pack_map(config, "config")]
        parts.append(pack(None) if not metadata else pack_map(metadata, "metadata"))
        self._records.put_packed(f"trial/{trial_id}", b"\x94" + b"".join(parts))

    def update(
        self, trial_id: str, config: Mapping[str, Any] | None, metadata: Mapping[str, Any] | None
    ) -> list[bytes]:
        """Replace the config, and merge `metadata` into the trial's; returns row operations to journal."""
        name, created_at, old_config, old_metadata = self.given(trial_id)
        merged = old_metadata
        if metadata is not None:
            pack_map(metadata, "metadata")
            merged = {**old_metadata, **metadata}
        stored_name = None if name == trial_id else name
        self._put_given(trial_id, stored_name, created_at, old_config if config is None else config, merged)
        return [] if config is None else [encode(Announce(trial_id=trial_id))]

    def set_status(
        self, trial_id: str, status: TrialStatus | str, error: str | BaseException | None
    ) -> tuple[TrialStatus, TrialStatus, list[bytes]]:
        """Move the trial to `status`; returns the old one, the new one, and row operations to journal.

        Raises:
            TransitionError: Not allowed from the present status.
            ConfigError: Not a status, or an error text where none belongs.
        """
        target = parse_status(status)
        run = self.run(trial_id)
        present = STATUSES[run.status]
        if error is not None and target not in {TrialStatus.ERROR, TrialStatus.PENDING}:
            msg = f"an error belongs to status ERROR (or to PENDING, for a retry), not to {target}"
            raise ConfigError(msg)
        if target is present:
            return present, target, []
        if target not in ALLOWED_TRANSITIONS[present]:
            allowed = ", ".join(sorted(ALLOWED_TRANSITIONS[present]))
            msg = f"trial {trial_id!r} is {present} and cannot become {target}; from there it may become {allowed}"
            raise TransitionError(msg)
        if (newer := self.replaced_by(trial_id)) is not None:
            msg = f"trial {trial_id!r} was started over as {newer!r}; use that one"
            raise TransitionError(msg)
        operations = self._move(trial_id, run, present, target, error)
        self._put_run(trial_id, run)
        return present, target, operations

    def _move(
        self,
        trial_id: str,
        run: Run,
        present: TrialStatus,
        target: TrialStatus,
        error: str | BaseException | None,
    ) -> list[bytes]:
        operations = []
        if error is not None or target is TrialStatus.ERROR:
            run.error = error_text(error)
            run.num_failures += 1
        if target is TrialStatus.RUNNING:
            if run.started_at is None:
                run.started_at = self._clock.time()
            operations.append(encode(Announce(trial_id=trial_id)))
            self._marks[trial_id] = self._clock.monotonic()
        if target.is_finished:
            run.ended_at = self._clock.time()
            self._marks.pop(trial_id, None)
        if target is TrialStatus.PENDING and present is not TrialStatus.PAUSED:
            operations += self.start_again(trial_id, run)
        run.status = CODES[target]
        return operations

    def start_again(self, trial_id: str, run: Run, step: int | None = None) -> list[bytes]:
        """Cut the timeline back to a checkpoint (the latest by default), for the trial goes on from there."""
        run.attempt += 1
        run.ended_at = None
        self._marks.pop(trial_id, None)
        keep = cut_back(run, mark_of(self._records, trial_id, step))
        if keep is None:
            return []
        return [encode(Cut(trial_id=trial_id, keep=keep))]

    def is_ahead(self, trial_id: str) -> bool:
        """Whether the trial has rows after its newest checkpoint."""
        return self.run(trial_id).num_results > kept_rows(mark_of(self._records, trial_id))

    def timeline(self, trial_id: str) -> dict[str, Any]:
        """What a checkpoint saved at this moment remembers of the timeline, for `start_again`."""
        return mark(self.run(trial_id))

    def rewind(self, trial_id: str, step: int | None) -> list[bytes]:
        """Cut the timeline back to checkpoint `step`, or the newest; returns row operations to journal."""
        run = self.run(trial_id)
        operations = self.start_again(trial_id, run, step)
        self._put_run(trial_id, run)
        return operations

    def report(self, trial_id: str, metrics: Mapping[str, Any], iteration: int | None) -> tuple[int, bytes]:
        """Add a result row; returns its iteration and its packed form, to be journaled with the records.

        Raises:
            ConfigError: An iteration that is not above the last one, or metrics that cannot be stored.
            TransitionError: The trial is finished.
        """
        run = self.run(trial_id)
        if STATUSES[run.status].is_finished:
            msg = f"trial {trial_id!r} is {STATUSES[run.status]} and takes no more results; requeue it first"
            raise TransitionError(msg)
        if not isinstance(metrics, Mapping):
            msg = f"metrics must be a mapping of names to values, not {type(metrics).__name__}"
            raise ConfigError(msg)
        number = next_iteration(metrics, iteration, run, trial_id)
        now, wall = self._clock.monotonic(), self._clock.time()
        began = self._marks.get(trial_id)
        since_start = now - began if began is not None else wall - (run.reported_at or run.started_at or wall)
        spent = max(0.0, since_start)
        row = encode(
            ResultRow(
                trial_id=trial_id,
                ordinal=run.num_results + 1,
                iteration=number,
                timestamp=wall,
                time_this_iter_s=spent,
                time_total_s=run.time_total_s + spent,
                metrics=metrics,
            )
        )
        run.num_results += 1
        run.iteration = number
        run.time_total_s += spent
        run.reported_at = wall
        run.metrics = dict(metrics)
        if self._tracked is not None:
            metric, generation = self._tracked
            run.summary = updated(run.summary, generation, find_number(metrics, metric))
        self._put_run(trial_id, run)
        self._marks[trial_id] = now
        return number, row

    def _put_run(self, trial_id: str, run: Run) -> None:
        self._records.put_packed(f"run/{trial_id}", pack_run(run))

    # -- restoring -----------------------------------------------------------------------------------------

    def requeue(
        self, *, resume_unfinished: bool, resume_errored: bool, restart_errored: bool
    ) -> tuple[list[tuple[str, TrialStatus]], list[bytes]]:
        """Apply the restore table; returns which trials changed to what, and row operations to journal.

        TERMINATED stays. PENDING and RUNNING become PENDING, to go on from the latest checkpoint, or TERMINATED
        with `resume_unfinished=False`; PAUSED stays, or TERMINATED likewise. ERROR stays, or becomes PENDING
        under the same id (`resume_errored`, which wins), or is started over under a new id (`restart_errored`).
        """
        changed: list[tuple[str, TrialStatus]] = []
        operations: list[bytes] = []
        for trial_id in self.listed():
            data = self._records.packed(f"run/{trial_id}")
            target = status = TrialStatus.PENDING if data is None else peek_status(data)
            if status is TrialStatus.TERMINATED or (data is None and resume_unfinished):
                continue  # nothing to do; there may be very many of them
            run = self.run(trial_id)
            if status is TrialStatus.ERROR:
                if resume_errored:
                    target = TrialStatus.PENDING
                elif restart_errored:
                    changed.append((self._start_over(trial_id), TrialStatus.PENDING))
                    continue
            elif not resume_unfinished:
                target = TrialStatus.TERMINATED
                run.ended_at = self._clock.time()
            elif status is TrialStatus.RUNNING:
                target = TrialStatus.PENDING
            if target is status:
                # one that reported before it ran goes on from its checkpoint like the others
                if target is TrialStatus.PENDING and (cut := self.start_again(trial_id, run)):
                    operations += cut
                    self._put_run(trial_id, run)
                continue
            if target is TrialStatus.PENDING:
                operations += self.start_again(trial_id, run)
            run.status = CODES[target]
            self._put_run(trial_id, run)
            changed.append((trial_id, target))
        return changed, operations

    def _start_over(self, trial_id: str) -> str:
        name, _, config, metadata = self.given(trial_id)
        new_id = self.new_id()
        prefix = name.removesuffix(f"_{trial_id}")  # the Tuner's names end in the id: the new one does, too
        self.add(config, new_id, None if prefix == name else f"{prefix}_{new_id}", metadata or None)
        self._records.put(f"replaced/{trial_id}", new_id)
        return new_id
