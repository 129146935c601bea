"""Owns what every benchmark shares: options, the machine's description, figures, reports and how they print.

Measures nothing itself but the event loop's lag. A script makes a `Report` (a table, and the targets that its figures
are held to) and hands its coroutine to `run`, which prints a table, or with `--json` one JSON document on standard
output.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from rich.console import Console
from rich.table import Table

__all__ = [
    "NOT_INSTALLED",
    "SECONDS",
    "Cell",
    "Column",
    "Options",
    "Report",
    "Target",
    "installed",
    "machine",
    "options",
    "percentile",
    "probed",
    "progress",
    "ratio",
    "run",
    "scratch",
    "spread",
]

Cell: TypeAlias = "float | int | str | None"

NOT_INSTALLED: Final = "not installed"
"""Stands in the cells of a peer that the `bench` extra would install."""

_FILE_WIDTH: Final = 180
_PROBE_S: Final = 0.001
_VERSIONS: Final = ("asynctune", "msgpack", "google-crc32c", "ray", "optuna")


# -- options -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asked for.

    Attributes:
        quick: A short run, to see that all works; its figures are rough.
        json: One JSON document instead of the table.
        trials: Numbers of known trials to measure at.
        rounds: How often everything is measured in turn.
        directory: Where the scratch directory is made: this is the disk that is measured.
    """

    quick: bool
    json: bool
    trials: tuple[int, ...]
    rounds: int
    directory: Path


def options(
    description: str | None,
    *,
    trials: Sequence[int] = (),
    quick_trials: Sequence[int] = (),
    rounds: int,
    quick_rounds: int = 2,
) -> Options:
    """Read the command line; what it leaves out is filled from the arguments. Without `trials` it has none."""
    parser = argparse.ArgumentParser(
        description=(description or "").split("\n\n", maxsplit=1)[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a short run with rough figures")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    if trials:
        parser.add_argument("--trials", metavar="N[,N...]", help="numbers of known trials to measure at")
    parser.add_argument("--rounds", type=int, metavar="K", help="how often everything is measured in turn")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="measure the disk of this directory")
    given = parser.parse_args()
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds must be at least 1")
    if given.dir is not None and not given.dir.is_dir():
        parser.error(f"--dir {given.dir}: no such directory")
    counts = tuple(quick_trials if given.quick else trials)
    if trials and given.trials:
        try:
            counts = tuple(int(part.replace("_", "")) for part in given.trials.split(","))
        except ValueError:
            parser.error(f"--trials {given.trials}: whole numbers, with commas between them")
        if min(counts) < 1:
            parser.error(f"--trials {given.trials}: numbers from 1")
    # /tmp is often memory, where syncing costs nothing
    default = Path("/var/tmp") if os.access("/var/tmp", os.W_OK) else Path(tempfile.gettempdir())
    return Options(
        quick=given.quick,
        json=given.json,
        trials=counts,
        rounds=given.rounds or (quick_rounds if given.quick else rounds),
        directory=(given.dir or default).resolve(),
    )


@asynccontextmanager
async def scratch(settings: Options) -> AsyncIterator[Path]:
    """A new directory on the measured disk, removed afterwards."""
    path = await asyncio.to_thread(tempfile.mkdtemp, prefix="asynctune-bench-", dir=settings.directory)
    try:
        yield Path(path)
    finally:
        await asyncio.to_thread(shutil.rmtree, path)


def installed(module: str) -> bool:
    """Whether a peer can be imported here."""
    return importlib.util.find_spec(module) is not None


def progress(text: str) -> None:
    """Say on standard error what is going on, so that standard output holds the result alone."""
    print(f"  {text}", file=sys.stderr, flush=True)


# -- figures -----------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


async def probed(work: Awaitable[None]) -> list[float]:
    """Run `work` with a probe beside it, which sleeps 1 ms again and again; by how many seconds each sleep overran."""
    lags: list[float] = []
    task = asyncio.ensure_future(work)
    while not task.done():
        start = time.perf_counter()
        await asyncio.sleep(_PROBE_S)
        lags.append(time.perf_counter() - start - _PROBE_S)
    await task
    return lags


def ratio(value: float | None, reference: float | None) -> float | None:
    """How many times `reference` goes into `value`; `None` where either is missing."""
    return None if value is None or not reference else value / reference


def machine(directory: Path) -> dict[str, Any]:
    """The machine, the date and the versions that the figures belong to; nothing that names the host."""
    versions = {}
    for name in _VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "from the source tree" if name == "asynctune" else NOT_INSTALLED
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "filesystem": _filesystem(directory),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": versions,
    }


