"""A worker waits for space on a full disk."""

from __future__ import annotations

import errno
import os
import types

import pytest

from asynctune import Checkpoint, StorageError, TrialTask
from asynctune.checkpoints.disk import disk_errors
from asynctune.runners import space
from asynctune.runners.space import when_there_is_space
from asynctune.runners.worker import _Session


class Disk:
    """Refuses as often as told."""

    def __init__(self, *refusals):
        self.refusals = list(refusals)
        self.waited = 0

    def wait(self, seconds):
        assert seconds > 0
        self.waited += 1

    def refuse(self):
        if self.refusals:
            number = self.refusals.pop(0)
            raise OSError(number, os.strerror(number))

    def write(self):
        with disk_errors("stage a checkpoint", "/where/it/is"):
            self.refuse()
        return "written"


@pytest.fixture
def disk(monkeypatch):
    def make(*refusals):
        made = Disk(*refusals)
        monkeypatch.setattr(space, "time", types.SimpleNamespace(sleep=made.wait))
        return made

    return make


def test_it_waits_as_long_as_it_takes_and_says_so_once(disk, capsys):
    here = disk(errno.ENOSPC, errno.EDQUOT, errno.ENOSPC)
    assert when_there_is_space(here.write) == "written"
    assert here.waited == 3
    said = capsys.readouterr().err
    assert said.count("the trial waits for space") == 1
    assert "/where/it/is" in said
    assert "free some space" in said


def test_other_errors_pass(disk):
    here = disk(errno.ENOSPC, errno.EROFS)
    with pytest.raises(StorageError, match="read-only"):
        when_there_is_space(here.write)
    assert here.waited == 1


@pytest.fixture
def staged(tmp_path, disk, monkeypatch):
    """Stages a dict as a checkpoint, on a disk that refuses first."""

    def stage(*refusals):
        here, real = disk(*refusals), Checkpoint.to_directory

        def to_directory(checkpoint, path=None):
            path.mkdir(exist_ok=True)
            here.refuse()
            return real(checkpoint, path)

        monkeypatch.setattr(Checkpoint, "to_directory", to_directory)
        task = TrialTask(trial_id="t", trial_name="t", trial_dir=str(tmp_path), config={})
        return _Session(task, None)._stage(Checkpoint.from_dict({"x": 1}), move=False)  # type: ignore[arg-type]

    return stage


def test_a_checkpoint_is_staged_when_there_is_space(staged, tmp_path):
    made = staged(errno.ENOSPC, errno.ENOSPC)
    assert [str(path) for path in tmp_path.iterdir()] == [made["path"]]


def test_what_the_disk_refuses_is_told_with_its_place(staged, tmp_path):
    with pytest.raises(StorageError, match=rf"cannot stage a checkpoint: {tmp_path}.* check the permissions"):
        staged(errno.EACCES)
    assert list(tmp_path.iterdir()) == []
