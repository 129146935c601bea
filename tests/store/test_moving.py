"""A copy that is kept in another place than before: which place records speak of, and what only the former has."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from asynctune.config import SyncConfig
from asynctune.errors import StorageError
from asynctune.files import LocalFiles
from asynctune.packing import pack
from asynctune.store.moving import COPY, left_behind, was_moved
from asynctune.store.store import ExperimentStore
from asynctune.trial import Checkpoint

FORMER, PLACE = "s3://bucket/former/exp", "s3://bucket/now/exp"


def records(path: Path, known: str | None, *kinds: str) -> dict[str, bytes]:
    """Of a state with a checkpoint of each kind; one that is `here` has its directory below `path`."""
    made = {"trial/t": b"", "checkpoint/t/99": pack({"v": 99})}
    for step, kind in enumerate(kinds, 1):
        value = {
            "v": 1,
            "dir": f"t/checkpoint_{step:06d}",
            "sha256": "0" * 64,
            "files": b"\x80",
            "size": 0,
            "committed_at": 1.0,
            "metrics": {},
            "mirrored": kind != "unsent",
            "state": "deleting" if kind == "retired" else "live",
            "epoch": 1,
            "attempt": 0,
            "timeline": {},
        }
        made[f"checkpoint/t/{step}"] = pack(value)
        if kind == "here":
            (path / "t" / f"checkpoint_{step:06d}").mkdir(parents=True)
            (path / "t" / f"checkpoint_{step:06d}" / ".manifest.json").touch()
    return made if known is None else {**made, COPY: pack(known)}


@pytest.mark.parametrize(("known", "moved"), [(None, False), (PLACE, False), (FORMER, True)])
def test_whether_records_speak_of_another_place(known, moved):
    assert was_moved(known, PLACE) is moved


@pytest.mark.parametrize("known", [None, PLACE])
def test_in_the_same_place_nothing_is_left_behind(tmp_path, known):
    assert left_behind(records(tmp_path, known, "away"), str(tmp_path), PLACE, LocalFiles()) is None


def test_only_what_is_live_and_not_on_this_disk_is_left_behind(tmp_path):
    kinds = ("here", "unsent", "retired")
    assert left_behind(records(tmp_path, FORMER, *kinds), str(tmp_path), PLACE, LocalFiles()) is None
    (tmp_path / "other").mkdir()
    path = tmp_path / "other"
    said = left_behind(records(path, FORMER, "away", *kinds, "away"), str(path), PLACE, LocalFiles())
    assert said is not None
    assert f"2 checkpoints of {path} are only in {FORMER}" in str(said)
    assert [record.step for record in said.records] == [1, 5]


@pytest.mark.parametrize("name", ["exp", "renamed"])
def test_the_way_back_to_the_former_place_is_one_that_leads_there(tmp_path, name):
    path = tmp_path / name
    said = left_behind(records(path, FORMER, "away"), str(path), PLACE, LocalFiles())
    assert said is not None
    way = "sync_config=SyncConfig(upload_dir='s3://bucket/former')"
    if name == "renamed":  # with this upload_dir its copy would be at s3://bucket/former/renamed
        way += f", when the directory was renamed to {tmp_path / 'exp'}"
    assert said.again == way
    assert str(said).endswith(f"; or go on with that one ({way})")


class Copies:
    """Knows which checkpoints are complete there."""

    def __init__(self, *complete: int, error: Exception | None = None) -> None:
        self.complete = complete
        self.error = error
        self.at_once = self.most = 0

    async def is_complete(self, record):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        return record.step in self.complete


async def test_what_somebody_has_copied_there_is_not_left_behind(tmp_path):
    known = records(tmp_path, FORMER, *["away"] * 40)
    left = await asyncio.to_thread(left_behind, known, str(tmp_path), PLACE, LocalFiles())
    assert left is not None
    copies: Any = Copies(*range(1, 41))
    assert await left.lacked_by(copies) is None
    assert 1 < copies.most <= 16
    copies = Copies(*range(1, 39))
    lacking = await left.lacked_by(copies)
    assert lacking is not None
    assert sorted(record.step for record in lacking.records) == [39, 40]
    assert str(lacking).startswith(f"2 checkpoints of {tmp_path} are only in {FORMER}")
    copies = Copies(error=StorageError("away", retryable=True))
    with pytest.raises(StorageError, match="away"):
        await left.lacked_by(copies)


def test_a_disk_that_cannot_be_read_is_an_error(tmp_path):
    class Refusing(LocalFiles):
        def exists(self, path):
            raise PermissionError(13, "no", path)

    with pytest.raises(StorageError, match="look through"):
        left_behind(records(tmp_path, FORMER, "away"), str(tmp_path), PLACE, Refusing())


async def test_the_place_is_recorded(location, tmp_path):
    (tmp_path / "copies").mkdir()
    config = SyncConfig(upload_dir=tmp_path / "copies")
    async with ExperimentStore.open(location, sync_config=config) as store:
        store.add_trial({}, "t")
        await store.save_checkpoint("t", Checkpoint.from_dict({"x": 1}))
        assert store._records.get(COPY) == f"{tmp_path}/copies/exp"
