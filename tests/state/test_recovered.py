"""Replaying commits onto a plain dict."""

from __future__ import annotations

from asynctune.state.codec import Ops
from asynctune.state.recovered import apply_ops


def test_the_last_writer_wins():
    records = {"a": b"0", "b": b"0"}
    apply_ops(records, (Ops(["a", b"1", "c", b"1"], ["b"], [b"row"]), Ops(["a", b"2"], ["never there"], [])))
    assert records == {"a": b"2", "c": b"1"}


def test_what_a_commit_sets_and_removes_is_removed():
    records: dict[str, bytes] = {}
    apply_ops(records, (Ops(["a", b"1"], ["a"], []),))
    assert records == {}
