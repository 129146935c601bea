"""Operations wait, and are sorted by trial."""

from __future__ import annotations

import threading

from asynctune.results.backlog import Backlog
from asynctune.results.rows import Announce, Cut, OpeningInfo, encode

OPENING = OpeningInfo(hostname="oak", node_ip="192.0.2.7", pid=4711)


def operation(trial_id, number):
    return encode(Cut(trial_id=trial_id, keep=number))


def test_operations_come_out_by_trial_in_order():
    backlog = Backlog()
    assert not backlog
    backlog.add([operation("a", 1), operation("b", 1)], OPENING)
    backlog.add([encode(Announce(trial_id="a"))], OPENING)
    assert (backlog.pending, bool(backlog)) == (3, False)
    backlog.sort_in()
    assert (backlog.pending, bool(backlog), backlog.trial_ids()) == (3, True, ["a", "b"])
    backlog.add([operation("a", 2)], OPENING)
    backlog.sort_in()
    wanted = [operation("a", 1), encode(Announce(trial_id="a")), operation("a", 2)]
    assert backlog.of(["a"]) == {"a": [(data, OPENING) for data in wanted]}
    backlog.done("a")
    assert (backlog.pending, backlog.trial_ids()) == (1, ["b"])
    backlog.done("b")
    assert (backlog.pending, bool(backlog)) == (0, False)


def test_nothing_is_lost_that_is_added_while_it_sorts():
    backlog = Backlog()
    done = threading.Event()

    def sort():
        while not done.is_set():
            backlog.sort_in()

    thread = threading.Thread(target=sort)
    thread.start()
    for number in range(5000):
        backlog.add([operation(f"t{number % 7}", number)], OPENING)
    done.set()
    thread.join()
    backlog.sort_in()
    assert sum(len(each) for each in backlog.of(backlog.trial_ids()).values()) == backlog.pending == 5000
