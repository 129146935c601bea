"""Kills drivers whose experiment has a copy, sets two on one experiment, and takes the bucket away."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.crash import mirror_away, mirror_sharing
from tests.crash.mirror_killing import kill_mirrored
from tests.crash.mirror_places import Place, directory_place, gcs_place, s3_place, s3_server
from tests.lab.registry import Lab, Row, experiment
from tests.storage.juicefs import juicefs_mounts, why_no_mounts


@experiment("mirror", "SIGKILL, takeovers and a bucket that is away, of drivers whose experiment has a copy")
def mirror(lab: Lab) -> Iterable[Row]:
    logging.getLogger("asynctune").setLevel(logging.CRITICAL)  # most of it is aloud
    for kind, full in (("directory", 100), ("s3", 100), ("gcs", 60)):
        yield from asyncio.run(_kills(lab, kind, lab.times(full, 4)))
    for kind, rounds in (("directory", 4), ("s3", 4), ("gcs", 2), ("network filesystem", 2)):
        if kind == "network filesystem" and (reason := why_no_mounts()):
            yield Row(f"two drivers, {kind}", 0, reason)
            continue
        yield Row.tally(
            f"two drivers, {kind}",
            asyncio.run(_play(lab, kind, mirror_sharing.SCENES, lab.times(rounds, 1))),
        )
    for kind, rounds in (("s3", 4), ("gcs", 2)):
        outcomes = asyncio.run(_play(lab, kind, mirror_away.SCENES, lab.times(rounds, 1)))
        yield Row.tally(f"the bucket is away, {kind}", outcomes)
    yield Row.tally("SIGTERM while uploads hang", asyncio.run(_stop(lab, lab.times(10, 1))))


def _told(outcomes: Counter[str]) -> str:
    return ", ".join(f"{what}: {count}" for what, count in sorted(outcomes.items()))


@asynccontextmanager
async def _place(kind: str, directory: Path, *, door: bool) -> AsyncGenerator[Place, None]:
    if kind == "directory":
        yield directory_place(directory / "copy")
    elif kind == "gcs":
        async with gcs_place(door=door) as place:
            yield place
    elif kind == "s3":
        with s3_server() as endpoint:
            async with s3_place(endpoint, door=door) as place:
                yield place
    else:
        with juicefs_mounts() as (one, other):
            (one / "copy").mkdir()
            yield Place(kind="file", upload_dir=str(one / "copy"), others=(str(other / "copy"),))


async def _kills(lab: Lab, kind: str, count: int) -> list[Row]:
    directory = lab.directory / f"kills-{kind}"
    directory.mkdir()
    async with _place(kind, directory, door=False) as place:
        outcomes = await kill_mirrored(directory, lab.rng, place, count)
        promises = outcomes.pop("promises")
        rows = [
            Row(
                f"drivers killed, {kind}",
                outcomes.pop("killed"),
                f"{promises} promises kept, {_told(outcomes)}",
            )
        ]
        if (proxy := place.proxy) is not None:
            assert proxy.again == 0, f"{proxy.again} parts were sent again"
            told = (
                f"{proxy.sent} parts, {proxy.resumed} uploads resumed by another process, no part sent again"
            )
            rows.append(Row(f"uploads in parts, {kind}", len(proxy.uploads), told))
    return rows


async def _play(lab: Lab, kind: str, scenes: mirror_sharing.Scenes, rounds: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    async with _place(kind, lab.directory, door=True) as place:
        for name, (scene, endings) in scenes.items():
            for number in range(rounds):
                directory = lab.directory / f"{kind}-{name}-{number}"
                directory.mkdir()
                machines = mirror_sharing.Machines(directory, place, lab.rng)
                ending = await scene(machines)
                assert ending in endings, f"{name}: {ending}: {machines.last_words}"
                outcomes[f"{name}: {ending}"] += 1
    return outcomes


async def _stop(lab: Lab, rounds: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    async with _place("s3", lab.directory, door=True) as place:
        for number in range(rounds):
            directory = lab.directory / f"stop-{number}"
            directory.mkdir()
            outcomes[await mirror_away.stopped_while_uploads_hang(directory, place, lab.rng)] += 1
    return outcomes
