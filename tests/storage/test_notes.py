"""Notes of uploads: whole or not there, of this user alone, and no secret anywhere else."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from asynctune.errors import StorageError
from asynctune.packing import pack
from asynctune.storage.notes import UploadNotes
from asynctune.storage.values import IfVersion, OnlyCreate, Upload
from asynctune.testing import FaultyFiles

PLACE = "s3://bucket/experiment"


def upload_of(key: str = "a/b", upload_id: str = "a secret", **more) -> Upload:
    return Upload(key=key, upload_id=upload_id, size_bytes=10, part_bytes=4, crc32c=7, **more)


@pytest.fixture
def files():
    return FaultyFiles()


@pytest.fixture
def notes(tmp_path, files):
    made = UploadNotes(str(tmp_path / "uploads"), location=PLACE, files=files)
    yield made
    made.close()


@pytest.mark.parametrize("condition", [OnlyCreate(), IfVersion("v")], ids=["create", "version"])
async def test_another_process_finds_what_was_written_down(notes, tmp_path, condition):
    upload = upload_of(condition=condition)
    assert await notes.find("a/b") is None
    assert await notes.every() == []
    await notes.remember(upload)
    other = UploadNotes(str(tmp_path / "uploads"), location=PLACE)
    assert await other.find("a/b") == upload
    assert await other.find("a") is None
    assert await other.every() == [upload]
    await other.forget("a/b")
    await other.forget("a/b")
    assert await notes.find("a/b") is None
    assert os.listdir(tmp_path / "uploads") == []
    other.close()


async def test_the_newest_one_of_a_key_counts(notes):
    await notes.remember(upload_of())
    await notes.remember(upload_of(upload_id="another"))
    await notes.remember(upload_of("c"))
    found = await notes.every()
    assert sorted((upload.key, upload.upload_id) for upload in found) == [
        ("a/b", "another"),
        ("c", "a secret"),
    ]


async def test_an_upload_to_another_place_is_none_to_this(notes, tmp_path):
    await notes.remember(upload_of())
    other = UploadNotes(str(tmp_path / "uploads"), location="s3://other/experiment")
    assert await other.find("a/b") is None
    assert await other.every() == []
    await other.remember(upload_of(upload_id="there"))
    await other.forget("a/b")
    found = await notes.find("a/b")
    assert found is not None
    assert found.upload_id == "a secret"
    other.close()


async def test_only_this_user_may_read_them(notes, tmp_path):
    before = os.umask(0)
    try:
        await notes.remember(upload_of())
    finally:
        os.umask(before)
    directory = tmp_path / "uploads"
    (name,) = os.listdir(directory)
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(directory / name).st_mode) == 0o600
    assert "secret" not in name


async def test_others_may_keep_files_beside(notes, tmp_path):
    await notes.remember(upload_of())
    for name in ("snap-1", "note-1", f"note-{'0' * 32}.new"):
        (tmp_path / "uploads" / name).write_bytes(b"x")
    assert await notes.every() == [upload_of()]
    await notes.forget("a/b")
    assert len(os.listdir(tmp_path / "uploads")) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        pack([1]),
        pack({"location": PLACE}),
        pack({"location": PLACE, "upload": {}}),
        pack({"location": PLACE, "upload": 1}),
        pack({"location": PLACE, "upload": upload_of("other").to_record()}),
        bytes(1 << 20),
    ],
    ids=["empty", "no msgpack", "a list", "without upload", "no upload", "a number", "of another", "long"],
)
async def test_what_is_no_note_is_none(notes, tmp_path, content):
    await notes.remember(upload_of())
    (path,) = (tmp_path / "uploads").iterdir()
    path.write_bytes(content)
    assert await notes.find("a/b") is None
    await notes.remember(upload_of())
    assert await notes.find("a/b") == upload_of()


async def test_a_note_that_could_not_be_written_is_not_there(notes, files, tmp_path):
    """At whichever step it fails, and the next attempt is not in its way."""
    await notes.remember(upload_of(upload_id="before"))
    counted = len(files.log)
    await notes.remember(upload_of(upload_id="before"))
    steps = len(files.log) - counted
    assert steps >= 6
    for applied in (False, True):
        for nth in range(1 + applied, steps + 1):  # the first removes what is not there
            files.fail(errno.EIO, nth=nth, applied=applied)
            with pytest.raises(StorageError) as caught:
                await notes.remember(upload_of(upload_id="after"))
            assert "after" not in str(caught.value)
            files.heal()
            found = await notes.find("a/b")
            assert found is not None
            assert found.upload_id in ("before", "after")
            assert len(await notes.every()) == 1
            await notes.remember(upload_of(upload_id="before"))
            assert len(os.listdir(tmp_path / "uploads")) == 1


async def test_what_a_killed_process_left_is_not_in_the_way(notes, tmp_path):
    await notes.remember(upload_of())
    (path,) = (tmp_path / "uploads").iterdir()
    path.rename(f"{path}.new")
    assert await notes.find("a/b") is None
    await notes.remember(upload_of(upload_id="after"))
    assert [upload.upload_id for upload in await notes.every()] == ["after"]
    assert len(os.listdir(tmp_path / "uploads")) == 1


async def test_a_note_is_synced_before_it_has_its_name(notes, files, tmp_path):
    await notes.remember(upload_of())
    kinds = [operation.kind for operation in files.log]
    order = [kinds.index(kind) for kind in ("write", "sync", "close", "rename")]
    assert order == sorted(order)
    assert kinds.index("sync_dir", kinds.index("rename")) > 0


async def test_a_missing_parent_is_not_made(tmp_path):
    notes = UploadNotes(str(tmp_path / "missing" / "uploads"), location=PLACE)
    assert await notes.find("a") is None
    with pytest.raises(StorageError):
        await notes.remember(upload_of())
    assert os.listdir(tmp_path) == []
    notes.close()
