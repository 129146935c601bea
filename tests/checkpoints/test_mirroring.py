from __future__ import annotations

import shutil

import pytest

from asynctune.checkpoints import mirroring
from asynctune.checkpoints.mirroring import BucketCopies
from asynctune.checkpoints.verify import verify_directory
from asynctune.errors import AuthenticationError, NotFoundError, StorageError, UploadError
from asynctune.files import LocalFiles
from asynctune.storage.local import LocalStorage
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.memory_bucket import MemoryBucket, held_of
from asynctune.storage.transfer import Transfer
from asynctune.storage.values import Always
from asynctune.testing import FaultyStorage
from asynctune.trial import MANIFEST_FILE
from tests.checkpoints.buckets import RULES, BucketRoom, content, wrong_with
from tests.checkpoints.fakes import TREE, read_tree

PLACE = "t/checkpoint_000001"


@pytest.fixture
async def room(tmp_path):
    """A room with one committed checkpoint, whose bucket nobody works at."""
    made = BucketRoom(tmp_path / "exp", deleting=False)
    await made.save("t")
    yield made
    await made.catalog.aclose()
    made.copies.close()
    made.transfer.close()


async def put(room: BucketRoom, *, new: bool = False) -> int:
    record = room.record(1)
    return await room.copies.put_tree(
        record, str(room.path / PLACE), new=new, progress=room.__dict__.setdefault("told", []).append
    )


def puts(storage: FaultyStorage) -> list[str]:
    """Keys in the order in which they became objects."""
    return [call.key for call in storage.log if call.operation in {"put", "complete_upload"}]


async def test_the_same_tree_with_the_manifest_last(room):
    sent = await put(room, new=True)
    record = room.record(1)
    assert room.names() == sorted(f"{PLACE}/{name}" for name in [*TREE, MANIFEST_FILE])
    assert wrong_with(record, room.held) is None
    assert puts(room.storage)[-1] == f"{PLACE}/{MANIFEST_FILE}"
    manifest = (room.path / PLACE / MANIFEST_FILE).read_bytes()
    assert content(room.held, f"{PLACE}/{MANIFEST_FILE}") == manifest
    assert sent == sum(map(len, TREE.values())) + len(manifest) == sum(room.told)
    assert (
        room.storage.count("list_objects") == room.storage.count("head") == 0
    )  # a new name: nothing to look for
    assert not room.held.uploads


async def test_what_is_there_is_not_sent_again(room):
    await put(room, new=True)
    room.storage.log.clear()
    assert await put(room) == 0
    assert puts(room.storage) == []


async def test_only_what_is_missing_or_wrong_is_sent(room):
    await put(room, new=True)
    await room.storage.storage.delete([f"{PLACE}/z.json", f"{PLACE}/{MANIFEST_FILE}"])
    await room.storage.storage.put(f"{PLACE}/a/b/deep.txt", b"DEEP")
    await room.storage.storage.put(f"{PLACE}/a/other", b"longer")
    room.storage.log.clear()
    await put(room)
    assert sorted(puts(room.storage)) == sorted(
        f"{PLACE}/{name}" for name in ("a/b/deep.txt", "a/other", "z.json", MANIFEST_FILE)
    )
    assert wrong_with(room.record(1), room.held) is None


async def test_where_no_checksum_is_kept_the_object_is_read(room, monkeypatch):
    await put(room, new=True)
    await room.storage.storage.put(f"{PLACE}/a/b/deep.txt", b"DEEP")
    inner = MemoryStorage._info
    monkeypatch.setattr(
        MemoryStorage, "_info", lambda self, info: type(info)(*(*_fields(inner(self, info))[:3], None, 0.0))
    )
    room.storage.log.clear()
    await put(room)
    assert puts(room.storage) == [f"{PLACE}/a/b/deep.txt"]


def _fields(info):
    return info.key, info.size_bytes, info.version


async def test_after_a_failure_the_rest_is_sent(room):
    room.storage.fail(StorageError("no", retryable=False), on="put", nth=3)
    with pytest.raises(StorageError, match="no"):
        await put(room, new=True)
    assert f"{PLACE}/{MANIFEST_FILE}" not in room.names()
    before = set(room.names())
    room.storage.log.clear()
    await put(room)
    assert not before.intersection(puts(room.storage))
    assert wrong_with(room.record(1), room.held) is None


