"""Lets the way between a storage and its server fail: every operation of S3 and GCS under every fault."""

from __future__ import annotations

import asyncio
import logging
import urllib.request
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.lab.registry import Lab, Row, experiment
from tests.storage.fake_gcs import FakeGcs
from tests.storage.fault_matrix import CASES, LARGE, Case, gcs_places, run_cases, s3_places
from tests.storage.moto import moto_server


@experiment("proxied", "every operation of S3 and GCS under every fault between client and server")
def proxied(lab: Lab) -> Iterable[Row]:
    logging.getLogger("asynctune").setLevel(logging.CRITICAL)
    source = lab.directory / "source"
    source.write_bytes(LARGE)
    for name, run in (("s3", _s3), ("gcs", _gcs)):
        cases = lab.few(CASES, 60)
        outcomes = asyncio.run(run(source, lab.progress(cases, name, len(cases))))
        yield Row.tally(f"operations of {name}", outcomes)


async def _s3(source: Path, cases: Iterable[Case]) -> Counter[str]:
    with moto_server() as endpoint:
        request = urllib.request.Request(f"{endpoint}/faults", method="PUT")
        urllib.request.urlopen(request, timeout=20).close()
        return await run_cases(s3_places(endpoint, "faults", str(source)), cases)


async def _gcs(source: Path, cases: Iterable[Case]) -> Counter[str]:
    async with FakeGcs() as server:
        return await run_cases(gcs_places(server.url, "bucket", str(source)), cases)
