"""Owns what a bucket holds that nothing needs: which of the objects of an experiment's copy those are. Pure.

Told from names, ages and records. An object is listed before the records are read, and has to be an hour old: what is
in a bucket belongs to a record, or is about to. Deletes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from asynctune.checkpoints.records import is_checkpoint_name
from asynctune.inspect.recorded import checkpoint_records
from asynctune.inspect.report import Head, Problem
from asynctune.inspect.text import path_text
from asynctune.results.freezing import is_result_file
from asynctune.storage.values import ObjectInfo

__all__ = [
    "OLDER_THAN_S",
    "GarbageReport",
    "Known",
    "Leak",
    "LeakKind",
    "Piles",
    "is_needed",
    "largest_first",
    "leaks_among",
]

OLDER_THAN_S: Final = 3600.0
"""How old something has to be before it counts as left behind."""

_STATE: Final = ".asynctune/"
_OF_THE_MIRROR: Final = tuple(
    f"{_STATE}{name}" for name in ("CURRENT", "current-", "probe-", "seg-", "snap-")
)

LeakKind = Literal["state", "checkpoint", "results", "upload"]
"""What was left behind: objects of the mirror, a checkpoint, a trial's result files, an unfinished upload in parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """What a driver that crashed or closed left in a bucket, and nothing refers to.

    Attributes:
        kind: What it is.
        name: Key of the one object, or what the keys of all begin with, which ends in `/`; printable.
        objects: How many; of an unfinished upload, its parts.
        size_bytes: Of them together; `None` where the storage does not tell.
        modified_at: When the newest was stored, or the upload begun.
        reason: Why nothing needs it.
    """

    kind: LeakKind
    name: str
    objects: int
    size_bytes: int | None
    modified_at: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GarbageReport:
    """Answer of `gc`.

    Attributes:
        head: The experiment.
        older_than_s: How old something has to be to be listed, seconds.
        leaks: What was found, the largest first, as many as were asked for.
        leaks_total: How many there are.
        objects: Of all of them together.
        size_bytes: What is known of the sizes of all of them.
        uploads_listed: Whether the storage tells of unfinished uploads.
        uploads_under_way: How many of those a driver goes on with.
        other_objects: How many objects are not of a kind that asynctune makes.
        other_bytes: Their sizes together.
        problems: What was found besides.
    """

    head: Head
    older_than_s: float
    leaks: tuple[Leak, ...]
    leaks_total: int
    objects: int
    size_bytes: int
    uploads_listed: bool = True
    uploads_under_way: int = 0
    other_objects: int = 0
    other_bytes: int = 0
    problems: tuple[Problem, ...] = ()


# -- what is there -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Pile:
    objects: int = 0
    size_bytes: int = 0
    modified_at: float = 0.0

    def add(self, info: ObjectInfo) -> None:
        self.objects += 1
        self.size_bytes += info.size_bytes
        self.modified_at = max(self.modified_at, info.modified_at)

    def leak(self, kind: LeakKind, name: str, reason: str) -> Leak:
        return Leak(
            kind=kind,
            name=path_text(name),
            objects=self.objects,
            size_bytes=self.size_bytes,
            modified_at=self.modified_at,
            reason=reason,
        )


class Piles:
    """A listing of everything, summed up by what it belongs to; the state's own objects are left out.

    Attributes:
        checkpoints: By directory, `<trial_name>/checkpoint_000005`.
        results: Result files, by the trial's name.
        other: What asynctune does not make.
    """

    def __init__(self) -> None:
        self.checkpoints: dict[str, _Pile] = {}
        self.results: dict[str, _Pile] = {}
        self.other = _Pile()

    def add(self, info: ObjectInfo) -> None:
        """Take the next object."""
        if info.key.startswith(_OF_THE_MIRROR):
            return
        directory, of_checkpoint = _place(info.key)
        if directory is None:
            self.other.add(info)
            return
        (self.checkpoints if of_checkpoint else self.results).setdefault(directory, _Pile()).add(info)


def _place(key: str) -> tuple[str | None, bool]:
    """The checkpoint's directory, or the trial's name, that a key belongs to, and which of both; `None`: neither."""
    trial_name, _, rest = key.partition("/")
    name, slash, _ = rest.partition("/")
    if not trial_name or trial_name.startswith("."):
        return None, False
    if slash and is_checkpoint_name(name):
        return f"{trial_name}/{name}", True
    return (trial_name, False) if not slash and is_result_file(name) else (None, False)


# -- what is needed ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Known:
    """What the records say.

    Attributes:
        trials: Names of all trials, with those that were started over.
        checkpoints: Directories of all checkpoints, with those that are being deleted.
        unfinished: Those of them that are not wholly in the bucket.
        problems: Records that make no sense. What they name is not known, so no checkpoint is left behind for sure.
    """

    trials: set[str] = field(default_factory=set)
    checkpoints: set[str] = field(default_factory=set)
    unfinished: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def of(cls, records: Mapping[str, bytes]) -> Known:
        """Read it out of the state."""
        known = cls()
        for key in records:
            kind, _, name = key.partition("/")
            if kind in {"trial", "name"}:
                known.trials.add(name)
        for record in checkpoint_records(records):
            if isinstance(record, Problem):
                known.problems.append(record)
                continue
            known.checkpoints.add(record.directory)
            if not record.mirrored:
                known.unfinished.add(record.directory)
        return known


def leaks_among(piles: Piles, known: Known, before: float) -> Iterator[Leak]:
    """The checkpoints and result files that no record knows, and that are older than `before`."""
    if not known.problems:
        for directory, pile in piles.checkpoints.items():
            if directory not in known.checkpoints and pile.modified_at < before:
                yield pile.leak("checkpoint", f"{directory}/", "no record names it")
    for name, pile in piles.results.items():
        if name not in known.trials and pile.modified_at < before:
            yield pile.leak("results", f"{name}/", "no trial has this name")


def is_needed(key: str, known: Known, *, driven: bool) -> bool:
    """Whether somebody goes on with an unfinished upload of this object, or aborts it: a driver, or the next opening.

    Args:
        key: The object it would be.
        known: What the records say.
        driven: Whether a driver may be at work.
    """
    directory, of_checkpoint = _place(key)
    if of_checkpoint:
        return directory in known.unfinished or bool(known.problems)
    return driven and directory in known.trials


def largest_first(leaks: Iterable[Leak]) -> tuple[Leak, ...]:
    """In the order in which they matter."""
    return tuple(sorted(leaks, key=lambda leak: (-(leak.size_bytes or 0), leak.name)))
