"""Owns the list of experiments, and what each is given and gives back."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

__all__ = ["EXPERIMENTS", "Experiment", "Lab", "Row", "experiment"]

T = TypeVar("T")

_TELL_EACH_S: Final = 10.0


@dataclass(frozen=True)
class Row:
    """One line of the closing table: what was done how often, and how it came out."""

    what: str
    count: int
    outcome: str

    @classmethod
    def tally(cls, what: str, outcomes: Counter[str]) -> Row:
        """How often each outcome came."""
        told = ", ".join(f"{count:,} {name}" for name, count in outcomes.most_common())
        return cls(what, outcomes.total(), told or "nothing was tried")


@dataclass
class Lab:
    """What an experiment is given.

    A failed expectation is an AssertionError; the lab reports it and goes on with the next experiment.
    """

    directory: Path
    seed: int
    full: bool = False
    quiet: bool = True
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def few(self, population: Sequence[T], count: int) -> list[T]:
        """All of `population` in the full lab, else `count` of them, in order."""
        if self.full or len(population) <= count:
            return list(population)
        return [population[i] for i in sorted(self.rng.sample(range(len(population)), count))]

    def times(self, full: int, few: int) -> int:
        """`full` in the full lab, else `few`."""
        return full if self.full else few

    def progress(self, cases: Iterable[T], what: str, total: int) -> Iterator[T]:
        """Pass `cases` through, and tell now and then how far it is."""
        told = time.monotonic()
        for done, case in enumerate(cases):
            if not self.quiet and time.monotonic() - told > _TELL_EACH_S:
                told = time.monotonic()
                print(f"  {what}: {done:,} of {total:,}", flush=True)
            yield case


@dataclass(frozen=True)
class Experiment:
    """One entry of the list."""

    name: str
    about: str
    run: Callable[[Lab], Iterable[Row]]


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(
    name: str, about: str
) -> Callable[[Callable[[Lab], Iterable[Row]]], Callable[[Lab], Iterable[Row]]]:
    """Register a function that runs one experiment and returns rows for the table."""

    def register(run: Callable[[Lab], Iterable[Row]]) -> Callable[[Lab], Iterable[Row]]:
        EXPERIMENTS[name] = Experiment(name, about, run)
        return run

    return register
