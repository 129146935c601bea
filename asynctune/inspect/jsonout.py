"""Owns the JSON of every command: a stated contract, whose fields docs/inspect.md lists. Pure.

`"format"` rises when a field changes its meaning or goes away; a new field may come at any time. The text is
ASCII, valid for every parser: a float that JSON has no number for is the string `"NaN"`, `"Infinity"` or
`"-Infinity"`; bytes are base64; tuples and sets are arrays; what is no string as a key becomes one.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

from asynctune.inspect.exits import Exit
from asynctune.inspect.leaks import GarbageReport, Leak
from asynctune.inspect.report import (
    BestReport,
    CheckpointEntry,
    CheckpointsReport,
    ExperimentLine,
    ExperimentsReport,
    Head,
    Problem,
    SavedState,
    TrialReport,
    TrialRow,
    TrialsReport,
    Tuning,
    VerifyReport,
)
from asynctune.inspect.text import path_text
from asynctune.trial import TrialStatus

__all__ = ["FORMAT", "Report", "error_text", "json_text", "json_value"]

FORMAT: Final = 1
_NOT_FINITE: Final = {math.inf: "Infinity", -math.inf: "-Infinity"}

Report: TypeAlias = (
    TrialsReport
    | TrialReport
    | CheckpointsReport
    | BestReport
    | VerifyReport
    | ExperimentsReport
    | GarbageReport
)


def json_text(kind: str, report: Report) -> Iterator[str]:
    """The document in pieces: one field a line, and of a list of objects one element a line.

    Args:
        kind: The command, or `experiments`; becomes the field `kind`.
        report: What it answered.
    """
    fields = {"format": FORMAT, "kind": kind} | _fields(report)
    return _lines(fields | {"problems": map(_problem, report.problems)})


def error_text(error: Exception, code: Exit) -> Iterator[str]:
    """The document of a command that an error ended."""
    detail = {"type": type(error).__name__, "message": _text(str(error) or type(error).__name__)}
    return _lines({"format": FORMAT, "kind": "error", "error": detail, "exit_code": int(code)})


def json_value(value: Any) -> Any:
    """Any value that state can hold, as JSON can say it; see the module."""
    match value:
        case None | bool() | int():
            plain: Any = value
        case str():
            plain = _text(value)
        case float():
            plain = value if math.isfinite(value) else _NOT_FINITE.get(value, "NaN")
        case bytes() | bytearray():
            plain = base64.b64encode(value).decode("ascii")
        case Mapping():
            plain = _object(value)
        case list() | tuple():
            plain = [json_value(item) for item in value]
        case set() | frozenset():
            plain = sorted((json_value(item) for item in value), key=_encode)
        case datetime():
            plain = value.isoformat()
        case _:
            plain = _text(str(value))
    return plain


def _object(value: Mapping[Any, Any]) -> Any:
    made = {key if isinstance(key, str) else _key(key): json_value(item) for key, item in value.items()}
    if len(made) == len(value):
        return {_text(key): item for key, item in made.items()}
    return [[json_value(key), json_value(item)] for key, item in value.items()]  # 1 and "1" are both keys


def _key(key: Any) -> str:
    plain = json_value(key)
    return plain if isinstance(plain, str) else _encode(plain)


def _text(text: str) -> str:
    """Without lone surrogates, which are valid JSON that many parsers refuse."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# -- documents ---------------------------------------------------------------------------------------------


def _fields(report: Report) -> dict[str, Any]:
    match report:
        case TrialsReport():
            return {
                "experiment": _head(report.head),
                "trials_by_status": _counts(report.counts),
                "trials_matching": report.matching,
                "failures": report.failures,
                "retries": report.retries,
                "metric": _name(report.metric),
                "mode": report.mode,
                "best": None if report.best is None else _trial(report.best),
                "trials": map(_trial, report.rows),
            }
        case TrialReport():
            return {
                "experiment": _head(report.head),
                "trial": _trial(report.row),
                "directory": report.directory,
                "checkpoints": map(_checkpoint, report.checkpoints),
            }
        case CheckpointsReport():
            return {
                "experiment": _head(report.head),
                "trial_id": report.trial_id,
                "checkpoints_total": report.total,
                "size_bytes": report.size_bytes,
                "checkpoints": map(_checkpoint, report.entries),
            }
        case BestReport():
            return {
                "experiment": _head(report.head),
                "metric": _name(report.metric),
                "mode": report.mode,
                "trials_ranked": report.ranked,
                "best": _trial(report.ranking[0]),
                "checkpoints": map(_checkpoint, report.checkpoints),
                "ranking": map(_trial, report.ranking),
            }
        case VerifyReport():
            return _verified(report)
        case ExperimentsReport():
            return {
                "location": report.location,
                "metric": _name(report.metric),
                "experiments": map(_experiment, report.lines),
            }
        case GarbageReport():
            return {
                "experiment": _head(report.head),
                "older_than_s": report.older_than_s,
                "leaks_total": report.leaks_total,
                "objects": report.objects,
                "size_bytes": report.size_bytes,
                "uploads_listed": report.uploads_listed,
                "uploads_under_way": report.uploads_under_way,
                "other_objects": report.other_objects,
                "other_bytes": report.other_bytes,
                "leaks": map(_leak, report.leaks),
            }


def _verified(report: VerifyReport) -> dict[str, Any]:
    return {
        "location": report.location,
        "experiment": None if report.head is None else _head(report.head),
        "intact": not report.problems,
        "frames": report.frames,
        "snapshots": report.snapshots,
        "state_bytes": report.state_bytes,
        "checkpoints": report.checkpoints,
        "files": report.files,
        "checkpoint_bytes": report.checkpoint_bytes,
        "notes": [_text(note) for note in report.notes],
    }


