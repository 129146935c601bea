"""Whole runs with a copy in a bucket, with one fault between the store and its server, at any of their requests.

A case is a run of its own, with checkpoints and retention, behind a proxy of its own. It ends right, or with a clear
error; and in both cases what the bucket holds can be read, verified, and gone on with from another machine's empty
directory, or from the disk that knows more.
"""

from __future__ import annotations

import asyncio
import functools
import re
import secrets
import tempfile
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

from asynctune.clock import SystemClock
from asynctune.config import CheckpointConfig, SyncConfig
from asynctune.errors import AsynctuneError, ExperimentNotFoundError, FencedError, StorageError, UploadError
from asynctune.storage.base import ObjectStorage
from asynctune.storage.gcs import open_storage as open_gcs
from asynctune.storage.retry import Retry, RetryPolicy
from asynctune.storage.s3 import S3Storage
from asynctune.storage.s3_client import make_client, read_options
from asynctune.storage.threads import Threads
from asynctune.storage.transfer import Transfer
from asynctune.storage.uri import StorageURI
from asynctune.store.store import ExperimentStore
from asynctune.testing.storage_scenes import pattern
from asynctune.trial import TrialStatus
from tests.storage.fault_proxy import FAULTS, GCS, S3, FaultProxy, Protocol

__all__ = ["SECRET", "Case", "Server", "cases", "count_requests", "gcs_server", "run_cases", "s3_server"]

POLICY: Final = RetryPolicy(base_s=0.001, cap_s=0.01, request_s=1.5, total_s=4.0, min_bytes_per_s=8 << 20)
HUNG_S: Final = 60.0
STEPS: Final = 4
KEPT: Final = 2
PART: Final = 5 << 20
SECRET: Final = "secret-of-a-test"


class FastClock(SystemClock):
    """Twenty seconds of the store are one: what it waits for passes sooner."""

    def monotonic(self) -> float:
        return 20 * super().monotonic()

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 20)

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        return await super().wait(event, None if seconds is None else seconds / 20)

    def timeout(self, seconds: float | None) -> Any:
        return super().timeout(None if seconds is None else seconds / 20)


@dataclass(frozen=True)
class Server:
    """Where the buckets are."""

    endpoint: str
    protocol: Protocol
    bucket: str
    options: Mapping[str, Any]

    def options_at(self, url: str) -> dict[str, Any]:
        return {**self.options, "endpoint_url": url}


def s3_server(endpoint: str, bucket: str) -> Server:
    """A server of S3 that has this bucket."""
    return Server(endpoint, S3, f"s3://{bucket}", {"key": "AKTEST", "secret": SECRET, "region": "us-east-1"})


def gcs_server(endpoint: str, bucket: str) -> Server:
    """A server of GCS that has this bucket."""
    return Server(endpoint, GCS, f"gs://{bucket}", {"anonymous": True})


@dataclass(frozen=True)
class Case:
    """One fault at one request; the run goes on elsewhere, or where it was."""

    fault: str
    nth: int
    lasting: bool
    elsewhere: bool

    def __str__(self) -> str:
        then = "elsewhere" if self.elsewhere else "where it was"
        return f"{self.fault} {'from' if self.lasting else 'at'} request {self.nth}, then on {then}"


def cases(requests: int) -> list[Case]:
    """All of them, for runs of so many requests."""
    return [
        Case(fault, nth, lasting, (nth + number) % 2 == 0)
        for number, fault in enumerate(FAULTS)
        for nth in range(1, requests + 1)
        for lasting in ((False, True) if nth % 5 == 0 else (False,))
    ]


# -- one run ---------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One experiment, and what was promised of it."""

    server: Server
    url: str
    location: Path
    promised: int = 0
    warned: list[str] = field(default_factory=list)

    @property
    def uri(self) -> str:
        return f"{self.server.bucket}/{self.location.name}"

    def sync(self, url: str) -> SyncConfig:
        options = self.server.options_at(url)
        return SyncConfig(
            upload_dir=self.server.bucket, sync_timeout=100, sync_period=20, storage_options=options
        )

    def opened(self, url: str) -> Any:
        return ExperimentStore.open(
            self.location,
            sync_config=self.sync(url),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
            clock=FastClock(),
        )

    async def work(self) -> None:
        """Four checkpoints, of which two are kept; the second has a file that is sent in parts."""
        async with self.opened(self.url) as store:
            store.add_trial({"lr": 0.1}, "t")
            store.set_status("t", TrialStatus.RUNNING)
            for number in range(1, STEPS + 1):
                await step(store, number)
                await store.flush(mirror=True)
                self.promised = number
            store.set_status("t", TrialStatus.TERMINATED)


async def step(store: Any, number: int) -> None:
    store.report("t", {"loss": 1 / number, "number": number})
    with tempfile.TemporaryDirectory() as name:
        await asyncio.to_thread(_fill, Path(name), number)
        await store.save_checkpoint("t", name, step=number)


def _fill(directory: Path, number: int) -> None:
    (directory / "model").write_bytes(pattern(PART + 999 if number == 2 else 999, number))
    (directory / "deep").mkdir()
    (directory / "deep" / "note").write_text(str(number))


