"""What a trial may change in its process, and the next one does not find."""

from __future__ import annotations

import io
import os
import signal
import sys

import pytest

from asynctune.runners.surroundings import Surroundings


def test_all_is_put_back_also_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handler, stream, inode = signal.getsignal(signal.SIGUSR1), sys.stdout, os.fstat(1).st_ino
    surroundings = Surroundings(log_to_file=True)

    def disturb():
        os.write(1, b"told\n")
        os.chdir("/")
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 60)
        sys.stdout = io.StringIO()
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"), surroundings.of_trial(str(tmp_path)):
        disturb()
    assert os.getcwd() == str(tmp_path)
    assert signal.getsignal(signal.SIGUSR1) is handler
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert sys.stdout is stream
    assert os.fstat(1).st_ino == inode
    assert (tmp_path / "stdout").read_text() == "told\n"


def test_output_stays_where_it_is_unless_files_are_asked_for(tmp_path, capfd):
    with Surroundings(log_to_file=False).of_trial(str(tmp_path)):
        os.write(1, b"told\n")
        os.close(1)
    os.write(1, b"again\n")
    assert capfd.readouterr().out == "told\nagain\n"
    assert not list(tmp_path.iterdir())
