"""Directories uploaded to one S3 server: asynctune beside s5cmd, pyarrow.fs, s3fs, obstore and aws-cli.

Four workloads: one file of 256 MiB, 16 of 16 MiB, 1 000 of 16 KiB, and a checkpoint such as training leaves (96 MiB,
two of 48 MiB, 20 of 20 KiB). All upload the same directory of this disk to a prefix of their own, in turn, each round
with another one first; what they have uploaded is counted and deleted before the next turn. Then the last one once
more, unchanged, to where it is already: what has to be sent to find that out?

The server is `juicefs gateway` on this machine: a real one, whose work takes part of the machine's time. So the seconds
say what a client makes of the same server; what it costs by itself is its CPU seconds.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AsyncExitStack
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
    options,
    progress,
    ratio,
    run,
    scratch,
    spread,
)
from _uploads import (
    BUCKET,
    MIXED,
    ONE,
    PEERS,
    SIXTEEN,
    SMALL,
    gateway,
    make_tree,
    sizes_in,
    version_of,
    workloads,
)

from asynctune.storage.base import ObjectStorage
from asynctune.storage.s3 import open_storage
from asynctune.storage.uri import parse_uri
from asynctune.storage.values import Directory

_MIB: Final = 1 << 20
_OURS: Final = "asynctune"
_REST_S: Final = 0.5

_AGAIN: Final = "the last, again"


async def measure(settings: Options) -> Report:
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    async with scratch(settings) as directory, AsyncExitStack() as stack:
        server = directory / "server"
        server.mkdir()
        os.environ |= stack.enter_context(gateway(server))
        storage = await open_storage(parse_uri(f"s3://{BUCKET}"), {})
        stack.push_async_callback(storage.aclose)
        await storage._client.create_bucket(Bucket=BUCKET)
        trees = {"warm-up": {f"{number}": 10_000 for number in range(20)}, **workloads(settings.quick)}
        for name, sizes in trees.items():
            await asyncio.to_thread(make_tree, directory / name, sizes)
        clients: dict[str, Child] = {}
        for name, (subject, package) in {_OURS: ("Asynctune", ""), **PEERS}.items():
            if package and version_of(package) is None:
                continue
            clients[name] = await stack.enter_async_context(child(f"_uploads:{subject}"))
            await clients[name].prepare(warm_up=str(directory / "warm-up"), prefix=f"warm-up/{name}")
        for turn in range(settings.rounds):
            for work in workloads(settings.quick):
                for name, client in _in_turn(clients, turn):
                    progress(f"round {turn + 1} of {settings.rounds}: {work}, {name}")
                    prefix = f"{turn}/{name}"
                    source = directory / work
                    await asyncio.to_thread(os.sync)
                    await asyncio.sleep(_REST_S)
                    found[work, name].append(await client.measure(source=str(source), prefix=prefix))
                    await _check(storage, prefix, source)
                    if work == MIXED:
                        again = await client.measure(source=str(source), prefix=prefix, again=True)
                        found[_AGAIN, name].append(again)
                        await _check(storage, prefix, source)
                    await _delete(storage, prefix)
    return _report(settings, found)


def _in_turn(clients: Mapping[str, Child], turn: int) -> list[tuple[str, Child]]:
    """Each round begins with another: the first meets a server that still clears away the work before."""
    order = list(clients.items())
    first = turn % len(order)
    return order[first:] + order[:first]


async def _check(storage: ObjectStorage, prefix: str, source: Path) -> None:
    """Refuse to time an upload that is not whole."""
    there = {
        entry.key.removeprefix(f"{prefix}/"): entry.size_bytes
        async for entry in storage.list_objects(f"{prefix}/")
        if not isinstance(entry, Directory) and not entry.key.endswith("/")
    }
    files = await asyncio.to_thread(sizes_in, source)
    if there != files:
        what = [f"{len(each)} files of {sum(each.values())} bytes" for each in (there, files)]
        raise RuntimeError(f"{prefix} has {what[0]}, not {what[1]}")


async def _delete(storage: ObjectStorage, prefix: str) -> None:
    keys = [
        entry.key
        async for entry in storage.list_objects(f"{prefix}/")
        if not isinstance(entry, Directory) and not entry.key.endswith("/")
    ]
    await storage.delete(keys)


def _report(settings: Options, found: dict[tuple[str, str], list[dict[str, Any]]]) -> Report:
    works = [*workloads(settings.quick), _AGAIN]
    bytes_of = {work: sum(sizes.values()) for work, sizes in workloads(settings.quick).items()}
    bytes_of[_AGAIN] = bytes_of[MIXED]
    half = {key: statistics.median(each["seconds"] for each in runs) for key, runs in found.items()}
    rows: list[dict[str, Cell]] = []
    for work in works:
        for name in (_OURS, *PEERS):
            row: dict[str, Cell] = {"work": work, "by": name}
            if (work, name) not in found:
                rows.append(row | {"seconds": NOT_INSTALLED})
                continue
            runs = found[work, name]
            seconds = [each["seconds"] for each in runs]
            rows.append(
                row
                | spread(seconds)
                | {
                    "rate": bytes_of[work] / _MIB / half[work, name],
                    "ours": ratio(half[work, _OURS], half[work, name]),
                    "cpu": statistics.median(each["cpu"] for each in runs),
                    "wire": statistics.median(each["wire_bytes"] for each in runs) / _MIB,
                }
            )

    def worst(name: str, *of: str) -> float | None:
        ratios = [ratio(half[work, _OURS], half.get((work, name))) for work in of]
        known = [each for each in ratios if each is not None]
        return max(known) if known else None

    every = (ONE, SIXTEEN, SMALL, MIXED)
    versions = [f"{package} {version_of(package) or NOT_INSTALLED}" for _, package in PEERS.values()]
    sent_again = max(each["sent_bytes"] for each in found[_AGAIN, _OURS])
    return Report(
        name="uploads",
        title="Uploads to one S3 server on this machine (seconds, median of the rounds)",
        columns=(
            Column(key="work", title="files"),
            Column(key="by", title="by"),
            *SECONDS,
            Column(key="rate", title="MiB/s", decimals=0),
            Column(key="ours", title="asynctune's seconds / these"),
            Column(key="cpu", title="CPU seconds of the client"),
            Column(key="wire", title="MiB over the network", decimals=2),
        ),
        rows=rows,
        targets=(
            Target(
                what="upload seconds against pyarrow.fs (Ray Tune's way), worst of the four",
                measured=worst("pyarrow.fs", *every),
                limit=1,
                unit="×",
            ),
            Target(
                what="upload seconds against s3fs, worst of the four",
                measured=worst("s3fs", *every),
                limit=1,
                unit="×",
            ),
            Target(
                what="upload seconds against s5cmd, worst of the two with big files",
                measured=worst("s5cmd", ONE, SIXTEEN),
                limit=1.2,
                unit="×",
            ),
            Target(
                what="bytes of files that a second upload of an unchanged tree sends",
                measured=sent_again,
                limit=0,
                unit="bytes",
            ),
        ),
        notes=(
            "MiB over the network: both ways on the loopback interface, replies and listings with it.",
            "asynctune's CPU seconds count a second checksum of each byte, as it is sent, and a third for the server.",
            "s5cmd and aws-cli are started for each upload; the other clients are warm.",
            "The last, again: s5cmd and aws-cli by `sync`, by size and time; asynctune by size and checksum.",
            "This server keeps no CRC-32C, so asynctune reads what is there back; from S3 itself it is told by HEAD.",
            f"Peers: {', '.join(versions)}.",
        ),
        settings={"rounds": settings.rounds, "server": "juicefs gateway"},
    )


if __name__ == "__main__":
    run(measure, options(__doc__, rounds=6, quick_rounds=2))
