"""What the tests of the result files share: rows that are easy to tell apart, and ways to read files back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from asynctune.files import LocalFiles
from asynctune.results.event_files import EventFiles
from asynctune.results.placing import Placer
from asynctune.results.rows import OpeningInfo, ResultRow, TrialInfo
from asynctune.results.trial_files import TrialFiles

OPENING = OpeningInfo(hostname="oak", node_ip="192.0.2.7", pid=4711)
START = 1_767_225_600.0  # 2026-01-01 00:00:00 UTC


def trial(trial_id: str = "t1", config: Mapping[str, Any] | None = None) -> TrialInfo:
    return TrialInfo(trial_id=trial_id, trial_name=f"name_{trial_id}", config=config or {"lr": 0.1})


def row(
    ordinal: int, metrics: Mapping[str, Any] | None = None, trial_id: str = "t1", at: float | None = None
) -> ResultRow:
    """A row; `at` is the moment it was reported, which tells rewound rows from those that replace them."""
    moment = float(ordinal) if at is None else at
    return ResultRow(
        trial_id=trial_id,
        ordinal=ordinal,
        iteration=ordinal,
        timestamp=START + moment,
        time_this_iter_s=1.0,
        time_total_s=moment,
        metrics=metrics if metrics is not None else {"loss": 1 / ordinal},
    )


def trial_files(
    root: Path, files: LocalFiles | None = None, *, tensorboard: bool = False
) -> tuple[TrialFiles, Placer]:
    placer = Placer(str(root), files or LocalFiles())
    return TrialFiles(str(root), placer, EventFiles(placer) if tensorboard else None), placer


def lines(path: Path) -> list[Any]:
    """The rows of a JSON lines file; it has to end with a newline."""
    text = path.read_text(encoding="ascii")
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def moments(path: Path) -> list[float]:
    """Which rows a result.json has, by the moment they were reported."""
    return [line["time_total_s"] for line in lines(path)] if path.exists() else []


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root` with its content."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def events_of(data: bytes) -> list[tuple[int, dict[str, float]]]:
    """Step and scalars of each row in an event file, START events applied as TensorBoard does.

    Reads the records with nothing of asynctune.
    """

    def masked(part: bytes) -> int:
        crc = crc32c(part)
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    found: list[tuple[int, dict[str, float]]] = []
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 8], "little")
        assert int.from_bytes(data[position + 8 : position + 12], "little") == masked(
            data[position : position + 8]
        )
        message = data[position + 12 : position + 12 + length]
        assert int.from_bytes(data[position + 12 + length : position + 16 + length], "little") == masked(
            message
        )
        event = Event.FromString(message)
        if position == 0:
            assert event.file_version == "brain.Event:2"
        if event.HasField("summary"):
            found.append((event.step, {each.tag: each.simple_value for each in event.summary.value}))
        elif event.session_log.status == SessionLog.START:
            found = [each for each in found if each[0] < event.step]
        position += 16 + length
    return found


def the_events(directory: Path) -> list[tuple[int, dict[str, float]]]:
    (path,) = directory.glob("events.out.tfevents.*")
    return events_of(path.read_bytes())


def project(files: TrialFiles, operations: Sequence[Any], info: TrialInfo | None = None) -> None:
    files.project(info or trial(), [(each, OPENING) for each in operations])
