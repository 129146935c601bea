"""For people who test code against asynctune: time moved by hand, and a disk that fails when told to.

Nothing in asynctune imports this package.
"""

from __future__ import annotations

from asynctune.testing.clock import ManualClock
from asynctune.testing.files import CHANGES, LOOKS, Fault, FaultyFiles, Operation

__all__ = ["CHANGES", "LOOKS", "Fault", "FaultyFiles", "ManualClock", "Operation"]
