"""Owns which files of a trial's directory are the trial's own, and travel from its node, and which are the store's.

Pure. The store writes the projections of results and the checkpoints of a trial into the same directory; nothing that
comes from a node may touch them.
"""

from __future__ import annotations

import re
from typing import Final

from asynctune.checkpoints.manifest import ManifestError, check_paths
from asynctune.errors import ConfigError

__all__ = ["LOG_FILES", "belongs_to_trial", "check_trial_path"]

LOG_FILES: Final = frozenset({"stdout", "stderr"})
"""What a trial prints: its runs append to them, on whichever node they are."""

_STORES: Final = re.compile(
    r"params\.json|result\.json|progress\.csv|result\.cut-\d+\.json|events\.out\.tfevents\..*\.asynctune|checkpoint_.*",
    re.IGNORECASE | re.DOTALL,
)


def belongs_to_trial(path: str) -> bool:
    """Whether the file, or all below the directory, at this path relative to a trial's directory is the trial's own.

    Not the trial's are names that begin with a dot, and at the top result files and `checkpoint_*`, with all below.
    """
    parts = path.split("/")
    return not any(part.startswith(".") for part in parts) and not _STORES.fullmatch(parts[0])


def check_trial_path(path: str) -> None:
    """Refuse a path under which nothing from a node may be written.

    Raises:
        ConfigError: It leads out of the directory, is no path at all, or belongs to the store.
    """
    try:
        check_paths([path])
    except ManifestError as error:
        raise ConfigError(f"a file of a trial cannot be taken from its node: {error}") from error
    if not belongs_to_trial(path):
        raise ConfigError(f"a file of a trial cannot be taken from its node: {path} belongs to the store")
