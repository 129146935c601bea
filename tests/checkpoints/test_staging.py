from __future__ import annotations

import asyncio
import errno
import os
import pickle
import stat
from pathlib import Path

import pytest

from asynctune.checkpoints import copying
from asynctune.checkpoints.manifest import Manifest
from asynctune.checkpoints.staging import StagedCheckpoint, stage_for_adoption
from asynctune.errors import ConfigError, StorageError
from asynctune.files import LocalFiles
from tests.checkpoints.fakes import TREE, CountingFiles, Room, disk_full, read_tree, tree, where


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(copying, "SMALL_BYTES", 64)
    monkeypatch.setattr(copying, "CHUNK_BYTES", 100)


@pytest.fixture
async def room(tmp_path, small):
    async with Room(tmp_path / "exp") as made:
        yield made


# -- copies ------------------------------------------------------------------------------------------------


async def test_a_copy_is_the_same_and_nobody_elses(room, tmp_path):
    source = tree(tmp_path / "src")
    (source / "hollow/inner").mkdir(parents=True)
    saved = await room.save("t", source)
    assert read_tree(saved.path) == TREE
    assert (saved.path / "hollow/inner").is_dir()
    assert read_tree(source) == TREE
    for name in TREE:
        assert (saved.path / name).stat().st_nlink == 1
        assert not (saved.path / name).samefile(source / name)
    assert saved.files == {name: len(data) for name, data in TREE.items()}
    assert not room.leftovers()


async def test_permission_bits(room, tmp_path):
    source = tree(tmp_path / "src")
    (source / "a").chmod(0o777)
    (source / "model.bin").chmod(0o6755)
    (source / "z.json").chmod(0o400)
    saved = await room.save("t", source)
    moved = await room.save("t", source, move=True)
    for path in (saved.path, moved.path):
        assert stat.S_IMODE((path / "a").stat().st_mode) == 0o755
        assert stat.S_IMODE((path / "model.bin").stat().st_mode) == 0o755
        assert stat.S_IMODE((path / "z.json").stat().st_mode) == 0o600


async def test_links_inside_become_files(room, tmp_path):
    for move in (False, True):
        source = tree(tmp_path / f"src-{move}")
        (source / "best").symlink_to("model.bin")
        saved = await room.save("t", source, move=move)
        assert not (saved.path / "best").is_symlink()
        assert read_tree(saved.path) == TREE | {"best": TREE["model.bin"]}
        assert source.exists() != move


@pytest.mark.parametrize("move", [False, True])
async def test_what_is_refused_leaves_everything_as_it_was(room, tmp_path, move):
    await room.save("t")
    source = tree(tmp_path / "bad")
    (source / "out").symlink_to("/etc/hostname")
    empty = tmp_path / "empty"
    (empty / "only/directories").mkdir(parents=True)
    pipes = tree(tmp_path / "pipes")
    os.mkfifo(pipes / "pipe")
    for directory, complaint in (
        (source, "symbolic link"),
        (pipes, "FIFO"),
        (empty, "holds no files"),
        (tmp_path / "nowhere", "no directory at"),
        ("", "must be given as a path"),
        (7, "must be given as a path"),
        (b"bytes", "must be given as a path"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            await room.save("t", directory, move=move)
    assert source.exists()
    assert pipes.exists()
    assert room.steps() == [1]
    assert room.directories() == ["checkpoint_000001"]
    assert not room.leftovers()


@pytest.mark.parametrize("move", [False, True])
async def test_the_experiment_itself_is_not_saved(room, tmp_path, move):
    saved = await room.save("t")
    (saved.path / "sub").mkdir()
    (saved.path / "sub/file").write_bytes(b"")
    for directory in (
        room.path,
        tmp_path,
        "/",
        saved.path,
        saved.path.parent,
        room.path / ".asynctune",
        room.path / ".asynctune/staging",
    ):
        with pytest.raises(ConfigError):
            await room.save("t", directory, move=move)
    if move:
        with pytest.raises(ConfigError, match="committed checkpoint"):
            await room.save("t", saved.path / "sub", move=True)
    assert (await room.verify())[0].intact
    assert room.steps() == [1]


async def test_work_directories_below_the_experiment_are_fine(room):
    copied = await room.save("t", tree(room.path / "t/work"))
    moved = await room.save("t", room.path / "t/work", move=True)
    assert read_tree(copied.path) == read_tree(moved.path) == TREE
    restored = await room.catalog.restore("t")
    given_back = await room.save("t", restored.path, move=True)
    assert read_tree(given_back.path) == TREE


# -- a source that changes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda source: (source / "z.json").write_bytes(b"[]"),
        lambda source: (source / "model.bin").write_bytes(b"shorter"),
        lambda source: (source / "new").write_bytes(b""),
        lambda source: (source / "a/other").unlink(),
        lambda source: (source / "newdir").mkdir(),
    ],
    ids=["rewritten", "shortened", "added", "removed", "directory"],
)
@pytest.mark.parametrize("move", [False, True])
async def test_a_source_that_changes_is_an_error(tmp_path, small, change, move):
    source = tree(tmp_path / "src")
    where = source
    files = CountingFiles()
    async with Room(tmp_path / "exp", files=files) as room:
        await room.save("t", tree(tmp_path / "first"))
        files.calls.clear()
        if move:
            where = room.path / ".asynctune/staging"
            taken: list[Path] = []

            def meddle() -> None:  # with a descriptor that was open before: the name itself is unknown
                taken.extend(where.iterdir())
                change(taken[0])

        else:

            def meddle() -> None:
                change(source)

        # The last call before the second look: all files are there.
        files.at = {15 if move else 20: meddle}
        with pytest.raises(StorageError, match=r"changed while|No such file") as caught:
            await room.save("t", source, move=move)
        assert caught.value.operation in {"read", "save"}
        assert room.steps() == [1]
        assert room.directories() == ["checkpoint_000001"]
        assert not room.leftovers()
        assert source.exists()