def _first(path: str, key: str) -> str | None:
    for line in Path(path).read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _filesystem(directory: Path) -> str:
    best, kind = -1, "unknown"
    for line in Path("/proc/mounts").read_text("utf-8").splitlines():
        _, mount, filesystem, *_ = line.split(" ")
        if directory.is_relative_to(mount) and len(mount) >= best:
            best, kind = len(mount), filesystem
    return kind


# -- reports -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a report: the key in its rows, its title, and how many decimals it prints."""

    key: str
    title: str
    decimals: int = 2


SECONDS: Final = (
    Column(key="seconds", title="seconds"),
    Column(key="fastest", title="fastest"),
    Column(key="slowest", title="slowest"),
)
"""The columns of what `spread` makes."""


def spread(seconds: Sequence[float]) -> dict[str, Cell]:
    """The median of what several rounds took, and the extremes."""
    return {"seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds)}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One promise and what was measured for it.

    Attributes:
        what: The promise in words.
        measured: The figure, or `None` where this run cannot tell.
        limit: What it is held to.
        at_least: Whether `limit` is a lower bound; an upper one otherwise.
        unit: Printed after both.
    """

    what: str
    measured: float | None
    limit: float
    at_least: bool = False
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the figure keeps the promise; `None` if it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one script found: a table, its targets, and what one has to know to read it."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, Cell]]
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self, machine_facts: Mapping[str, Any]) -> dict[str, Any]:
        """The whole report as JSON values."""
        targets = [dataclasses.asdict(target) | {"met": target.met} for target in self.targets]
        return dataclasses.asdict(self) | {"targets": targets, "machine": dict(machine_facts)}


def cell(value: Cell, decimals: int = 2) -> str:
    """One figure as text; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{decimals}f}"


def verdict(target: Mapping[str, Any]) -> tuple[str, str, str]:
    """A target of a JSON report as text: the figure, the limit, and whether it is kept."""
    unit = f" {target['unit']}" if target["unit"] else ""
    sign = "≥" if target["at_least"] else "≤"
    measured = "not measured" if target["measured"] is None else f"{cell(target['measured'])}{unit}"
    met = {True: "met", False: "MISSED", None: "–"}[target["met"]]
    return measured, f"{sign} {cell(target['limit'], 1)}{unit}", met


def machine_line(facts: Mapping[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['date']} · {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB · "
        f"{facts['kernel']}, {facts['filesystem']} · load {facts['load_average']} before the run · "
        f"Python {facts['python']}, {versions}"
    )


def print_report(report: Mapping[str, Any]) -> None:
    """Print a JSON report for people."""
    console = Console() if sys.stdout.isatty() else Console(width=_FILE_WIDTH)
    table = Table(title=report["title"], title_justify="left")
    for column in report["columns"]:
        table.add_column(column["title"], justify="right")
    for row in report["rows"]:
        table.add_row(*(cell(row.get(column["key"]), column["decimals"]) for column in report["columns"]))
    console.print(table)
    if report["targets"]:
        targets = Table(title="targets", title_justify="left")
        for title in ("target", "measured", "limit", ""):
            targets.add_column(title)
        for target in report["targets"]:
            targets.add_row(target["what"], *verdict(target))
        console.print(targets)
    for note in report["notes"]:
        console.print(f"· {note}", highlight=False)
    console.print(machine_line(report["machine"]), highlight=False)


def run(measure: Callable[[Options], Awaitable[Report]], settings: Options) -> None:
    """Measure, and print what was found."""

    async def main() -> Report:
        return await measure(settings)

    # `timeout` and the like send SIGTERM: end like Ctrl-C, so that children and the scratch directory go
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    facts = machine(settings.directory)
    report = asyncio.run(main()).as_json(facts)
    if settings.json:
        json.dump(report, sys.stdout, ensure_ascii=False, indent=1)
        print()
    else:
        print_report(report)
