from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys

import pytest

from asynctune.demo.heartbeat import Heartbeat, LastWords, Unsaved, read_last_words
from asynctune.errors import ConfigError

WORDS = LastWords(opening=3, at=1_800_000_000.123, dirty_s=0.002, training={"ab_00001": Unsaved(4, 1.5)})


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "heartbeat")


def test_no_file_is_no_words(path):
    assert read_last_words(path) is None


def test_a_file_without_a_beat_is_no_words(path):
    Heartbeat(path).close()
    assert read_last_words(path) is None


def test_the_newest_beat_is_read(path):
    heart = Heartbeat(path)
    for at in range(5):
        words = dataclasses.replace(WORDS, at=float(at))
        heart.beat(words)
        assert read_last_words(path) == words
    heart.close()


def test_a_new_driver_takes_the_file_over(path):
    first = Heartbeat(path)
    first.beat(WORDS)
    first.beat(WORDS)
    second = Heartbeat(path)
    assert read_last_words(path) == WORDS
    # The clock was set back meanwhile; the number of the opening decides.
    second.beat(dataclasses.replace(WORDS, opening=4, at=WORDS.at - 3600))
    found = read_last_words(path)
    assert found is not None
    assert found.opening == 4
    first.close()
    second.close()


def test_a_cut_beat_leaves_the_one_before(path):
    heart = Heartbeat(path)
    heart.beat(WORDS)
    heart.beat(dataclasses.replace(WORDS, at=WORDS.at + 1))
    heart.close()
    with open(path, "r+b") as file:
        file.seek(4096 + 30)
        file.write(b"####")
    assert read_last_words(path) == WORDS


@pytest.mark.parametrize("content", [b"", b"x" * 8192, b"\xff" * 100, b"00000000 0000 \n"])
def test_a_file_of_something_else_is_no_words(path, content):
    with open(path, "wb") as file:
        file.write(content)
    assert read_last_words(path) is None


def test_too_many_trials_are_refused_before_anything_is_written(path):
    heart = Heartbeat(path)
    heart.beat(WORDS)
    crowd = {f"ab_{i:05}": Unsaved(1, 1.0) for i in range(200)}
    with pytest.raises(ConfigError, match="use fewer workers"):
        heart.beat(dataclasses.replace(WORDS, training=crowd))
    heart.close()
    assert read_last_words(path) == WORDS


def test_the_last_beat_survives_a_kill(path):
    script = (
        "import os, sys; from asynctune.demo.heartbeat import *; heart = Heartbeat(sys.argv[1]);"
        "heart.beat(LastWords(opening=1, at=7.0, dirty_s=0.0, training={})); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", script, path], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert read_last_words(path) == LastWords(opening=1, at=7.0, dirty_s=0.0, training={})
    assert os.stat(path).st_mode & 0o077 == 0
