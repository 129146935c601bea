"""Where agents write on their nodes: each for itself, and nothing of those that were killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from asynctune.errors import ConfigError
from asynctune.runners.node_directory import NodeDirectory


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


def test_what_cannot_be_swept_yet_is_swept_later(tmp_path, monkeypatch):
    """Its lock stays, by which it is found."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    with monkeypatch.context() as broken:
        broken.setattr("shutil.rmtree", lambda *args, **options: None)
        directory = NodeDirectory(str(tmp_path), "next")
        directory.make()
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


def test_where_nothing_can_be_made(tmp_path):
    Path(tmp_path, "file").write_text("x", "ascii")
    with pytest.raises(ConfigError, match="worker_dir"):
        NodeDirectory(str(tmp_path / "file"), "one").make()