def _head(head: Head) -> dict[str, Any]:
    writer = head.writer
    return {
        "name": head.name,
        "location": head.location,
        "from_copy": head.from_copy,
        "copy_uri": head.copy_uri,
        "experiment_id": head.experiment_id,
        "created_at": json_value(head.created_at),
        "last_change_at": json_value(head.last_change_at),
        "as_of": json_value(head.as_of),
        "writer": {
            "state": writer.state,
            "pid": writer.pid,
            "hostname": json_value(writer.hostname),
            "since": json_value(writer.since),
            "closed_at": json_value(writer.closed_at),
        },
        "tear": head.tear,
        "damage": list(head.damage),
        "trials_total": head.trials_total,
        "trials_started_over": len(head.started_over),
        "metric": None if head.objective is None else _text(head.objective[0]),
        "mode": None if head.objective is None else head.objective[1],
        "epoch": head.epoch,
        "seq": head.seq,
        "saved_states": {name: _saved_state(state) for name, state in head.states.items()},
        "tuner": None if head.tuning is None else _tuning(head.tuning),
        "metadata": json_value(head.metadata),
    }


def _saved_state(state: SavedState) -> dict[str, Any]:
    return {"seq": state.seq, "events_behind": state.events_behind, "error": state.error}


def _tuning(tuning: Tuning) -> dict[str, Any]:
    return {
        "form": tuning.form,
        "trainable": tuning.trainable,
        "trainable_kind": tuning.kind,
        "runner": tuning.runner,
        "searcher": tuning.searcher,
        "search": tuning.search,
        "scheduler": tuning.scheduler,
        "callbacks": list(tuning.callbacks),
        "num_samples": tuning.num_samples,
        "grid_size": tuning.grid_size,
        "samples_planned": tuning.samples_planned,
        "samples_proposed": tuning.samples_proposed,
        "max_concurrent_trials": tuning.max_concurrent_trials,
        "stop": json_value(tuning.stop),
        "stop_function": tuning.stop_function,
        "max_failures": tuning.max_failures,
        "fail_fast": tuning.fail_fast,
        "restores": tuning.restores,
        "finished": tuning.finished,
    }


def _trial(row: TrialRow) -> dict[str, Any]:
    trial = row.trial
    latest = trial.checkpoints[-1] if trial.checkpoints else None
    return {
        "trial_id": _text(trial.trial_id),
        "trial_name": _text(trial.trial_name),
        "status": trial.status.value,
        "iteration": row.iteration,
        "num_results": trial.num_results,
        "config": json_value(trial.config),
        "metadata": json_value(trial.metadata),
        "last_result": json_value(trial.last_result),
        "error": json_value(trial.error),
        "num_failures": trial.num_failures,
        "created_at": json_value(trial.created_at),
        "started_at": json_value(trial.started_at),
        "ended_at": json_value(trial.ended_at),
        "duration_s": json_value(row.duration_s),
        "num_checkpoints": len(trial.checkpoints),
        "checkpoint_step": None if latest is None else latest.step,
        "checkpoint_presence": row.presence,
        "started_over_as": _name(row.started_over_as),
        "in_place_of": _name(row.in_place_of),
    }


def _checkpoint(entry: CheckpointEntry) -> dict[str, Any]:
    checkpoint = entry.checkpoint
    return {
        "trial_id": json_value(checkpoint.trial_id),
        "step": checkpoint.step,
        "path": None if checkpoint.path is None else path_text(checkpoint.path),
        "uri": entry.uri,
        "presence": entry.presence,
        "metrics": json_value(checkpoint.metrics),
        "files": json_value(checkpoint.files),
        "size_bytes": checkpoint.size_bytes,
        "committed_at": json_value(checkpoint.committed_at),
        "mirrored": checkpoint.mirrored,
    }


def _experiment(line: ExperimentLine) -> dict[str, Any]:
    return {
        "name": line.name,
        "location": line.location,
        "experiment": None if line.head is None else _head(line.head),
        "trials_by_status": _counts(line.counts) if line.head is not None else None,
        "metric": _name(line.metric),
        "mode": line.mode,
        "best": None if line.best is None else _trial(line.best),
        "begun": line.begun,
        "error": line.error,
    }


def _leak(leak: Leak) -> dict[str, Any]:
    return {
        "kind": leak.kind,
        "name": leak.name,
        "objects": leak.objects,
        "size_bytes": leak.size_bytes,
        "modified_at": json_value(leak.modified_at),
        "reason": leak.reason,
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "kind": problem.kind,
        "trial_id": json_value(problem.trial_id),
        "step": problem.step,
        "message": _text(problem.message),
    }


def _name(name: str | None) -> str | None:
    return None if name is None else _text(name)


def _counts(counts: Mapping[TrialStatus, int]) -> dict[str, int]:
    return {status.value: counts.get(status, 0) for status in TrialStatus}


# -- text --------------------------------------------------------------------------------------------------


def _lines(fields: Mapping[str, Any]) -> Iterator[str]:
    start = "{\n"
    for name, value in fields.items():
        yield f'{start}"{name}": '
        start = ",\n"
        yield from _elements(value) if isinstance(value, map) else [_encode(value)]
    yield "\n}\n"


def _elements(values: Iterable[Any]) -> Iterator[str]:
    start = "["
    for value in values:
        yield f"{start}\n{_encode(value)}"
        start = ","
    yield "[]" if start == "[" else "\n]"


def _encode(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=True)
