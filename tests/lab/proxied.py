"""Lets the way between a storage and its server fail: every operation, and every request of whole runs."""

from __future__ import annotations

import asyncio
import logging
import urllib.request
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.crash.proxied_runs import Server, cases, count_requests, gcs_server, run_cases, s3_server
from tests.lab.registry import Lab, Row, experiment
from tests.storage.fake_gcs import FakeGcs
from tests.storage.fault_matrix import CASES, GCS_CASES, LARGE, Case, gcs_places, s3_places
from tests.storage.fault_matrix import run_cases as run_matrix
from tests.storage.moto import moto_server


@experiment("proxied", "S3 and GCS under every fault on the wire, at every operation")
def proxied(lab: Lab) -> Iterable[Row]:
    logging.getLogger("asynctune").setLevel(logging.CRITICAL)
    source = lab.directory / "source"
    source.write_bytes(LARGE)
    for name, run, every in (("s3", _s3, CASES), ("gcs", _gcs, GCS_CASES)):
        chosen = lab.few(every, 60)
        outcomes = asyncio.run(run(source, lab.progress(chosen, name, len(chosen))))
        yield Row.tally(f"operations of {name}", outcomes)


@experiment("runs with s3", "whole runs with a copy in S3, under every fault at every request")
def runs_with_s3(lab: Lab) -> Iterable[Row]:
    logging.getLogger("asynctune").setLevel(logging.CRITICAL)
    yield Row.tally("runs with s3", asyncio.run(_runs_with_s3(lab)))


@experiment("runs with gcs", "whole runs with a copy in GCS, under every fault at every request")
def runs_with_gcs(lab: Lab) -> Iterable[Row]:
    logging.getLogger("asynctune").setLevel(logging.CRITICAL)
    yield Row.tally("runs with gcs", asyncio.run(_runs_with_gcs(lab)))


async def _runs_with_s3(lab: Lab) -> Counter[str]:
    with moto_server() as endpoint:
        _make_bucket(endpoint, "runs")
        return await _runs(lab, s3_server(endpoint, "runs"))


async def _runs_with_gcs(lab: Lab) -> Counter[str]:
    async with FakeGcs() as fake:
        return await _runs(lab, gcs_server(fake.url, "bucket"))


async def _runs(lab: Lab, server: Server) -> Counter[str]:
    requests = await count_requests(server, lab.directory)
    chosen = lab.few(cases(requests), 20)
    return await run_cases(server, lab.directory, lab.progress(chosen, "runs", len(chosen)))


def _make_bucket(endpoint: str, name: str) -> None:
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=20).close()


async def _s3(source: Path, chosen: Iterable[Case]) -> Counter[str]:
    with moto_server() as endpoint:
        _make_bucket(endpoint, "faults")
        return await run_matrix(s3_places(endpoint, "faults", str(source)), chosen)


async def _gcs(source: Path, chosen: Iterable[Case]) -> Counter[str]:
    async with FakeGcs() as server:
        return await run_matrix(gcs_places(server.url, "bucket", str(source)), chosen)
