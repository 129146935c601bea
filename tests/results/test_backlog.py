"""Operations wait, and are sorted by trial."""

from __future__ import annotations

import threading

import pytest

from asynctune.packing import UnpackError
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
    assert (backlog.pending, bool(backlog)) == (3, True)
    assert backlog.sort_in() == ["a", "b"]
    assert (backlog.pending, bool(backlog)) == (3, True)
    backlog.add([operation("a", 2)], OPENING)
    backlog.sort_in()
    wanted = [operation("a", 1), encode(Announce(trial_id="a")), operation("a", 2)]
    assert backlog.of(["a"]) == {"a": [(data, OPENING) for data in wanted]}
    backlog.done("a")
    assert (backlog.pending, backlog.sort_in()) == (1, ["b"])
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
    found = backlog.of(backlog.sort_in())
    assert sum(map(len, found.values())) == backlog.pending == 5000


def test_what_cannot_be_read_stays_with_what_follows_it():
    backlog = Backlog()
    backlog.add([operation("a", 1)], OPENING)
    backlog.add([operation("b", 1), b"no operation", operation("c", 1)], OPENING)
    for _ in range(2):
        with pytest.raises(UnpackError):
            backlog.sort_in()
        assert backlog.pending == 4
    assert backlog.of(["a", "b"]) == {"a": [(operation("a", 1), OPENING)], "b": []}


def test_operations_of_another_opening_come_after():
    other = OpeningInfo(hostname="elm", node_ip="192.0.2.8", pid=1)
    backlog = Backlog()
    backlog.add([operation("a", 1), operation("b", 1)], OPENING)
    backlog.add([operation("a", 2)], other)
    assert backlog.sort_in() == ["a", "b"]
    assert backlog.of(["a"]) == {"a": [(operation("a", 1), OPENING), (operation("a", 2), other)]}
    backlog.done("a")
    assert (backlog.pending, backlog.sort_in()) == (1, ["b"])
