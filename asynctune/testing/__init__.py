"""For people who test code against asynctune, or write a searcher, a scheduler or a runner of their own.

Time moved by hand, a disk that fails when told to, and suites that say whether an implementation keeps its promises
(`SearcherTests`, `TrialSchedulerTests`, `TrialRunnerTests`; these need pytest, the others do not). Nothing in asynctune
imports this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from asynctune.testing.clock import ManualClock
from asynctune.testing.files import CHANGES, LOOKS, Fault, FaultyFiles, Operation

if TYPE_CHECKING:
    from asynctune.testing.runners import ReportLog, TrialRunnerTests
    from asynctune.testing.schedulers import TrialSchedulerTests
    from asynctune.testing.searchers import SearcherTests

__all__ = [
    "CHANGES",
    "LOOKS",
    "Fault",
    "FaultyFiles",
    "ManualClock",
    "Operation",
    "ReportLog",
    "SearcherTests",
    "TrialRunnerTests",
    "TrialSchedulerTests",
]

_SUITES: Final = {
    "ReportLog": "asynctune.testing.runners",
    "SearcherTests": "asynctune.testing.searchers",
    "TrialRunnerTests": "asynctune.testing.runners",
    "TrialSchedulerTests": "asynctune.testing.schedulers",
}


def __getattr__(name: str) -> Any:
    if name not in _SUITES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    import pytest  # noqa: PLC0415 - only the suites need it

    if _SUITES[name] not in _rewritten:
        _rewritten.add(_SUITES[name])
        pytest.register_assert_rewrite(_SUITES[name])  # a failure shows what was compared
    return getattr(importlib.import_module(_SUITES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_rewritten: Final[set[str]] = set()
