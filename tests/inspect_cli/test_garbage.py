"""`gc` on real copies, with things put there that nothing needs."""

from __future__ import annotations

import pytest

from asynctune import ExperimentStore, SyncConfig
from asynctune.clock import SystemClock
from asynctune.errors import ConfigError
from asynctune.inspect.garbage import find_garbage
from asynctune.storage.base import ObjectStorage
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.memory_bucket import IN_ORDER
from asynctune.storage.uri import open_storage
from asynctune.storage.values import Upload
from tests.inspect_cli.stores import ask, build, build_here, show

SEGMENT = ".asynctune/seg-1-0123456789ab-7"


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")


class Later(SystemClock):
    """A clock that is ahead."""

    def __init__(self, hours: float) -> None:
        super().__init__()
        self._ahead_s = hours * 3600

    def time(self) -> float:
        return super().time() + self._ahead_s


@pytest.fixture
async def copy(tmp_path, bucket):
    """The URI of a copy, its trials, and its storage."""
    ids = await build_here(tmp_path / "digits", bucket)
    storage = await open_storage(f"{bucket}/digits")
    yield f"{bucket}/digits", ids, storage
    await storage.aclose()


async def leak(storage: ObjectStorage, trial_id: str) -> None:
    await storage.put(SEGMENT, bytes(30))
    await storage.put("gone/checkpoint_000001/weights.bin", bytes(2000))
    await storage.put("gone/checkpoint_000001/.manifest.json", bytes(200))
    await storage.put("gone/result.json", bytes(100))
    await storage.put(f"{trial_id}/checkpoint_000001-9.9/weights.bin", bytes(50))
    await storage.put("holidays.jpg", bytes(7))


async def begin(storage: ObjectStorage, key: str) -> Upload:
    size_bytes = storage.upload_rules.min_part_bytes + 1
    upload = await storage.begin_upload(
        key, size_bytes=size_bytes, part_bytes=storage.upload_rules.min_part_bytes
    )
    assert isinstance(upload, Upload)
    await storage.put_part(upload, 1, bytes(upload.part_bytes))
    return upload


async def test_what_nothing_needs_is_listed_and_stays(copy):
    location, ids, storage = copy
    await leak(storage, ids[0])
    upload = await begin(storage, "gone/checkpoint_000001/big.bin")
    before = [info async for info in storage.list_objects()]
    report = await find_garbage(location, clock=Later(2))
    # what a close leaves of the state is younger than ten minutes, and listed too
    own = [each for each in report.leaks if each.name.startswith(".asynctune/") and each.name != SEGMENT]
    assert {each.kind for each in own} <= {"state"}
    listed = {
        (each.kind, each.name): (each.objects, each.size_bytes) for each in report.leaks if each not in own
    }
    assert listed == {
        ("upload", "gone/checkpoint_000001/big.bin"): (1, upload.part_bytes),
        ("checkpoint", "gone/checkpoint_000001/"): (2, 2200),
        ("results", "gone/"): (1, 100),
        ("checkpoint", f"{ids[0]}/checkpoint_000001-9.9/"): (1, 50),
        ("state", SEGMENT): (1, 30),
    }
    sizes = [each.size_bytes or 0 for each in report.leaks]
    assert sizes == sorted(sizes, reverse=True)
    assert (report.leaks_total, report.size_bytes) == (len(sizes), sum(sizes))
    assert (report.other_objects, report.other_bytes) == (1, 7)
    assert (report.problems, report.uploads_under_way) == ((), 0)
    assert [info async for info in storage.list_objects()] == before
    assert len([each async for each in storage.list_uploads()]) == 1
    limited = await find_garbage(location, 2, Later(2))
    assert limited.leaks == report.leaks[:2]
    assert (limited.leaks_total, limited.size_bytes) == (report.leaks_total, report.size_bytes)


async def test_what_is_young_is_not_listed(copy):
    location, ids, storage = copy
    await leak(storage, ids[0])
    await begin(storage, "gone/checkpoint_000001/big.bin")
    for hours in (0, 0.9):
        report = await find_garbage(location, clock=Later(hours))
        assert (report.leaks, report.size_bytes, report.uploads_under_way) == ((), 0, 0)


