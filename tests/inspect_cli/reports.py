"""One report of each kind, with everything in it that can be: for golden files and for looking at tables."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

from asynctune.inspect import tables
from asynctune.inspect.jsonout import Report
from asynctune.inspect.leaks import OLDER_THAN_S, GarbageReport, Leak
from asynctune.inspect.report import (
    BestReport,
    CheckpointsReport,
    ExperimentLine,
    ExperimentsReport,
    Problem,
    SavedState,
    TrialReport,
    TrialsReport,
    VerifyReport,
    Writer,
)
from asynctune.inspect.screen import View
from asynctune.trial import TrialStatus
from tests.inspect_cli.examples import NOW, START, a_checkpoint, a_head, a_row, a_tuning, an_entry

HEAD: Final = a_head(
    trials_total=6,
    tear="wal-2-31: a commit cut short by a crash (17 bytes, acknowledged to nobody) was left behind",
    metadata={
        "note": "first try",
        "seeds": (1, 2),
        "blob": b"\x00\xff",
        "when": datetime(2026, 1, 2, tzinfo=UTC),
        "asynctune.progress": {"finished": False},
    },
    epoch=4,
    seq=120,
    tuning=a_tuning(),
    states={
        "searcher": SavedState(118, events_behind=3),
        "scheduler": SavedState(119),
        "callbacks": SavedState(None, error="the saved state of the callbacks cannot be read"),
    },
    objective=("loss", "min"),
    started_over={"3f9ac_00001": "3f9ac_00002", "3f9ac_00002": "3f9ac_00005"},
    in_place_of={"3f9ac_00002": "3f9ac_00001", "3f9ac_00005": "3f9ac_00002"},
    copy_uri="s3://bucket/tunes/digits",
)
ROWS: Final = (
    a_row(0, "present", checkpoints=(a_checkpoint(4), a_checkpoint(8)), metadata={"host": "gpu1"}),
    a_row(1, status=TrialStatus.RUNNING, ended_at=None, last_result={"loss": math.nan, "acc": math.inf}),
    a_row(
        2,
        "missing",
        status=TrialStatus.ERROR,
        error='Traceback (most recent call last):\n  File "t.py", line 3\nRuntimeError: out of memory\n',
        num_failures=2,
        checkpoints=(a_checkpoint(2, 2, path=None),),
        head=HEAD,
    ),
    a_row(
        3,
        status=TrialStatus.PENDING,
        started_at=None,
        ended_at=None,
        last_result={},
        num_results=0,
        config={"lr": 0.001, "units": 2**70, "opt": {"name": "adam", "betas": (0.9, 0.999)}, 3: {"b", "a"}},
    ),
)
COPY: Final = a_head(
    location="s3://bucket/tunes/digits",
    copy_uri="s3://bucket/tunes/digits",
    from_copy=True,
    writer=Writer("unknown", pid=4242, hostname="node7", since=START),
    trials_total=6,
    epoch=4,
    seq=120,
)
MISSING: Final = Problem(
    "missing_checkpoint", "the files of checkpoint 2 of trial 3f9ac_00002 are not there", "3f9ac_00002", 2
)
COUNTS: Final = {
    TrialStatus.PENDING: 1,
    TrialStatus.RUNNING: 1,
    TrialStatus.TERMINATED: 3,
    TrialStatus.ERROR: 1,
}
TRIALS: Final = TrialsReport(
    head=HEAD,
    counts=COUNTS,
    matching=6,
    left_out={TrialStatus.TERMINATED: 2},
    rows=ROWS,
    best=ROWS[0],
    metric="loss",
    mode="min",
    failures=4,
    failed_trials=2,
    retries=3,
    problems=(MISSING,),
)

REPORTS: Final[dict[str, tuple[Report, View]]] = {
    "summary": (TRIALS, tables.summary_view),
    "trials": (TRIALS, tables.trials_view),
    "trial": (
        TrialReport(
            head=HEAD,
            row=ROWS[2],
            directory="/data/digits/3f9ac_00002",
            checkpoints=(an_entry(2, "missing", number=2, path=None, mirrored=False),),
            problems=(MISSING,),
        ),
        tables.trial_view,
    ),
    "checkpoints": (
        CheckpointsReport(
            head=HEAD,
            trial_id=None,
            total=9,
            size_bytes=18_540,
            entries=(
                an_entry(4, uri="s3://bucket/tunes/digits/3f9ac_00000/checkpoint_000004", mirrored=True),
                an_entry(8, "deleted"),
                an_entry(
                    2,
                    "elsewhere",
                    "s3://bucket/tunes/digits/3f9ac_00002/checkpoint_000002",
                    number=2,
                    mirrored=True,
                ),
            ),
        ),
        tables.checkpoints_view,
    ),
    "checkpoints_of_a_copy": (
        CheckpointsReport(
            head=COPY,
            trial_id=None,
            total=3,
            size_bytes=6180,
            entries=(
                an_entry(
                    4,
                    "in_bucket",
                    "s3://bucket/tunes/digits/3f9ac_00000/checkpoint_000004",
                    path=None,
                    mirrored=True,
                ),
                an_entry(8, "pending", path=None),
            ),
        ),
        tables.checkpoints_view,
    ),
    "best": (
        BestReport(
            head=HEAD,
            metric="loss",
            mode="min",
            ranked=2,
            ranking=ROWS[:1] + ROWS[2:3],
            checkpoints=(an_entry(8),),
        ),
        tables.best_view,
    ),
    "verify": (
        VerifyReport(
            location="/data/digits",
            head=HEAD,
            frames=211,
            snapshots=2,
            state_bytes=70_123,
            checkpoints=3,
            files=12,
            checkpoint_bytes=4_194_304,
            problems=(MISSING, Problem("state", "wal-1-1 at byte 812: the header's checksum differs")),
        ),
        tables.verify_view,
    ),
    "gc": (
        GarbageReport(
            head=COPY,
            older_than_s=OLDER_THAN_S,
            leaks=(
                Leak(
                    kind="checkpoint",
                    name="3f9ac_00004/checkpoint_000008/",
                    objects=3,
                    size_bytes=2_097_152,
                    modified_at=NOW - 90_000,
                    reason="no record names it",
                ),
                Leak(
                    kind="upload",
                    name="3f9ac_00000/checkpoint_000004/weights.npz",
                    objects=2,
                    size_bytes=None,
                    modified_at=NOW - 7300,
                    reason="nobody goes on with it",
                ),
                Leak(
                    kind="results",
                    name="3f9ac_00004/",
                    objects=3,
                    size_bytes=2300,
                    modified_at=NOW - 90_000,
                    reason="no trial has this name",
                ),
                Leak(
                    kind="state",
                    name=".asynctune/seg-3-0123456789ab-7",
                    objects=1,
                    size_bytes=812,
                    modified_at=NOW - 3700,
                    reason="CURRENT does not name it",
                ),
            ),
            leaks_total=6,
            objects=11,
            size_bytes=2_100_300,
            uploads_under_way=1,
            other_objects=2,
            other_bytes=99,
        ),
        tables.gc_view,
    ),
    "experiments": (
        ExperimentsReport(
            location="/data",
            as_of=NOW,
            lines=(
                ExperimentLine(
                    name="digits",
                    location="/data/digits",
                    head=HEAD,
                    counts=COUNTS,
                    best=ROWS[0],
                    metric="loss",
                    mode="min",
                ),
                ExperimentLine(
                    name="done",
                    location="/data/done",
                    head=a_head(
                        name="done",
                        writer=Writer("closed", 7, "node7", START, START + 60),
                        last_change_at=None,
                        trials_total=0,
                        created_at=START,
                    ),
                ),
                ExperimentLine(
                    name="broken", location="/data/broken", error="the experiment state is damaged"
                ),
            ),
            metric="loss",
            problems=(Problem("unreadable", "/data/broken: the experiment state is damaged"),),
        ),
        tables.experiments_view,
    ),
}
