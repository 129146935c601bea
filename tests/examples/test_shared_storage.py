"""The scripts of Ray Tune's storage guide that need a bucket or a network filesystem: killed, moved, gone on with."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import psutil
import pytest

from asynctune import ExperimentNotFoundError, ExperimentStore, ResultGrid, TrialStatus
from tests.examples.storage_scripts import (
    ITERATIONS,
    WAIT_S,
    Left,
    newest_checkpoint,
    run,
    start,
    step_of,
    until,
)
from tests.storage.juicefs import juicefs_mounts
from tests.storage.moto import moto_server

BUCKETS = itertools.count(1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Left:
    path = tmp_path_factory.mktemp("undisturbed")
    run("storage_best_five.py", path, cwd=path)
    return Left(path / "my-tune-exp")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as url:
        yield url


class Bucket:
    """A bucket, and what the scripts have put there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.uri = f"s3://{name}/path"
        self._client = boto3.client("s3")
        self._client.create_bucket(Bucket=name)

    def close(self) -> None:
        self._client.close()

    def read(self, key: str) -> bytes:
        body: bytes = self._client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return body

    def keys(self) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def steps(self, *, of_the_last_driver: bool = False) -> list[int]:
        """Of the checkpoints that are complete."""
        paths = [Path(key).parent for key in self.keys() if key.endswith("/.manifest.json")]
        if of_the_last_driver:  # names are such as `checkpoint_000016-3.2`
            ending = max(path.name for path in paths).partition("-")[2]
            paths = [path for path in paths if path.name.endswith(f"-{ending}")]
        return sorted(map(step_of, paths))


