"""The pause of the room's threads: after a while of work, and not more often."""

from __future__ import annotations

import threading

import pytest

from asynctune import breathing
from asynctune.breathing import WORK_S, breathe


class Time:
    def __init__(self):
        self.now = 100.0
        self.pauses: list[float] = []

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(self.now)
        self.now += 0.0001
        assert seconds == 0


@pytest.fixture
def time(monkeypatch):
    made = Time()
    monkeypatch.setattr(breathing, "time", made)  # of this module alone
    return made


def in_a_new_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_pause_is_made_after_a_while_of_work(time):
    def work():
        for _ in range(10):
            breathe()
            time.now += WORK_S / 2

    in_a_new_thread(work)
    # The first one at once: nobody knows what the thread did before.
    between = [after - before for before, after in zip(time.pauses, time.pauses[1:], strict=False)]
    assert len(time.pauses) in {4, 5}
    assert all(WORK_S <= each < 2 * WORK_S for each in between)


def test_each_thread_pauses_for_itself(time):
    in_a_new_thread(breathe)
    in_a_new_thread(breathe)
    assert len(time.pauses) == 2