async def test_what_is_there_of_many_unfinished_ones_is_not_remembered_for_ever(room, monkeypatch):
    monkeypatch.setattr(mirroring, "_REMEMBERED", 2)
    for _ in range(3):
        await room.save("t")
    room.storage.fail(AuthenticationError("no"), on="complete_upload", nth=2, lasting=True)
    records = list(room.catalog._context.records.all("t"))
    for record in records:
        with pytest.raises(AuthenticationError):
            await room.copies.put_tree(
                record, str(room.path / record.directory), new=True, progress=lambda _: None
            )
    assert list(room.copies._confirmed) == [record.directory for record in records[-2:]]
    room.storage.heal()
    for record in records:
        await room.copies.put_tree(
            record, str(room.path / record.directory), new=False, progress=lambda _: None
        )
        assert wrong_with(record, room.held) is None
    assert not room.copies._confirmed


async def test_a_directory_that_is_not_what_was_recorded_is_refused(room):
    where = room.path / PLACE
    (where / "z.json").write_bytes(b"[]")
    with pytest.raises(StorageError):
        await put(room, new=True)
    assert f"{PLACE}/{MANIFEST_FILE}" not in room.names()
    manifest = (where / MANIFEST_FILE).read_bytes()
    (where / MANIFEST_FILE).write_bytes(manifest + b" ")
    with pytest.raises(UploadError, match="is not the recorded one"):
        await put(room)
    shutil.rmtree(where)
    with pytest.raises(UploadError, match="cannot be read"):
        await put(room)
    assert all(MANIFEST_FILE not in key for key in room.names())


async def test_an_upload_that_nobody_knows_is_aborted(room):
    storage = room.storage.storage
    unknown = await storage.begin_upload(f"{PLACE}/model.bin", size_bytes=700, part_bytes=256)
    other = await storage.begin_upload("u/checkpoint_000001/model.bin", size_bytes=700, part_bytes=256)
    await put(room)
    assert set(room.held.uploads) == {other.upload_id} != {unknown.upload_id}


async def test_the_note_of_an_upload_that_was_completed_is_forgotten(room):
    """Its driver was killed between the completion and that."""
    room.storage.call(_dies, on="complete_upload", nth=2)
    with pytest.raises(RuntimeError):
        await put(room, new=True)
    storage, key = room.storage.storage, f"{PLACE}/model.bin"
    assert await storage.head(key) is not None
    begun = await storage.begin_upload(key, size_bytes=700, part_bytes=256)
    notes = room.copies._notes
    await notes.remember(begun)
    await put(room)
    assert await notes.every() == []
    assert not room.held.uploads


def _dies(_call: object) -> None:
    raise RuntimeError


async def test_it_is_deleted_with_the_manifest_first_and_nothing_beside_it(room):
    await put(room, new=True)
    beside = [f"{PLACE}/mine.txt", "t/checkpoint_0000010/z.json", "t/result.json"]
    for key in beside:
        await room.storage.storage.put(key, b"stays")
    seen = []
    room.storage.call(
        lambda call: seen.append(call.key) if call.operation == "delete" else None, lasting=True
    )
    record = room.record(1)
    await room.copies.delete_tree(record)
    assert seen[0] == f"{PLACE}/{MANIFEST_FILE}"
    assert len(seen) == 2
    assert room.names() == sorted(beside)
    await room.copies.delete_tree(record)  # again, as after a crash


async def test_what_was_never_finished_is_deleted_with_its_uploads(room):
    """The id of a GCS session stands in the notes alone; on S3 it can be listed."""
    room.storage.fail(on="put_part", nth=2, lasting=True)
    with pytest.raises(StorageError):
        await put(room, new=True)
    assert len(room.held.uploads) == 1
    room.storage.heal()
    await room.copies.delete_tree(room.record(1))
    assert not room.held.uploads
    assert not room.held.objects
    assert not list((room.path / ".asynctune/uploads").iterdir())


