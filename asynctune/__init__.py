"""asynctune: the asyncio library that makes a hyperparameter-tuning experiment survive.

The public door. It only names what there is; each name is imported from its room when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asynctune.checkpoints.arriving import ArrivalPlace, ArrivingCheckpoint, InBucket
    from asynctune.checkpoints.command_syncer import CommandSyncer
    from asynctune.checkpoints.staging import StagedCheckpoint, stage_for_adoption
    from asynctune.config import CheckpointConfig, FailureConfig, RunConfig, SyncConfig, TuneConfig
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
        TrialFailedError,
        TrialNotFoundError,
        UnsupportedFormatError,
        UploadError,
        UserCodeError,
    )
    from asynctune.protocols import (
        Callback,
        CheckpointPlace,
        Searcher,
        Syncer,
        TrialReport,
        TrialRunner,
        TrialScheduler,
        TrialTask,
    )
    from asynctune.runners.agent import run_agent
    from asynctune.runners.agents import Placement
    from asynctune.runners.inline import InlineRunner
    from asynctune.runners.process import ProcessRunner
    from asynctune.runners.ray import RayRunner
    from asynctune.runners.remote import Engine, RemoteRunner
    from asynctune.session import TrialInterrupted
    from asynctune.store.attached import CaptureError
    from asynctune.store.events import StoreEvent
    from asynctune.store.opening import Opening
    from asynctune.store.stats import StoreStats
    from asynctune.store.store import ExperimentStore
    from asynctune.trainable import Trainable
    from asynctune.trial import Checkpoint, Trial, TrialStatus
    from asynctune.tuning.basic import BasicSearcher
    from asynctune.tuning.optuna_search import OptunaScheduler, OptunaSearcher
    from asynctune.tuning.result_grid import Result, ResultGrid
    from asynctune.tuning.space import (
        choice,
        grid_search,
        lograndint,
        loguniform,
        qlograndint,
        qloguniform,
        qrandint,
        qrandn,
        quniform,
        randint,
        randn,
        sample_from,
        uniform,
    )
    from asynctune.tuning.tuner import Tuner

__version__ = "0.1.0"

_ROOMS = {
    "checkpoints.arriving": ("ArrivalPlace", "ArrivingCheckpoint", "InBucket"),
    "checkpoints.command_syncer": ("CommandSyncer",),
    "checkpoints.staging": ("StagedCheckpoint", "stage_for_adoption"),
    "config": ("CheckpointConfig", "FailureConfig", "RunConfig", "SyncConfig", "TuneConfig"),
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
        "TrialFailedError",
        "TrialNotFoundError",
        "UnsupportedFormatError",
        "UploadError",
        "UserCodeError",
    ),
    "protocols": (
        "Callback",
        "CheckpointPlace",
        "Searcher",
        "Syncer",
        "TrialReport",
        "TrialRunner",
        "TrialScheduler",
        "TrialTask",
    ),
    "runners.agent": ("run_agent",),
    "runners.agents": ("Placement",),
    "runners.inline": ("InlineRunner",),
    "runners.process": ("ProcessRunner",),
    "runners.ray": ("RayRunner",),
    "runners.remote": ("Engine", "RemoteRunner"),
    "session": ("TrialInterrupted",),
    "store.attached": ("CaptureError",),
    "store.events": ("StoreEvent",),
    "store.opening": ("Opening",),
    "store.stats": ("StoreStats",),
    "store.store": ("ExperimentStore",),
    "trainable": ("Trainable",),
    "trial": ("Checkpoint", "Trial", "TrialStatus"),
    "tuning.basic": ("BasicSearcher",),
    "tuning.optuna_search": ("OptunaScheduler", "OptunaSearcher"),
    "tuning.result_grid": ("Result", "ResultGrid"),
    "tuning.space": (
        "choice",
        "grid_search",
        "lograndint",
        "loguniform",
        "qlograndint",
        "qloguniform",
        "qrandint",
        "qrandn",
        "quniform",
        "randint",
        "randn",
        "sample_from",
        "uniform",
    ),
    "tuning.tuner": ("Tuner",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "ArrivalPlace",
    "ArrivingCheckpoint",
    "AsynctuneError",
    "AuthenticationError",
    "BasicSearcher",
    "Callback",
    "CaptureError",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointExistsError",
    "CheckpointNotFoundError",
    "CheckpointPlace",
    "CommandSyncer",
    "ConditionFailedError",
    "ConfigError",
    "CorruptStateError",
    "Engine",
    "ExperimentExistsError",
    "ExperimentLockedError",
    "ExperimentNotFoundError",
    "ExperimentStore",
    "FailureConfig",
    "FencedError",
    "InBucket",
    "InlineRunner",
    "MissingExtraError",
    "NotFoundError",
    "Opening",
    "OptunaScheduler",
    "OptunaSearcher",
    "Placement",
    "ProcessRunner",
    "RayRunner",
    "RemoteRunner",
    "Result",
    "ResultGrid",
    "RunConfig",
    "Searcher",
    "StagedCheckpoint",
    "StorageError",
    "StoreClosedError",
    "StoreEvent",
    "StoreStats",
    "SyncConfig",
    "Syncer",
    "Trainable",
    "TransitionError",
    "Trial",
    "TrialFailedError",
    "TrialInterrupted",
    "TrialNotFoundError",
    "TrialReport",
    "TrialRunner",
    "TrialScheduler",
    "TrialStatus",
    "TrialTask",
    "TuneConfig",
    "Tuner",
    "UnsupportedFormatError",
    "UploadError",
    "UserCodeError",
    "choice",
    "grid_search",
    "lograndint",
    "loguniform",
    "qlograndint",
    "qloguniform",
    "qrandint",
    "qrandn",
    "quniform",
    "randint",
    "randn",
    "run_agent",
    "sample_from",
    "session",
    "stage_for_adoption",
    "uniform",
]


def __getattr__(name: str) -> Any:
    if name == "session":
        return importlib.import_module("asynctune.session")
    room = _ROOM_OF.get(name)
    if room is None:
        msg = f"module 'asynctune' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"asynctune.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
