"""asynctune: the asyncio library that makes a hyperparameter-tuning experiment survive.

The public door. It only names what there is; each name is imported from its room when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asynctune.checkpoints.staging import StagedCheckpoint, stage_for_adoption
    from asynctune.config import CheckpointConfig, SyncConfig
    from asynctune.errors import (
        AsynctuneError,
        AuthenticationError,
        CheckpointExistsError,
        CheckpointNotFoundError,
        ConditionFailedError,
        ConfigError,
        CorruptStateError,
        ExperimentExistsError,
        ExperimentLockedError,
        ExperimentNotFoundError,
        FencedError,
        MissingExtraError,
        NotFoundError,
        StorageError,
        StoreClosedError,
        TransitionError,
        TrialNotFoundError,
        UnsupportedFormatError,
        UploadError,
    )
    from asynctune.protocols import Searcher, TrialScheduler
    from asynctune.store.attached import CaptureError
    from asynctune.store.events import StoreEvent
    from asynctune.store.opening import Opening
    from asynctune.store.stats import StoreStats
    from asynctune.store.store import ExperimentStore
    from asynctune.trial import Checkpoint, Trial, TrialStatus

__version__ = "0.1.0"

_ROOMS = {
    "checkpoints.staging": ("StagedCheckpoint", "stage_for_adoption"),
    "config": ("CheckpointConfig", "SyncConfig"),
    "errors": (
        "AsynctuneError",
        "AuthenticationError",
        "CheckpointExistsError",
        "CheckpointNotFoundError",
        "ConditionFailedError",
        "ConfigError",
        "CorruptStateError",
        "ExperimentExistsError",
        "ExperimentLockedError",
        "ExperimentNotFoundError",
        "FencedError",
        "MissingExtraError",
        "NotFoundError",
        "StorageError",
        "StoreClosedError",
        "TransitionError",
        "TrialNotFoundError",
        "UnsupportedFormatError",
        "UploadError",
    ),
    "protocols": ("Searcher", "TrialScheduler"),
    "store.attached": ("CaptureError",),
    "store.events": ("StoreEvent",),
    "store.opening": ("Opening",),
    "store.stats": ("StoreStats",),
    "store.store": ("ExperimentStore",),
    "trial": ("Checkpoint", "Trial", "TrialStatus"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "AsynctuneError",
    "AuthenticationError",
    "CaptureError",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointExistsError",
    "CheckpointNotFoundError",
    "ConditionFailedError",
    "ConfigError",
    "CorruptStateError",
    "ExperimentExistsError",
    "ExperimentLockedError",
    "ExperimentNotFoundError",
    "ExperimentStore",
    "FencedError",
    "MissingExtraError",
    "NotFoundError",
    "Opening",
    "Searcher",
    "StagedCheckpoint",
    "StorageError",
    "StoreClosedError",
    "StoreEvent",
    "StoreStats",
    "SyncConfig",
    "TransitionError",
    "Trial",
    "TrialNotFoundError",
    "TrialScheduler",
    "TrialStatus",
    "UnsupportedFormatError",
    "UploadError",
    "stage_for_adoption",
]


def __getattr__(name: str) -> Any:
    room = _ROOM_OF.get(name)
    if room is None:
        msg = f"module 'asynctune' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"asynctune.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