async def test_what_is_recorded_is_never_listed(copy):
    location, _, _ = copy
    report = await find_garbage(location, clock=Later(1000))
    assert [each.kind for each in report.leaks if each.kind != "state"] == []
    async with await ExperimentStore.open(location, mode="read") as store:
        assert store.copy_source is not None
        assert store.copy_source.mirrored is not None
        named = {ref.key for ref in store.copy_source.mirrored.current.refs}
    assert not named & {each.name for each in report.leaks}


async def test_uploads_of_another_experiment_below_and_of_the_users_are_not_listed(copy):
    location, _, storage = copy
    await begin(storage, "inner/t/checkpoint_000001/model.bin")
    await begin(storage, "notes/movie.mp4")
    await begin(storage, "gone/result.json")
    report = await find_garbage(location, clock=Later(2))
    assert [each.name for each in report.leaks if each.kind == "upload"] == ["gone/result.json"]
    assert report.uploads_under_way == 0


async def test_an_upload_that_somebody_goes_on_with_is_counted_only(copy):
    location, ids, storage = copy
    await begin(storage, f"{ids[0]}/checkpoint_000001/weights.bin")  # that one is in the bucket
    report = await find_garbage(location, clock=Later(2))
    assert [each.name for each in report.leaks if each.kind == "upload"] == [
        f"{ids[0]}/checkpoint_000001/weights.bin"
    ]


async def test_a_driver_goes_on_with_its_result_files(tmp_path, bucket):
    async with ExperimentStore.open(tmp_path / "digits", sync_config=SyncConfig(upload_dir=bucket)) as store:
        store.add_trial({}, "t")
        await store.flush(mirror=True)
        storage = await open_storage(f"{bucket}/digits")
        await begin(storage, "t/result.json")
        report = await find_garbage(f"{bucket}/digits", clock=Later(2))
        assert (report.uploads_under_way, [each.kind for each in report.leaks]) == (1, [])
        await storage.aclose()


async def test_a_storage_that_lists_no_uploads_is_said_to_be_one(tmp_path, bucket, monkeypatch):
    await build_here(tmp_path / "digits", bucket)
    named = MemoryStorage.named

    def in_order(name: str, prefix: str = "") -> MemoryStorage:
        return MemoryStorage(named(name)._bucket, prefix, rules=IN_ORDER, name=name)

    monkeypatch.setattr(MemoryStorage, "named", in_order)
    report = await find_garbage(f"{bucket}/digits", clock=Later(2))
    assert not report.uploads_listed


async def test_the_experiment_itself_is_refused_with_where_its_copy_is(tmp_path, bucket):
    await build_here(tmp_path / "digits", bucket)
    with pytest.raises(ConfigError, match=f"which is at {bucket}/digits"):
        await find_garbage(str(tmp_path / "digits"))
    await build_here(tmp_path / "alone")
    with pytest.raises(ConfigError, match="and has none"):
        await find_garbage(str(tmp_path / "alone"))


def test_the_command_finds_nothing_in_what_was_just_made(tmp_path, bucket, capsys):
    build(tmp_path / "digits", bucket)
    code, document = ask(capsys, f"{bucket}/digits", "gc")
    assert (code, document["kind"], document["leaks"]) == (0, "gc", [])
    assert (document["objects"], document["size_bytes"], document["older_than_s"]) == (0, 0, 3600)
    code, text, errors = show(capsys, "gc", f"{bucket}/digits")
    assert (code, errors) == (0, "")
    assert text == f"nothing older than 1h00m was left behind in {bucket}/digits\n"
    assert show(capsys, tmp_path / "digits", "gc")[0] == 2


def test_a_directory_that_is_a_copy_is_looked_through_too(tmp_path, capsys, monkeypatch):
    (tmp_path / "copies").mkdir()
    build(tmp_path / "digits", str(tmp_path / "copies"))
    (tmp_path / "copies" / "digits" / "gone").mkdir()
    (tmp_path / "copies" / "digits" / "gone" / "result.json").write_text("{}")
    monkeypatch.setattr("asynctune.inspect.garbage.SystemClock", lambda: Later(2))
    code, text, _ = show(capsys, tmp_path / "copies" / "digits", "gc", "--limit", "0")
    assert code == 0
    assert "gone/" in text
    assert "nothing was deleted; by hand, best while no driver is at work:\n" in text
    command = f"  rm {tmp_path}/copies/digits/NAME\n"
    assert command in text
    monkeypatch.setenv("COLUMNS", "40")
    assert command in show(capsys, tmp_path / "copies" / "digits", "gc")[1], "it can be copied in one piece"