async def run_case(server: Server, directory: Path, case: Case | None) -> tuple[str, int]:
    """Run one case: how it ended, and how many requests the run took."""
    name = f"run-{secrets.token_hex(6)}"
    (directory / name).mkdir()
    async with FaultProxy(server.endpoint, server.protocol) as proxy:
        run = Run(server, proxy.url, directory / name / name)
        fault = None if case is None else proxy.set(case.fault, nth=case.nth, lasting=case.lasting)
        ending = "right"
        try:
            async with asyncio.timeout(HUNG_S):
                await run.work()
        except (StorageError, UploadError) as error:
            _check_error(error)
            ending = type(error).__name__
        except TimeoutError as error:
            raise AssertionError("it hangs beyond every deadline") from error
        count = len(proxy.requests)
        if case is not None and fault is not None and not fault.hits:
            ending = "not reached"
        proxy.heal()
        elsewhere = case is None or case.elsewhere
        # a session of an upload to GCS leads through the proxy whoever goes on with it
        async with asyncio.timeout(HUNG_S):
            await _check(run, whole=ending in ("right", "not reached"))
            await _go_on(run, directory / name, elsewhere=elsewhere)
    return ending, count


def _check_error(error: AsynctuneError) -> None:
    told = "\n".join(traceback.format_exception(error))
    said = "\n".join([str(error), repr(error), *getattr(error, "__notes__", ())])
    assert not isinstance(error, FencedError), said
    assert not re.search(f"{SECRET}|https?://|/session/|[Uu]pload[Ii]d=", said), said
    assert SECRET not in told, told


@asynccontextmanager
async def _read(run: Run) -> AsyncGenerator[Any, None]:
    options = run.server.options_at(run.server.endpoint)
    async with ExperimentStore.open(run.uri, "read", storage_options=options) as reader:
        yield reader


async def _check(run: Run, *, whole: bool) -> None:
    """What the bucket holds: all that was promised, all of it whole."""
    try:
        async with _read(run) as reader:
            trials = reader.trials
            number = trials[0].num_results if trials else 0
            assert run.promised <= number <= STEPS, (run.promised, number)
            checkpoints = reader.checkpoints("t") if trials else []
            there = [each.step for each in checkpoints if each.mirrored]
            if run.promised:
                rows = [row["number"] for row in await reader.history("t")]
                assert rows == list(range(1, number + 1)), rows
                # the best there is: none newer than the last promise was asked for, and no newer one is worse
                assert there[-1] >= run.promised, (there, run.promised)
            for each in checkpoints:
                if each.mirrored:
                    await _check_content(await reader.fetch(each), each.step)
            if whole:
                assert number == STEPS
                assert [each.step for each in checkpoints] == there == [STEPS - 1, STEPS]
                assert reader.get_trial("t").status is TrialStatus.TERMINATED
    except ExperimentNotFoundError:
        assert not run.promised


async def _check_content(path: Any, number: int) -> None:
    def compare() -> None:
        size = PART + 999 if number == 2 else 999
        assert Path(path, "model").read_bytes() == pattern(size, number)
        assert Path(path, "deep", "note").read_text() == str(number)

    await asyncio.to_thread(compare)


async def _go_on(run: Run, directory: Path, *, elsewhere: bool) -> None:
    """Another step, from an empty directory or from where it was; then the copy is whole."""
    url = run.server.endpoint
    if elsewhere:
        try:
            opening = await ExperimentStore.open(
                run.uri,
                local_dir=directory / "elsewhere",
                storage_options=run.server.options_at(url),
                checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
                clock=FastClock(),
            )
        except ExperimentNotFoundError:
            assert not run.promised
            return
    else:
        opening = await run.opened(url)
    async with opening as store:
        if not store.trials:
            store.add_trial({"lr": 0.1}, "t")
        assert store.get_trial("t").num_results >= run.promised
        if run.promised:
            restored = await store.restore_checkpoint("t")
            assert restored.step is not None
            assert restored.step >= run.promised
            await _check_content(restored.path, restored.step)
        if store.get_trial("t").status is TrialStatus.TERMINATED:
            store.set_status("t", TrialStatus.PENDING)
        if store.get_trial("t").status is TrialStatus.PENDING:
            store.set_status("t", TrialStatus.RUNNING)
        await step(store, STEPS + 1)
        await store.flush(mirror=True)
    async with _read(run) as reader:
        last = reader.checkpoints("t")[-1]
        assert (last.step, last.mirrored) == (STEPS + 1, True)
        for each in reader.checkpoints("t"):
            assert each.mirrored, each.step
            await _check_content(await reader.fetch(each), each.step)


# -- many of them ----------------------------------------------------------------------------------------------


@contextmanager
def impatient(server: Server) -> Iterator[None]:
    """Stores that are opened meanwhile wait less for a proxy than for the server, and send smaller parts."""

    async def opened(uri: StorageURI, options: Mapping[str, Any]) -> ObjectStorage:
        policy = None if options["endpoint_url"] == server.endpoint else POLICY
        if server.protocol is GCS:
            return await open_gcs(uri, dict(options), retry=Retry(policy))
        understood = read_options(options)
        threads = Threads("s3", 2)
        return S3Storage(uri, await make_client(understood, threads), threads, understood, policy=policy)

    small = functools.partial(Transfer, part_bytes=PART, put_bytes=PART)
    with (
        mock.patch("asynctune.store.access.open_storage", opened),
        mock.patch("asynctune.store.access.Transfer", small),
    ):
        yield


async def count_requests(server: Server, directory: Path) -> int:
    """How many requests a run takes without a fault."""
    with impatient(server):
        ending, count = await run_case(server, directory, None)
    assert ending == "right"
    return count


async def run_cases(
    server: Server, directory: Path, chosen: Iterable[Case], at_once: int = 3
) -> Counter[str]:
    """Run cases, some at a time; how often each ending came. The first that went wrong is named by a note."""
    outcomes: Counter[str] = Counter()
    waiting = iter(chosen)

    async def some() -> None:
        for case in waiting:
            try:
                outcomes[(await run_case(server, directory, case))[0]] += 1
            except BaseException as error:
                error.add_note(f"case: {case}")
                raise

    with impatient(server):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(some())
    return outcomes
