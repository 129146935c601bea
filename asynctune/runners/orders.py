"""Owns what a worker is told in the first place: what it runs, and which trial. As bytes that may go over any wire.

How they get there is `process`' or `remote`'s; what becomes of them is `worker`'s.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

from asynctune.errors import ConfigError
from asynctune.protocols import CheckpointPlace, TrialTask
from asynctune.runners.frames import MAX_FRAME_BYTES, frame

__all__ = ["hello_for", "packed_place", "packed_task"]

_MAX_BEAT_S: Final = 1.0


async def hello_for(trainable: Any, options: Mapping[str, Any], *, hung_after_s: float) -> bytes:
    """The first message to a worker, as a frame.

    Args:
        trainable: What it runs.
        options: As for `TrialRunner.start`.
        hung_after_s: How long it may give no sign of life.

    Raises:
        ConfigError: The trainable cannot be packed: it holds something that belongs to this process, or is too large.
    """
    if not sys.executable:
        raise ConfigError("there is no Python interpreter to run workers with: sys.executable is empty")
    hello = {
        "kind": "hello",
        "path": await asyncio.to_thread(_import_path),
        "argv": [str(each) for each in sys.argv],  # modules that read it when they are imported find the same
        "beat_s": min(_MAX_BEAT_S, hung_after_s / 4),
        "log_to_file": bool(options.get("log_to_file", False)),
        "checkpoint_frequency": int(options.get("checkpoint_frequency", 0)),
        "checkpoint_at_end": bool(options.get("checkpoint_at_end", False)),
    }
    return await asyncio.to_thread(_hello, hello, trainable)


def packed_task(task: TrialTask) -> dict[str, Any]:
    """A start of a trial as a msgpack value."""
    checkpoint = task.checkpoint if task.place is None else task.place.checkpoint
    about: dict[str, Any] = {}
    if checkpoint is not None:
        about = {
            "trial_id": checkpoint.trial_id,
            "step": checkpoint.step,
            "metrics": dict(checkpoint.metrics),
            "files": dict(checkpoint.files),
            "size_bytes": checkpoint.size_bytes,
            "committed_at": checkpoint.committed_at,
            "mirrored": checkpoint.mirrored,
        }
    return {
        "trial_id": task.trial_id,
        "trial_name": task.trial_name,
        "trial_dir": task.trial_dir,
        "config": dict(task.config),
        "iteration": task.iteration,
        "checkpoint": None if checkpoint is None or checkpoint.path is None else str(checkpoint.path),
        "about_checkpoint": about,
    }


def packed_place(place: CheckpointPlace | None) -> dict[str, Any] | None:
    """Where a node finds a committed checkpoint, as a msgpack value; what it is, the task says."""
    if place is None:
        return None
    names = ("directory", "manifest_sha256", "path", "is_in_copy")
    return {name: getattr(place, name) for name in names}


def _import_path() -> list[str]:
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was removed: what is relative to it leads nowhere, there as here
        return list(sys.path)
    return [os.path.normpath(os.path.join(here, each)) for each in sys.path]


def _hello(hello: dict[str, Any], trainable: Any) -> bytes:
    import cloudpickle  # noqa: PLC0415 - only what goes to workers is packed by it

    name = getattr(trainable, "__qualname__", trainable)
    try:
        packed: bytes = cloudpickle.dumps(trainable)
    except Exception as error:
        raise ConfigError(
            f"the trainable {name!r} cannot be sent to a worker process ({error}); open files, locks and connections "
            "must be made inside of it"
        ) from error
    if len(packed) > MAX_FRAME_BYTES - (1 << 20):
        raise ConfigError(
            f"the trainable {name!r} is {len(packed):,} bytes pickled, with what it refers to, and "
            f"{MAX_FRAME_BYTES:,} fit; load large data inside of it"
        )
    return frame({**hello, "trainable": packed}, "the trainable")
