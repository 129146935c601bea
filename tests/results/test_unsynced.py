"""What is not synced is remembered, and synced one by one or all at once."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from asynctune.results.unsynced import Unsynced
from asynctune.testing import FaultyFiles


class World:
    """A directory with trials in it, whose files were written just now."""

    def __init__(self, root):
        self.root = root
        self.disk = FaultyFiles()
        self.rewritten = []
        self.unsynced = Unsynced(str(root), self.disk, self.rewrite)

    def rewrite(self, path):
        self.rewritten.append(path)
        self.unsynced.discard(path)

    def write(self, trials, names=("params.json", "result.json", "progress.csv")):
        self.unsynced.watch()
        for number in range(trials):
            directory = self.root / f"trial{number}"
            directory.mkdir(exist_ok=True)
            self.unsynced.add_names(str(self.root))
            self.unsynced.add_names(str(directory))
            for name in names:
                (directory / name).write_bytes(b"x")
                self.unsynced.add(str(directory / name))

    def counts(self):
        return tuple(self.disk.count(kind) for kind in ("sync_filesystem", "sync_data", "sync_dir"))


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.unsynced.close()


def test_few_files_are_synced_one_by_one(world):
    world.write(20)
    assert len(world.unsynced) == 20 * 4 + 1
    world.unsynced.sync()
    assert world.counts() == (0, 60, 21)
    assert world.disk.log[-1].path == str(world.root), "it names what is safe by then"
    world.unsynced.sync()
    assert (len(world.unsynced), world.counts()) == (0, (0, 60, 21))


def test_very_many_are_synced_at_once(world):
    world.write(200)
    world.unsynced.sync()
    assert world.counts() in {(1, 0, 1), (1, 600, 201)}, "the second on a filesystem that cannot"
    assert len(world.unsynced) == 0


def test_what_cannot_be_synced_at_once_is_synced_one_by_one(world):
    world.write(200)
    world.disk.fail(errno.EIO, on="sync_filesystem")
    world.unsynced.sync()
    assert world.counts() == (1, 600, 201)
    assert len(world.unsynced) == 0


def test_a_filesystem_that_says_nothing_of_failures_is_synced_one_by_one(world, monkeypatch):
    monkeypatch.setattr("asynctune.files._LOCAL_FILESYSTEMS", frozenset())
    world.write(200)
    world.unsynced.sync()
    assert world.counts() == (1, 600, 201)


def test_a_trial_that_lies_elsewhere_is_synced_by_itself(world):
    world.write(200)
    shutil.rmtree(world.root / "trial7")
    elsewhere = world.root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "result.json").write_bytes(b"x")
    os.symlink(elsewhere, world.root / "trial7")
    world.unsynced.sync()
    synced = {each.path for each in world.disk.log if each.kind == "sync_data"}
    assert str(world.root / "trial7/result.json") in synced
    assert len(world.unsynced) == 0


def test_deleted_ones_are_passed_over(world):
    world.write(200)
    for number in range(0, 200, 2):
        shutil.rmtree(world.root / f"trial{number}")
    (world.root / "trial1/result.json").unlink()
    world.unsynced.sync()
    assert len(world.unsynced) == 0


def test_one_whose_sync_failed_is_written_again(world):
    world.write(3)
    world.disk.fail(errno.EIO, on="sync_data", nth=2)
    with pytest.raises(OSError, match="Input/output"):
        world.unsynced.sync()
    assert (len(world.unsynced), world.rewritten) == (1, [])
    world.unsynced.sync()
    assert len(world.rewritten) == 1
    assert len(world.unsynced) == 0


def test_a_suspect_is_not_cleared_by_syncing_everything(world):
    world.write(200)
    world.disk.fail(errno.EIO, on="sync_filesystem")
    world.disk.fail(errno.EIO, on="sync_data")
    with pytest.raises(OSError, match="Input/output"):
        world.unsynced.sync()
    world.write(200)
    world.unsynced.sync()
    assert len(world.rewritten) == 1


def test_it_stops_when_asked(world):
    world.write(200)
    world.unsynced.sync(lambda: True)
    assert world.counts() == (0, 0, 0)
    assert len(world.unsynced) == 801


def test_one_descriptor_is_held_from_before_the_first_write_to_the_close(world):
    world.write(1)
    held = world.unsynced._root_fd
    assert os.path.samestat(os.fstat(held), os.stat(world.root))
    world.unsynced.sync()
    world.write(1)
    assert world.unsynced._root_fd == held
    world.unsynced.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held)


def test_a_file_that_lies_elsewhere_is_not_taken_for_synced(world):
    world.write(200)
    elsewhere = world.root / "elsewhere"
    elsewhere.write_bytes(b"x")
    (world.root / "trial3/result.json").unlink()
    os.symlink(elsewhere, world.root / "trial3/result.json")
    with pytest.raises(OSError, match="symbolic links"):
        world.unsynced.sync()
    assert len(world.unsynced) == 1


def test_a_directory_is_synced_once_in_one_call(world):
    world.write(3)
    world.disk.fail(errno.EIO, on="sync_dir")
    with pytest.raises(OSError, match="Input/output"):
        world.unsynced.sync()
    assert world.disk.count("sync_dir") == 4
    assert len(world.unsynced) == 1
    world.unsynced.sync()
    assert len(world.unsynced) == 0


def test_many_suspects_of_one_directory_are_rewritten(world):
    names = [f"file{number}" for number in range(100)]
    world.write(1, names)
    world.disk.fail(errno.EIO, on="sync_data", lasting=True)
    with pytest.raises(OSError, match="Input/output"):
        world.unsynced.sync()
    world.disk.heal()
    world.unsynced.sync()
    assert (len(world.rewritten), len(world.unsynced)) == (100, 0)
