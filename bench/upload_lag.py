"""Loop lag while checkpoints are uploaded: 1 000 files of 16 KiB, or one of 1 GiB, to a gateway on this machine.

A probe on the event loop sleeps one millisecond, again and again, and notes by how much it overslept, as in
`loop_lag.py`. The store has the checkpoint committed already; what is measured is the upload alone, up to `drain()`.
The server stands for another machine: it is a process of its own on the same cores, and gives way to this one (`nice`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections import defaultdict
from pathlib import Path

from _common import Cell, Column, Options, Report, Target, options, percentile, probed, progress, run, scratch
from _uploads import BUCKET, gateway

from asynctune import ExperimentStore, SyncConfig
from asynctune.storage.s3 import open_storage
from asynctune.storage.uri import parse_uri

_REST_S = 2.0
_IDLE_S = 5.0
_CHUNK_BYTES = 16 * 1024 * 1024
_IDLE = "idle"
_NICE = 10


async def measure(settings: Options) -> Report:
    files, small = (200 if settings.quick else 1000), 16 * 1024
    large = (128 if settings.quick else 1024) * 2**20
    many = f"{files:,} × 16 KiB"
    sizes = {many: [small] * files, f"1 × {large >> 20:,} MiB": [large]}
    lags: dict[str, list[float]] = defaultdict(list)
    spent: dict[str, float] = defaultdict(float)
    async with scratch(settings) as directory:
        (directory / "server").mkdir()
        with gateway(directory / "server", nice=_NICE) as environment:
            os.environ.update(environment)
            await _make_bucket()
            for turn in range(settings.rounds):
                progress(f"round {turn + 1} of {settings.rounds}")
                lags[_IDLE] += await probed(asyncio.sleep(_IDLE_S))
                spent[_IDLE] += _IDLE_S
                for name, files_of in sizes.items():
                    await _upload(directory / f"round-{turn}", name, files_of, lags, spent)
    rows: list[dict[str, Cell]] = []
    for name, values in lags.items():
        milliseconds = [lag * 1e3 for lag in values]
        size = sum(sizes.get(name, ())) * settings.rounds
        rows.append(
            {
                "phase": name,
                "p50": percentile(milliseconds, 50),
                "p99": percentile(milliseconds, 99),
                "p99_9": percentile(milliseconds, 99.9),
                "max": max(milliseconds),
                "probes": len(milliseconds),
                "seconds": spent[name] / settings.rounds,
                "rate": size / 2**20 / spent[name] if size else None,
            }
        )
    loaded = [row["p99"] for row in rows if row["phase"] != _IDLE]
    return Report(
        name="upload_lag",
        title="Loop lag while a checkpoint is uploaded (milliseconds)",
        columns=(
            Column(key="phase", title="upload"),
            Column(key="p50", title="p50"),
            Column(key="p99", title="p99"),
            Column(key="p99_9", title="p99.9"),
            Column(key="max", title="max"),
            Column(key="probes", title="probes"),
            Column(key="seconds", title="seconds", decimals=1),
            Column(key="rate", title="MiB/s", decimals=1),
        ),
        rows=rows,
        targets=(
            Target(
                what="loop lag while uploading, p99",
                measured=max(value for value in loaded if isinstance(value, float)),
                limit=10,
                unit="ms",
            ),
        ),
        notes=("The server, `juicefs gateway`, works on the same two cores, and gives way (`nice -n 10`).",),
        settings={"rounds": settings.rounds, "files": files, "large_bytes": large},
    )


async def _upload(
    directory: Path, name: str, sizes: list[int], lags: dict[str, list[float]], spent: dict[str, float]
) -> None:
    source = directory / "source"
    await asyncio.to_thread(_make_source, source, sizes)
    place = f"s3://{BUCKET}/{directory.name}-{len(sizes)}"
    # the checkpoint waits until the probe runs
    held = SyncConfig(upload_dir=place, sync_on_checkpoint=False, sync_period=86_400)
    async with ExperimentStore.open(directory / f"exp-{len(sizes)}", sync_config=held) as store:
        store.add_trial({}, "t")
        await store.flush(mirror=True)
        await store.save_checkpoint("t", source, move=True)
        await store.flush()
        await asyncio.sleep(_REST_S)  # what is written behind belongs to the commit
        start = time.perf_counter()
        lags[name] += await probed(store.drain())
        spent[name] += time.perf_counter() - start
        assert store.stats().uploads_done == 1
    await asyncio.to_thread(shutil.rmtree, directory)


async def _make_bucket() -> None:
    storage = await open_storage(parse_uri(f"s3://{BUCKET}"), {})
    await storage._client.create_bucket(Bucket=BUCKET)
    await storage.aclose()


def _make_source(source: Path, sizes: list[int]) -> None:
    source.mkdir(parents=True)
    for number, size in enumerate(sizes):
        with open(source / f"{number:05}.bin", "wb") as file:
            file.writelines(
                os.urandom(min(_CHUNK_BYTES, size - offset)) for offset in range(0, size, _CHUNK_BYTES)
            )


if __name__ == "__main__":
    run(measure, options(__doc__, rounds=3, quick_rounds=1))