@pytest.fixture
def bucket(endpoint, tmp_path, monkeypatch) -> Iterator[Bucket]:
    """A bucket on a server that the environment tells of, as it tells where results go on this machine."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "TUNE_RESULT_DIR": str(tmp_path / "results"),
    }.items():
        monkeypatch.setenv(name, value)
    made = Bucket(f"bucket-{next(BUCKETS)}")
    yield made
    made.close()


def wait_for_copy(uri: str, iteration: int, process: Any) -> int:
    """Return when a checkpoint of this iteration or a later one is in the bucket, and named by the state there; its."""
    end = time.monotonic() + WAIT_S
    while (found := asyncio.run(newest_copy(uri))) < iteration:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "no checkpoint comes"
        time.sleep(0.1)
    return found


async def newest_copy(uri: str) -> int:
    try:
        async with ExperimentStore.open(uri, mode="read") as store:
            made = [made for trial in store.trials for made in trial.checkpoints if made.mirrored]
            return int(made[-1].metrics["training_iteration"]) if made else 0
    except ExperimentNotFoundError:
        return 0


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("script", "name"), [("storage_cloud.py", "my-tune-exp"), ("storage_bucket.py", "experiment_name")]
)
def test_killed_and_its_machine_lost_it_goes_on_from_the_bucket(script, name, tmp_path, bucket, undisturbed):
    uri, keeps_all = f"{bucket.uri}/{name}", script != "storage_cloud.py"
    at_least: list[int] = []
    arguments = [bucket.uri, str(tmp_path / "results")] if script == "storage_cloud.py" else [bucket.uri]
    for _ in range(2):
        with start(script, *arguments, cwd=tmp_path) as killed:
            at_least.append(wait_for_copy(uri, max(at_least, default=0) + 12, killed) + 1)
            killed.send_signal(signal.SIGKILL)
        assert killed.returncode == -signal.SIGKILL
        shutil.rmtree(tmp_path / "results")
        script, arguments = "storage_resume.py", [uri]
    run(script, *arguments, cwd=tmp_path)

    left = Left(tmp_path / "results" / name)
    assert [row["training_iteration"] for row in left.rows] == list(range(1, ITERATIONS + 1))
    # It goes on behind the newest checkpoint that the bucket has, and trains nothing before it again. That may be one
    # which was retired on the lost machine already, for one that was there only.
    changes = [
        row["training_iteration"]
        for before, row in zip(left.rows, left.rows[1:], strict=False)
        if row["pid"] != before["pid"]
    ]
    assert len(changes) == len(at_least)
    assert all(change >= least for change, least in zip(changes, at_least, strict=True))
    assert left.aucs == undisturbed.aucs
    kept = asyncio.run(check_results(uri, tmp_path / "best", undisturbed))
    # What a lost machine has uploaded last may be there too: the state in the bucket does not know of it.
    assert set(kept.values()) <= set(bucket.steps())
    assert bucket.steps(of_the_last_driver=True) == [
        kept[each] for each in sorted(kept) if each >= changes[-1]
    ]
    if keeps_all:  # but for those that were on the lost machines only
        assert set(range(changes[-1], ITERATIONS + 1)) <= set(kept)
    else:
        assert sorted(kept) == undisturbed.checkpoints
    trial = f"path/{name}/{left.trial.name}"
    rows = [json.loads(line) for line in bucket.read(f"{trial}/result.json").splitlines()]
    assert rows == left.rows
    assert json.loads(bucket.read(f"{trial}/params.json")) == {}


async def check_results(uri: str, to: Path, undisturbed: Left) -> dict[int, int]:
    """What comes after needs nothing but the bucket. The steps of the checkpoints by iteration.

    They differ where the step of an iteration was that of a checkpoint which was lost.
    """
    [result] = await ResultGrid.load(uri)
    assert result.status is TrialStatus.TERMINATED
    best, metrics = max(result.best_checkpoints, key=lambda pair: pair[1]["max-auc"])
    assert metrics["max-auc"] == max(undisturbed.aucs)
    files = await result.fetch_checkpoint(to, best)
    model = await asyncio.to_thread((files / "model.json").read_text, "ascii")
    assert json.loads(model)["iteration"] == metrics["training_iteration"]
    assert [row["max-auc"] for row in await result.history()] == undisturbed.aucs
    return {
        metrics["training_iteration"]: made.step for made, metrics in result.best_checkpoints if made.step
    }


@pytest.mark.timeout(120)
def test_a_failed_trial_is_resumed_from_the_bucket(tmp_path, bucket, undisturbed):
    uri = f"{bucket.uri}/my-tune-exp"
    with start("storage_cloud.py", bucket.uri, tmp_path / "results", cwd=tmp_path) as process:
        wait_for_copy(uri, 15, process)
        for worker in psutil.Process(process.pid).children():
            worker.kill()
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "1 failed" in output
    shutil.rmtree(tmp_path / "results")
    [failed] = asyncio.run(ResultGrid.load(uri))
    assert failed.status is TrialStatus.ERROR
    assert "SIGKILL" in str(failed.error)
    run("storage_resume.py", uri, cwd=tmp_path)
    left = Left(tmp_path / "results" / "my-tune-exp")
    assert [row["training_iteration"] for row in left.rows] == list(range(1, ITERATIONS + 1))
    assert left.aucs == undisturbed.aucs
    assert bucket.steps() == undisturbed.checkpoints


@pytest.mark.timeout(150)
def test_on_a_network_filesystem_it_goes_on_where_that_is_mounted_too(tmp_path, undisturbed):
    with juicefs_mounts() as (here, there):
        left = Left(here / "experiment_name")
        with start("storage_shared.py", here, cwd=tmp_path) as killed:
            for _ in until(left, 15):
                assert killed.poll() is None, killed.communicate()[0]
            killed.send_signal(signal.SIGKILL)
        newest = asyncio.run(newest_checkpoint(there / "experiment_name"))
        assert newest.step is not None
        assert 14 <= newest.step < ITERATIONS
        run("storage_resume.py", there / "experiment_name", cwd=tmp_path)
        left = Left(there / "experiment_name")
        assert [row["training_iteration"] for row in left.rows] == list(range(1, ITERATIONS + 1))
        assert len({row["pid"] for row in left.rows[: newest.step]}) == 1
        assert left.aucs == undisturbed.aucs
        assert left.checkpoints == list(range(1, ITERATIONS + 1))
