"""Moves files of many gigabytes to and from a storage that keeps nothing, and smaller ones under every fault."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterable

from tests.lab.registry import Lab, Row, experiment
from tests.storage.fake_gcs import FakeGcs
from tests.storage.fault_matrix import gcs_places, s3_places
from tests.storage.moto import moto_server
from tests.storage.transfer_matrix import DATA, TRANSFERS, run_transfers

MOST_BYTES = 200 << 20


@experiment(
    "transfers", "memory and loop lag while one large file is sent and received; it is sparse, or zeros"
)
def transfers(lab: Lab) -> Iterable[Row]:
    sizes = (("send", lab.times(5 << 30, 512 << 20)), ("receive", lab.times(1 << 30, 128 << 20)))
    for what, size_bytes in sizes:
        directory = lab.directory / what
        directory.mkdir()
        command = [sys.executable, "-m", "tests.storage.discarding", what, str(size_bytes), str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        told = json.loads(done.stdout)
        assert told["rss_most"] <= MOST_BYTES, told
        if what == "send":
            assert told["received"] == size_bytes, told
        yield Row(
            f"{what} a file of {size_bytes >> 20:,} MiB",
            1,
            f"{told['rss_most'] >> 20} MiB resident at most ({told['rss_before'] >> 20} before), "
            f"lag p99 {told['lag_p99_ms']:.1f} ms, most {told['lag_most_ms']:.1f} ms, {told['took_s']:.1f} s",
        )
        (directory / "file").unlink()


@experiment("transfers under faults", "every fault at every request of a file's way to S3 and GCS and back")
def transfers_under_faults(lab: Lab) -> Iterable[Row]:
    logging.getLogger("asynctune").setLevel(logging.CRITICAL)  # what is fetched again is a warning
    source = lab.directory / "source"
    source.write_bytes(DATA)
    cases = lab.few(TRANSFERS, 24)
    with moto_server() as url:
        making = urllib.request.Request(f"{url}/transfers", method="PUT")
        urllib.request.urlopen(making, timeout=20).close()
        places = s3_places(url, "transfers", str(source))
        told = lab.progress(cases, "S3", len(cases))
        yield Row.tally("S3", asyncio.run(run_transfers(places, told, str(source))))

    async def on_gcs() -> Counter[str]:
        async with FakeGcs() as fake:
            told = lab.progress(cases, "GCS", len(cases))
            return await run_transfers(gcs_places(fake.url, "bucket", str(source)), told, str(source))

    yield Row.tally("GCS", asyncio.run(on_gcs()))
