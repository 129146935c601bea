"""Where agents write on their nodes: each for itself, and nothing of those that were killed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from asynctune.errors import ConfigError, TrialFailedError
from asynctune.runners.node_directory import NodeDirectory, checked_worker_dir


def names(parent):
    return sorted(path.name for path in Path(parent).glob("asynctune-*/*"))


def test_it_is_made_and_removed(tmp_path):
    directory = NodeDirectory(str(tmp_path / "a" / "b"), "one")
    directory.make()
    assert os.stat(directory.path).st_mode & 0o777 == 0o700
    assert os.stat(os.path.dirname(directory.path)).st_mode & 0o777 == 0o700
    Path(directory.path, "deep").mkdir()
    Path(directory.path, "deep", "file").write_text("x", "ascii")
    directory.remove()
    directory.remove()
    assert names(tmp_path / "a" / "b") == []


def test_below_that_for_temporary_files_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    directory = NodeDirectory(None, "one")
    directory.make()
    assert directory.path == str(tmp_path / f"asynctune-{os.getuid()}" / "agent-one")
    directory.remove()


def test_those_that_live_are_left_alone(tmp_path):
    one, two = NodeDirectory(str(tmp_path), "one"), NodeDirectory(str(tmp_path), "two")
    one.make()
    two.make()
    assert names(tmp_path) == ["agent-one", "agent-one.lock", "agent-two", "agent-two.lock"]
    one.remove()
    two.remove()


KILLED = """\
import os, signal, sys
from pathlib import Path
from asynctune.runners.node_directory import NodeDirectory
directory = NodeDirectory(sys.argv[1], "killed")
directory.make()
Path(directory.path, "large").write_bytes(b"x" * 1000)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_agent_left_is_swept_by_the_next(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    assert names(tmp_path) == ["agent-killed", "agent-killed.lock"]
    directory = NodeDirectory(str(tmp_path), "next")
    directory.make()
    assert names(tmp_path) == ["agent-next", "agent-next.lock"]
    directory.remove()


def test_what_a_killed_agent_left_is_swept_by_one_that_ends(tmp_path):
    """It was there before, so nobody else may ever come."""
    directory = NodeDirectory(str(tmp_path), "longer")
    directory.make()
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    assert len(names(tmp_path)) == 4
    directory.remove()
    assert names(tmp_path) == []


def test_an_end_is_none_for_what_it_cannot_sweep(tmp_path, monkeypatch):
    directory = NodeDirectory(str(tmp_path), "one")
    directory.make()

    def fails(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(os, "listdir", fails)
    directory.remove()
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_what_cannot_be_swept_yet_is_swept_later(tmp_path, monkeypatch):
    """Its lock stays, by which it is found."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    with monkeypatch.context() as broken:
        broken.setattr("shutil.rmtree", lambda *args, **options: None)
        directory = NodeDirectory(str(tmp_path), "next")
        directory.make()
        assert "agent-killed" in names(tmp_path)
        broken.undo()
        broken.setattr(directory, "_sweep", lambda parent: None)
        directory.remove()
    assert names(tmp_path) == ["agent-killed", "agent-killed.lock"]
    directory = NodeDirectory(str(tmp_path), "next")
    directory.make()
    directory.remove()
    assert names(tmp_path) == []


def test_many_at_once(tmp_path):
    """They make, sweep and remove beside each other; none is swept by another while it is held."""
    wrong = []

    def live(name):
        for n in range(15):
            directory = NodeDirectory(str(tmp_path), f"{name}{n}")
            directory.make()
            if not os.path.isdir(directory.path):
                wrong.append(directory.path)
            directory.remove()

    threads = [threading.Thread(target=live, args=[name]) for name in "abcdef"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []
    assert names(tmp_path) == []


def test_what_belongs_to_somebody_else_is_not_used(tmp_path, monkeypatch):
    directory = NodeDirectory(str(tmp_path), "one")
    Path(tmp_path, f"asynctune-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="belongs to somebody else"):
        directory.make()


@pytest.mark.parametrize(
    "below",
    [
        pytest.param("file/deeper", id="below-a-file"),
        pytest.param("n" * 300, id="too-long"),
        pytest.param("loop/x", id="loop"),
    ],
)
def test_a_place_that_can_never_be_is_a_wrong_setting(tmp_path, below):
    Path(tmp_path, "file").write_text("x", "ascii")
    Path(tmp_path, "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="give worker_dir a place where") as refused:
        NodeDirectory(str(tmp_path / below), "one").make()
    assert str(tmp_path) in str(refused.value)


def test_a_home_that_nobody_has_is_a_wrong_setting():
    with pytest.raises(ConfigError, match="~nobody-of-that-name/x is of nobody here"):
        NodeDirectory("~nobody-of-that-name/x", "one").make()


@pytest.mark.parametrize("call", ["makedirs", "mkdir", "listdir"])
@pytest.mark.parametrize(
    ("number", "kind"),
    [
        pytest.param(errno.ENOSPC, TrialFailedError, id="full"),
        pytest.param(errno.EDQUOT, TrialFailedError, id="quota"),
        pytest.param(errno.EIO, TrialFailedError, id="broken"),
        pytest.param(errno.EROFS, TrialFailedError, id="made-read-only"),
        pytest.param(errno.EMFILE, TrialFailedError, id="too-many-open"),
        pytest.param(errno.EACCES, ConfigError, id="not-allowed"),
        pytest.param(errno.EPERM, ConfigError, id="not-permitted"),
    ],
)
def test_what_the_machine_is_in_the_way_of_is_no_wrong_setting(tmp_path, monkeypatch, call, number, kind):
    directory = NodeDirectory(str(tmp_path), "one")

    def fails(path, *args, **options):
        raise OSError(number, os.strerror(number), path)

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fails)
        with pytest.raises(kind, match=os.strerror(number)) as refused:
            directory.make()
    assert type(refused.value) is kind
    assert names(tmp_path) == []
    directory.make()
    directory.remove()


def test_no_place_for_temporary_files_is_no_wrong_setting(monkeypatch):
    """They are tried by writing: all of them may be full."""

    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(TrialFailedError, match="No usable temporary directory"):
        NodeDirectory(None, "one").make()


def test_what_goes_to_the_nodes():
    assert checked_worker_dir(None) is None
    assert checked_worker_dir("~/work") == "~/work"
    assert checked_worker_dir(Path("/scratch/x")) == "/scratch/x"


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param("", id="empty"),
        pytest.param("work", id="relative"),
        pytest.param(Path("work"), id="relative-path"),
        pytest.param(b"/work", id="bytes"),
        pytest.param(3, id="number"),
        pytest.param("/work\0", id="nul"),
    ],
)
def test_what_is_no_directory_anywhere_is_refused(wrong):
    with pytest.raises(ConfigError, match="worker_dir must be an absolute path"):
        checked_worker_dir(wrong)
