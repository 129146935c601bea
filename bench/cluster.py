"""Trials on a Ray cluster, and checkpoints that come home: asynctune beside Ray Tune, and beside a plain copy.

One cluster on this machine: a head without CPUs for trials, and a node with two, which has a filesystem of its own for
what is written there; in memory, so that the one disk of this machine serves the head alone. The driver is on the head.

- Trials that report five times and do nothing else, in two actors which are used for one trial after the other. The
  time is that of the whole experiment, from the call of `fit()`; `disks apart`: the node does not see the directory of
  the experiment, so that each trial has one on the node, whose files are sent home. Ray Tune cannot do without a
  shared one. Then two trials with very many reports: what one report takes, as the trial sees it.
- One checkpoint from the node to the head, of the four workloads of `uploads.py`. `report to answer` is what the trial
  sees: its directory is copied, hashed and synced on the node, sent, checked, synced and committed on the head. `the
  way` is part of that: from the first call that offers the tree until all of it is on the head's disk, compared with
  its checksums, synced, with a manifest. Beside it, `object store`: a task on the node reads the same files, Ray's
  object store carries them in pieces of 8 MiB, up to four ahead, and the driver writes them; no checksum, no sync.
- How late the driver's event loop is meanwhile: from that first call until the trial has its answer.
- One checkpoint of 2 GiB: by how much the resident memory of driver, agent and worker grows meanwhile.

It needs root, for namespaces. Nothing is deleted between rounds: some filesystems make new files slowly for minutes
after many were deleted.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from _children import Child, child
from _common import (
    NOT_INSTALLED,
    SECONDS,
    Cell,
    Column,
    Options,
    Report,
    Target,
    installed,
    options,
    percentile,
    progress,
    ratio,
    run,
    scratch,
    spread,
)
from _tuners import REPORTS
from _uploads import workloads

ROOT: Final = str(Path(__file__).parents[1])
sys.path.append(ROOT)

from tests.runners.cluster import Cluster, why_no_cluster  # noqa: E402 - from the source tree

_MIB: Final = 1 << 20
_NODE: Final = "bench_node"
_WORKERS: Final = 2
_MANY_REPORTS: Final = 500
_PAUSE_S: Final = 1.0
_OBJECTS_BYTES: Final = 300 * _MIB
_ALL, _FEW = "trials", "reports"
_TOGETHER, _APART, _RAY = "asynctune, one filesystem", "asynctune, disks apart", "Ray Tune"
_SUBJECTS: Final = (_TOGETHER, _APART, _RAY)
_LARGE: Final = "1 × 2 GiB"
_OURS, _PLAIN = "report to answer", "object store"

Runs = dict[tuple[str, str], list[dict[str, Any]]]
"""What was measured, by the work and by whom."""


async def measure(settings: Options) -> Report:
    if why := why_no_cluster():
        raise SystemExit(f"there can be no cluster here: {why}")
    found: Runs = defaultdict(list)
    async with scratch(settings) as directory, _cluster(directory / "apart") as made:
        await _measure_trials(settings, directory, made.address, found)
        await _measure_trees(settings, directory, made, found)
    return _report(settings, found)


@asynccontextmanager
async def _cluster(apart: Path) -> AsyncIterator[Cluster]:
    """A head, and a node that has `apart` for itself; children inherit what it takes to join them."""
    paths = [ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    made = Cluster(objects_bytes=_OBJECTS_BYTES)
    try:
        os.environ.update(made.environment)
        await asyncio.to_thread(made.start)
        await asyncio.to_thread(made.add_node, _NODE, [apart])
        yield made
    finally:
        await asyncio.to_thread(made.stop)


async def _measure_trials(settings: Options, directory: Path, address: str, found: Runs) -> None:
    async with AsyncExitStack() as stack:
        children: dict[str, tuple[Child, Path]] = {}
        for name in _SUBJECTS:
            if name == _RAY and not installed("ray.tune"):
                continue
            progress(name)
            place = directory / {_TOGETHER: "together", _APART: "apart/trials", _RAY: "ray"}[name]
            await asyncio.to_thread(place.mkdir, parents=True)
            subject = "RayTuneThere" if name == _RAY else "OnRay"
            made = await stack.enter_async_context(child(f"_cluster_trials:{subject}"))
            ours = {} if name == _RAY else {"worker_dir": str(directory / "apart/node")}
            await made.prepare(directory=str(place), address=address, **ours)
            children[name] = made, place
        for turn in range(settings.rounds):
            progress(f"trials: round {turn + 1} of {settings.rounds}")
            for name, (made, place) in children.items():
                works = ((_ALL, settings.trials[0], REPORTS), (_FEW, _WORKERS, _MANY_REPORTS))
                for what, count, reports in works:
                    await _rest()
                    asked = {"place": str(place / f"{what}-{turn}"), "trials": count, "reports": reports}
                    found[what, name].append(await made.measure(**asked))


async def _measure_trees(settings: Options, directory: Path, made: Cluster, found: Runs) -> None:
    warm_up = {f"{number}.bin": _MIB for number in range(20)}
    # The largest comes while the driver's process is small.
    trees = {"warm-up": warm_up, _LARGE: _large(settings.quick), **workloads(settings.quick)}
    apart = directory / "apart"
    there = {"address": made.address, "node": _NODE}
    progress("making files on the node")
    async with child("_cluster_trees:Maker") as maker:
        await maker.prepare(**there)
        for number, sizes in enumerate(trees.values()):
            await maker.measure(path=str(apart / f"tree-{number}"), sizes=sizes)
    async with child("_cluster_trees:Asynctune") as ours, child("_cluster_trees:PlainCopy") as plain:
        own = {"worker_dir": str(apart / "node"), "process": made.nodes[_NODE].pid}
        await ours.prepare(directory=str(apart), **own, **there)
        await plain.prepare(directory=str(apart), **there)
        for turn in range(settings.rounds):
            for number, (work, sizes) in enumerate(trees.items()):
                if work in {"warm-up", _LARGE} and turn > 0:
                    continue
                progress(f"checkpoints: round {turn + 1} of {settings.rounds}: {work}")
                for name, each in ((_OURS, ours), (_PLAIN, plain)):
                    await _rest()
                    asked = {"source": str(apart / f"tree-{number}"), "sizes": sizes}
                    found[work, name].append(await each.measure(**asked))


def _large(quick: bool) -> dict[str, int]:
    return {"model.bin": (256 if quick else 2048) * _MIB}


async def _rest() -> None:
    """What was written before is on the disk."""
    await asyncio.to_thread(os.sync)
    await asyncio.sleep(_PAUSE_S)


def _report(settings: Options, found: Runs) -> Report:
    rows, of_ray = _trial_rows(settings, found)
    trees = {**workloads(settings.quick), _LARGE: _large(settings.quick)}
    sizes = {work: sum(files.values()) / _MIB for work, files in trees.items()}
    shares: dict[str, float] = {}
    lags: dict[str, float] = {}
    for work, mib in sizes.items():
        runs = found[work, _OURS]
        copies = [each["seconds"] for each in found[work, _PLAIN]]
        ways = [each["way"] for each in runs]
        answers = [each["seconds"] for each in runs]
        shares[work] = statistics.median(copies) / statistics.median(ways)
        late = [1e3 * lag for each in runs for lag in each["lags"]]
        lags[work] = percentile(late, 99)
        for name, seconds in ((_OURS, answers), ("the way", ways), (_PLAIN, copies)):
            half = statistics.median(seconds)
            row = {"work": work, "by": name, **spread(seconds)}
            row |= {"rate": mib / half, "peer": statistics.median(copies) / half}
            if name == _OURS:
                row |= {"p99": lags[work], "max": max(late)}
            rows.append(row)
    idle = [1e3 * lag for work in sizes for each in found[work, _OURS] for lag in each["idle"]]
    rows.append({"work": "idle control", "p99": percentile(idle, 99), "max": max(idle)})
    [memory] = [each["memory"] for each in found[_LARGE, _OURS]]
    for name in ("head", "agent", "worker"):
        rows.append({"work": _LARGE, "by": f"memory of the {name}", "memory": memory[name] / _MIB})
    return Report(
        name="cluster",
        title="Trials on a Ray cluster, and checkpoints from a node to the head",
        columns=(
            Column(key="work", title=""),
            Column(key="by", title="by"),
            *SECONDS,
            Column(key="trials", title="trials/s", decimals=1),
            Column(key="report", title="ms per report"),
            Column(key="rate", title="MiB/s", decimals=0),
            Column(key="peer", title="× the peer"),
            Column(key="p99", title="loop lag p99, ms"),
            Column(key="max", title="max"),
            Column(key="memory", title="extra MiB", decimals=0),
        ),
        rows=rows,
        targets=(
            Target(
                what="trials per second on a Ray cluster, against Ray Tune, on one filesystem, which that needs",
                measured=of_ray.get(_TOGETHER),
                limit=3,
                at_least=True,
                unit="×",
            ),
            Target(
                what="the same where disks are apart, which Ray Tune cannot do",
                measured=of_ray.get(_APART),
                limit=3,
                at_least=True,
                unit="×",
            ),
            Target(
                what="from a node to the head, against a copy through the object store, worst of the four",
                measured=min(share for work, share in shares.items() if work != _LARGE),
                limit=0.5,
                at_least=True,
                unit="×",
            ),
            Target(
                what="loop lag on the head while a checkpoint comes, p99, worst of the four and of 2 GiB",
                measured=max(lags.values()),
                limit=10,
                unit="ms",
            ),
            Target(
                what="extra memory of the driver while 2 GiB come",
                measured=memory["head"] / _MIB,
                limit=200,
                unit="MiB",
            ),
            Target(
                what="extra memory of agent and worker while 2 GiB go",
                measured=(memory["agent"] + memory["worker"]) / _MIB,
                limit=200,
                unit="MiB",
            ),
        ),
        notes=(
            "× the peer: Ray Tune's trials/s, or its ms per report; the MiB/s of the copy through the object store.",
            "report to answer: also copying and hashing on the node before the way, and the commit after it.",
            "the way: offered, sent, every file compared with its checksums, synced, with a manifest.",
            "object store: pieces of 8 MiB, four ahead; written, without a checksum and without a sync.",
            "The node's own filesystem is in memory; the head's is this disk. All processes share the cores.",
            "Ray Tune: results in batches of five; what it writes is not synced, and asynctune's is.",
        ),
        settings={"rounds": settings.rounds, "reports": REPORTS, "many_reports": _MANY_REPORTS},
    )


def _trial_rows(settings: Options, found: Runs) -> tuple[list[dict[str, Cell]], dict[str, float | None]]:
    """The rows of the trials, and how many of them asynctune runs, in each way, in the time of one of Ray Tune's."""
    rows: list[dict[str, Cell]] = []
    rates = {
        name: statistics.median(settings.trials[0] / each["seconds"] for each in found[_ALL, name])
        for name in _SUBJECTS
        if (_ALL, name) in found
    }
    spent = {
        name: statistics.median(1e3 * each for runs in found[_FEW, name] for each in runs["per_report"])
        for name in rates
    }
    for name in _SUBJECTS:
        row: dict[str, Cell] = {
            "work": f"{settings.trials[0]:,} trials × {REPORTS} reports",
            "by": name,
        }
        if name not in rates:
            rows.append(row | {"seconds": NOT_INSTALLED})
            continue
        seconds = [each["seconds"] for each in found[_ALL, name]]
        row |= spread(seconds)
        rows.append(row | {"trials": rates[name], "peer": ratio(rates[name], rates.get(_RAY))})
    for name in rates:
        of_peer = ratio(spent[name], spent.get(_RAY))
        rows.append(
            {
                "work": f"{_WORKERS} trials × {_MANY_REPORTS} reports",
                "by": name,
                "report": spent[name],
                "peer": of_peer,
            }
        )
    return rows, {name: ratio(rate, rates.get(_RAY)) for name, rate in rates.items()}


if __name__ == "__main__":
    run(measure, options(__doc__, trials=(1_000,), quick_trials=(200,), rounds=3, quick_rounds=1))
