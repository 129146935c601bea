"""The command as a process of its own on a bucket of a `moto_server`, with credentials from the environment."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

import pytest

from asynctune import ExperimentStore, SyncConfig, TrialStatus
from tests.inspect_cli.stores import REPOSITORY, files
from tests.storage.moto import make_bucket, moto_server

pytest.importorskip("moto")
pytest.importorskip("aiobotocore")

COMMAND = [sys.executable, "-m", "asynctune.inspect"]
KEY, SECRET = "AKIATESTKEY", "a-very-secret-word"


@pytest.fixture(scope="module")
def endpoint():
    with moto_server() as url:
        make_bucket(url, "tunes")
        yield url


@pytest.fixture
def environ(endpoint, tmp_path, monkeypatch):
    """What the command is run with; this process has the same credentials."""
    given = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return os.environ | given


async def make(path, upload_dir: str) -> None:
    async with ExperimentStore.open(path, sync_config=SyncConfig(upload_dir=upload_dir)) as store:
        for number in range(3):
            trial_id = store.add_trial({"lr": number}, f"t{number}").trial_id
            store.set_status(trial_id, TrialStatus.RUNNING)
            store.report(trial_id, {"loss": 1 / (number + 1)})
            await store.save_checkpoint(trial_id, files(path.parent / "made", 1), move=True)
            store.set_status(trial_id, TrialStatus.TERMINATED)


def run(environ, *args: object) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [*COMMAND, *map(str, args)], cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False
    )
    for secret in (KEY, SECRET):
        assert secret not in ended.stdout + ended.stderr
    return ended


def test_the_commands_answer_from_the_bucket(environ, tmp_path):
    asyncio.run(make(tmp_path / "digits", "s3://tunes/some/where"))
    location = "s3://tunes/some/where/digits"
    for command in ("checkpoints", "verify", "gc"):
        ended = run(environ, location, command, "--json")
        document = json.loads(ended.stdout)
        assert (ended.returncode, ended.stderr, document["problems"]) == (0, "", []), command
        assert document["experiment"]["location"] == location
        assert document["experiment"]["writer"]["state"] == "closed"
        assert abs(document["experiment"]["last_change_at"] - time.time()) < 3600
        if command == "verify":
            assert (document["intact"], document["checkpoints"], document["files"]) == (True, 3, 6)
        if command == "checkpoints":
            assert [each["presence"] for each in document["checkpoints"]] == ["in_bucket"] * 3
    listed = run(environ, "s3://tunes/some/where")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.splitlines()[1].split()[:2] == ["digits", "closed"]


@pytest.mark.parametrize(
    ("location", "changed", "code", "said"),
    [
        ("s3://no-such-bucket/x/digits", {}, 3, "there is no bucket"),
        (
            "s3://tunes/digits",
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            1,
            "no credentials",
        ),
    ],
    ids=["no bucket", "no credentials"],
)
def test_what_goes_wrong_is_one_line(environ, location, changed, code, said):
    environ = {name: value for name, value in (environ | changed).items() if value is not None}
    ended = run(environ, location)
    assert ended.returncode == code
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