# -- moves -------------------------------------------------------------------------------------------------


async def test_a_move_copies_nothing(tmp_path, small):
    files = CountingFiles()
    source = tree(tmp_path / "src")
    inode = (source / "model.bin").stat().st_ino
    async with Room(tmp_path / "exp", files=files) as room:
        saved = await room.save("t", source, move=True)
        assert not source.exists()
        assert (saved.path / "model.bin").stat().st_ino == inode
        assert read_tree(saved.path) == TREE
        assert files.calls.count("create") == 1  # the manifest
        assert (await room.verify())[0].ok
        assert room.events.of("checkpoint_saved")[0]["how"] == "move"


async def test_a_hard_link_elsewhere_cannot_write_through(room, tmp_path):
    source = tree(tmp_path / "src")
    os.link(source / "model.bin", tmp_path / "still-mine")
    saved = await room.save("t", source, move=True)
    (tmp_path / "still-mine").write_bytes(b"overwritten")
    assert read_tree(saved.path) == TREE
    assert not source.exists()


class AnotherFilesystem(LocalFiles):
    """Renames between the experiment and elsewhere fail."""

    def rename(self, source: str, target: str) -> None:
        if "/exp/" not in source:
            raise OSError(errno.EXDEV, "Invalid cross-device link", source)
        super().rename(source, target)


async def test_a_move_across_filesystems_removes_the_source_after_the_record(tmp_path):
    source = tree(tmp_path / "src")
    seen = []
    async with Room(tmp_path / "exp", files=AnotherFilesystem()) as room:
        room.sink.before_commit = lambda: seen.append(source.exists())
        saved = await room.save("t", source, move=True)
        assert seen == [True]
        assert not source.exists()
        assert read_tree(saved.path) == TREE
        source = tree(tmp_path / "src")
        room.sink.commit_error = disk_full()
        with pytest.raises(StorageError):
            await room.save("t", source, move=True)
        assert read_tree(source) == TREE  # not durable, not removed
        room.sink.commit_error = None


async def test_a_source_that_cannot_be_removed_is_said_and_no_error(tmp_path, caplog):
    class Stubborn(AnotherFilesystem):
        def remove_tree(self, path: str) -> None:
            if path.endswith("src"):
                raise OSError(errno.EACCES, "Permission denied", path)
            super().remove_tree(path)

    async with Room(tmp_path / "exp", files=Stubborn()) as room:
        saved = await room.save("t", tree(tmp_path / "src"), move=True)
    assert read_tree(saved.path) == TREE
    assert "cannot be removed" in caplog.text


async def test_a_failed_move_goes_back(tmp_path, small):
    source = tree(tmp_path / "src")
    async with Room(tmp_path / "exp") as room:
        room.sink.put_error = disk_full()
        with pytest.raises(StorageError):
            await room.save("t", source, move=True)
        assert read_tree(source) == TREE
        assert not (source / ".manifest.json").exists()
        assert not room.leftovers()
        assert room.directories() == []


async def test_a_failed_move_whose_place_is_taken_keeps_the_files(tmp_path, caplog):
    source = tree(tmp_path / "src")
    files = CountingFiles()
    async with Room(tmp_path / "exp", files=files) as room:
        files.at = {8: source.mkdir}
        room.sink.put_error = disk_full()
        with pytest.raises(StorageError):
            await room.save("t", source, move=True)
        assert not list(source.iterdir())
        (left,) = room.leftovers()
        assert read_tree(room.path / ".asynctune" / left) == TREE
        assert "exists again" in caplog.text
        room.sink.put_error = None


# -- adoption ----------------------------------------------------------------------------------------------