async def test_it_comes_back_verified(room, tmp_path):
    await put(room, new=True)
    (to := tmp_path / "back").mkdir()
    report = await room.copies.fetch_tree(room.record(1), str(to))
    assert report.ok
    assert report.path == f"{room.storage.location}/{PLACE}"
    assert read_tree(to) == TREE
    assert not (to / MANIFEST_FILE).exists()
    assert report.manifest is not None


async def test_empty_directories_come_back_too(tmp_path):
    source = tmp_path / "src"
    (source / "empty/deeper").mkdir(parents=True)
    (source / "file").write_bytes(b"x")
    async with BucketRoom(tmp_path / "exp") as room:
        await room.save("t", source)
        await room.catalog.drain()
        (to := tmp_path / "back").mkdir()
        assert (await room.copies.fetch_tree(room.record(1), str(to))).ok
        assert (to / "empty/deeper").is_dir()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda held: held.remove(f"{PLACE}/{MANIFEST_FILE}"), ".manifest.json: is missing"),
        (lambda held: held.remove(f"{PLACE}/z.json"), "z.json: is missing"),
        (lambda held: _replace(held, f"{PLACE}/z.json", b"[]"), "its checksum is"),
        (lambda held: _replace(held, f"{PLACE}/model.bin", b"x"), "it has 1 bytes, not 700"),
        (lambda held: _replace(held, f"{PLACE}/{MANIFEST_FILE}", b"{}"), "is not the recorded one"),
    ],
    ids=["no-manifest", "no-file", "content", "size", "manifest"],
)
async def test_a_damaged_copy_is_an_outcome(room, tmp_path, change, problem):
    await put(room, new=True)
    change(room.held)
    (to := tmp_path / "back").mkdir()
    report = await room.copies.fetch_tree(room.record(1), str(to))
    assert not report.intact
    assert problem in str(report)


def _replace(held: MemoryBucket, key: str, data: bytes) -> None:
    held.store(key, held_of([data]), Always(), 0.0)


async def test_a_bucket_that_cannot_be_asked_is_an_error(room, tmp_path):
    await put(room, new=True)
    (to := tmp_path / "back").mkdir()
    room.storage.fail(on="get", nth=2, lasting=True)
    with pytest.raises(StorageError):
        await room.copies.fetch_tree(room.record(1), str(to))
    room.storage.heal()
    room.storage.fail(on="read")
    with pytest.raises(StorageError):
        await room.copies.fetch_tree(room.record(1), str(to))
    with pytest.raises(NotFoundError):
        await room.storage.read("nothing")
    room.check()


async def test_a_directory_as_the_bucket(room, tmp_path):
    """It keeps no checksums, and what is there is recognized by reading it."""
    (root := tmp_path / "bucket").mkdir()
    storage = FaultyStorage(LocalStorage(str(root)))
    transfer = Transfer(storage)
    copies = BucketCopies(storage, transfer)
    record, path = room.record(1), str(room.path / PLACE)
    told: list[int] = []
    await copies.put_tree(record, path, new=True, progress=told.append)
    assert read_tree(root / PLACE) == TREE
    assert (root / PLACE / MANIFEST_FILE).read_bytes() == (room.path / PLACE / MANIFEST_FILE).read_bytes()
    storage.log.clear()
    assert await copies.put_tree(record, path, new=False, progress=told.append) == 0
    assert puts(storage) == []
    (to := tmp_path / "back").mkdir()
    assert (await copies.fetch_tree(record, str(to))).ok
    assert read_tree(to) == TREE
    await copies.delete_tree(record)
    assert not [path for path in root.rglob("*") if path.is_file() and PLACE in str(path)]
    copies.close()
    transfer.close()
    await storage.aclose()


async def test_the_copy_of_a_whole_directory_verifies_like_the_original(room, tmp_path):
    await put(room, new=True)
    (to := tmp_path / "back").mkdir()
    record = room.record(1)
    await room.copies.fetch_tree(record, str(to))
    shutil.copy(room.path / PLACE / MANIFEST_FILE, to / MANIFEST_FILE)
    context = room.catalog._context
    report = await verify_directory(
        str(to), record.manifest_sha256, files=LocalFiles(), threads=context.threads
    )
    assert report.ok
    assert RULES.max_put_bytes > len(TREE["model.bin"])
