"""For people who test code against asynctune, or write a searcher, scheduler, runner, storage or syncer of their own.

Time moved by hand, a disk and a storage that fail when told to, and suites that say whether an implementation keeps
its promises (`SearcherTests`, `TrialSchedulerTests`, `TrialRunnerTests`, `ObjectStorageTests`, `SyncerTests`; these
need pytest, the others do not). Nothing in asynctune imports this package.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

from asynctune.testing.clock import ManualClock
from asynctune.testing.directory_syncer import DirectorySyncer
from asynctune.testing.faulty_storage import FaultyStorage
from asynctune.testing.files import CHANGES, LOOKS, Fault, FaultyFiles, Operation
from asynctune.testing.storage_faults import StorageCall, StorageFault

if TYPE_CHECKING:
    from asynctune.testing.runners import ReportLog, TrialRunnerTests
    from asynctune.testing.schedulers import TrialSchedulerTests
    from asynctune.testing.searchers import SearcherTests
    from asynctune.testing.storage import ObjectStorageTests
    from asynctune.testing.syncers import SyncerTests

__all__ = [
    "CHANGES",
    "LOOKS",
    "DirectorySyncer",
    "Fault",
    "FaultyFiles",
    "FaultyStorage",
    "ManualClock",
    "ObjectStorageTests",
    "Operation",
    "ReportLog",
    "SearcherTests",
    "StorageCall",
    "StorageFault",
    "SyncerTests",
    "TrialRunnerTests",
    "TrialSchedulerTests",
]

_SUITES: Final = {
    "ObjectStorageTests": "asynctune.testing.storage",
    "ReportLog": "asynctune.testing.runners",
    "SearcherTests": "asynctune.testing.searchers",
    "SyncerTests": "asynctune.testing.syncers",
    "TrialRunnerTests": "asynctune.testing.runners",
    "TrialSchedulerTests": "asynctune.testing.schedulers",
}

_PARTS: Final = {
    "asynctune.testing.storage": ("asynctune.testing.storage_scenes", "asynctune.testing.storage_uploads"),
}


def __getattr__(name: str) -> Any:
    if name not in _SUITES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    import pytest  # noqa: PLC0415 - only the suites need it

    for module in (_SUITES[name], *_PARTS.get(_SUITES[name], ())):
        if module not in sys.modules:
            pytest.register_assert_rewrite(module)  # a failure shows what was compared
    return getattr(importlib.import_module(_SUITES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