async def test_what_a_worker_staged_is_adopted_without_reading_it(tmp_path, small):
    source = tree(tmp_path / "src")
    files = CountingFiles()
    async with Room(tmp_path / "exp", files=files) as room:
        (room.path / "t").mkdir()
        staged = await stage_for_adoption(source, room.path / "t")
        assert Path(staged.path).parent == room.path / "t"
        travelled = StagedCheckpoint.from_value(staged.to_value())
        assert travelled == staged == pickle.loads(pickle.dumps(staged))
        inode = (Path(staged.path) / "model.bin").stat().st_ino
        (Path(staged.path) / "model.bin").chmod(0o000)  # root reads anyway: the counter below is the proof
        saved = await room.catalog.adopt("t", travelled, trial_name="t", step=7, metrics={"acc": 1})
        assert (where(saved) / "model.bin").stat().st_ino == inode
        assert files.calls.count("create") == 1
        assert "open_read" not in files.calls
        assert saved.step == 7
        assert room.directories() == ["checkpoint_000007"]
        (where(saved) / "model.bin").chmod(0o600)
        report = (await room.verify())[0]
        assert report.ok
        assert report.manifest is not None
        assert (report.manifest.trial_id, report.manifest.step) == ("t", 7)


async def test_staging_runs_without_a_loop_of_the_caller(tmp_path):
    source = tree(tmp_path / "src")
    staged = await asyncio.to_thread(lambda: asyncio.run(stage_for_adoption(source, tmp_path, move=True)))
    assert read_tree(Path(staged.path)) == TREE
    assert not source.exists()
    assert Manifest.decode((Path(staged.path) / ".manifest.json").read_bytes()) == staged.manifest


async def test_a_worker_on_another_filesystem_copies_and_then_removes(tmp_path):
    source = tree(tmp_path / "src")

    class Elsewhere(LocalFiles):
        def rename(self, source: str, target: str) -> None:
            if source.endswith("/src"):
                raise OSError(errno.EXDEV, "cross-device", source)
            super().rename(source, target)

    staged = await stage_for_adoption(source, tmp_path, move=True, files=Elsewhere())
    assert read_tree(Path(staged.path)) == TREE
    assert not source.exists()


async def test_staging_that_fails_leaves_nothing(tmp_path, small):
    counting = CountingFiles()
    await stage_for_adoption(tree(tmp_path / "src"), tmp_path / "all", files=counting)
    for move in (False, True):
        for number in range(1, len(counting.calls) + 1):
            source, target = tree(tmp_path / "src"), tmp_path / f"to-{number}-{move}"
            target.mkdir()
            failing = CountingFiles(number)
            try:
                await stage_for_adoption(source, target, files=failing, move=move)
            except StorageError:
                assert read_tree(source) == TREE
                assert not list(target.iterdir())
            else:  # a move needs fewer calls, and can do without what failed
                assert len(failing.calls) < number or failing.calls[number - 1] == "remove_tree"


async def test_an_adoption_that_fails_leaves_it_where_it_was(room, tmp_path):
    staged = await stage_for_adoption(tree(tmp_path / "src"), room.path / "t")
    room.sink.put_error = disk_full()
    with pytest.raises(StorageError):
        await room.catalog.adopt("t", staged, trial_name="t")
    room.sink.put_error = None
    assert read_tree(Path(staged.path)) == TREE
    saved = await room.catalog.adopt("t", staged, trial_name="t")
    assert read_tree(saved.path) == TREE


async def test_a_path_can_be_adopted_too(room, tmp_path):
    staged = await stage_for_adoption(tree(tmp_path / "src"), room.path / "t")
    saved = await room.catalog.adopt("t", Path(staged.path), trial_name="t")
    assert read_tree(saved.path) == TREE


async def test_adoptions_that_are_refused(room, tmp_path):
    saved = await room.save("t")
    staged = await stage_for_adoption(tree(tmp_path / "src"), room.path / "t")
    other = await stage_for_adoption(tree(tmp_path / "src2", {"x": b""}), room.path / "t")
    with pytest.raises(ConfigError, match="committed checkpoint"):
        await room.catalog.adopt("t", saved.path, trial_name="t")
    with pytest.raises(ConfigError, match=r"no \.manifest\.json"):
        await room.catalog.adopt("t", tmp_path / "src", trial_name="t")
    with pytest.raises(ConfigError, match="other files than were announced"):
        await room.catalog.adopt("t", StagedCheckpoint(other.path, staged.manifest), trial_name="t")
    for meddle in (
        lambda path: (path / "more").write_bytes(b""),
        lambda path: (path / "more").unlink() or (path / "z.json").write_bytes(b"longer"),
        lambda path: (path / "z.json").unlink() or (path / "z.json").symlink_to("a/other"),
        lambda path: (path / ".manifest.json").write_bytes(b"{}"),
    ):
        meddle(Path(staged.path))
        with pytest.raises(ConfigError, match="stage it again"):
            await room.catalog.adopt("t", staged, trial_name="t")
    assert room.steps() == [1]


@pytest.mark.parametrize("value", [{}, {"path": 1, "manifest": b""}, {"path": "/x", "manifest": b"{}"}, []])
def test_values_that_are_no_staged_checkpoint(value):
    with pytest.raises(ConfigError, match="not a staged checkpoint"):
        StagedCheckpoint.from_value(value)
