"""Owns the words for many uploads that failed: a reason is said once, with how many it stopped. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from typing import Final

__all__ = ["reasons_told"]

_REASONS: Final = 5
_NAMES: Final = 3
_DETAIL: Final = re.compile(r"'[^']*'|\"[^\"]*\"|\S*checkpoint_\S*|\d+")
"""What differs between errors of one kind: the key or path of a file, and numbers."""


def reasons_told(failed: Iterable[tuple[str, int, str]]) -> str:
    """Why checkpoints are not in the bucket, in a few clauses however many they are.

    Args:
        failed: Of each the trial, the step, and the reason in words.
    """
    kinds: dict[str, list[tuple[str, int, str]]] = {}
    kind_of: dict[str, str] = {}  # most are the same, letter for letter
    for each in failed:
        if (kind := kind_of.get(each[2])) is None:
            kind = kind_of[each[2]] = _DETAIL.sub("#", each[2])
        kinds.setdefault(kind, []).append(each)
    told = [_told(each) for each in islice(kinds.values(), _REASONS)]
    if more := sum(map(len, islice(kinds.values(), _REASONS, None))):
        told.append(f"and {more} more for other reasons")
    return "; ".join(told)


def _told(alike: list[tuple[str, int, str]]) -> str:
    """What one reason stopped."""
    trial_id, step, reason = alike[0]
    if len(alike) == 1:
        return f"checkpoint {step} of trial {trial_id}: {reason}"
    names = [f"{step} of trial {trial_id}" for trial_id, step, _ in alike[:_NAMES]]
    if more := len(alike) - len(names):
        names.append(f"{more} more")
    which = "" if all(each[2] == reason for each in alike) else " the first:"
    return f"{len(alike)} checkpoints ({', '.join(names)}):{which} {reason}"
