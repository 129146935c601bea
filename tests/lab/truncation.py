"""Cuts every file of a state at every byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from asynctune.state.segments import parse_segment_name
from tests.lab.registry import Lab, Row, experiment
from tests.lab.states import Made, boundaries, judge, make_state

__all__ = ["cut_last_segment", "cut_other_file"]


def cut_last_segment(directory: str, made: Made, lengths: Iterable[int]) -> Counter[str]:
    """Cut the end of the journal: what is left is the state as of the last whole commit, and a tear is reported."""
    name = str(made.last)
    whole = made.contents[name]
    ends = boundaries(made.last, whole)
    outcomes: Counter[str] = Counter()
    for length in lengths:
        outcome, found = judge(directory, made.contents | {name: whole[:length]}, made.truth)
        assert found is not None, f"cut at {length}: {outcome}"
        before = max((end for end in ends if end <= length), default=0)
        seq = (
            ends[before] if before else max(made.truth.fenced)
        )  # without this header, the fenced writer's counts
        assert found.seq == seq, f"cut at {length}: commit {found.seq}, not {seq}"
        if length in ends:
            assert not found.notices, f"cut at {length}: {found.notices}"
        else:
            (notice,) = found.notices
            assert notice.kind == "tear"
            assert notice.path == f"{directory}/{name}"
            assert ends.get(notice.offset, seq) == seq, f"cut at {length}: {notice}"
        outcomes[outcome] += 1
    return outcomes


def cut_other_file(directory: str, made: Made, name: str, lengths: Iterable[int]) -> Counter[str]:
    """Cut a file that was whole once: the same state comes back, or it is refused by the file's name."""
    outcomes: Counter[str] = Counter()
    for length in lengths:
        damaged = made.contents | {name: made.contents[name][:length]}
        for rows in (True, False):
            outcome, found = judge(directory, damaged, made.truth, rows=rows)
            assert outcome in {"intact", "made good", "refused"}, f"{name} cut at {length}: {outcome}"
            if length < made.needed.get(name, 0):
                assert outcome == "refused", f"{name} cut at {length}: {outcome}"
            if name == made.newest_snapshot:
                assert found is not None, f"{name} cut at {length}: {outcome}"
                assert [notice.kind for notice in found.notices] == ["damage"]
            if name in made.idle:
                assert outcome == "intact", f"{name} cut at {length}: {outcome}"
            outcomes[outcome] += 1
    return outcomes


def cuts(made: Made, name: str) -> Sequence[int]:
    """Every length a file can be cut to."""
    return range(len(made.contents[name]))


@experiment("truncation", "every state file cut at every byte")
def run(lab: Lab) -> Iterable[Row]:
    directory = f"{lab.directory}/state"
    made = make_state(directory, lab.rng, size=lab.times(26, 6))
    last = str(made.last)
    lengths = lab.few(cuts(made, last), 2000)
    outcomes = cut_last_segment(directory, made, lab.progress(lengths, last, len(lengths)))
    yield Row.tally(f"{last} (the end of the journal)", outcomes)
    for name in sorted(made.contents):
        if name != last:
            lengths = lab.few(cuts(made, name), 300)
            outcomes = cut_other_file(directory, made, name, lab.progress(lengths, name, len(lengths)))
            kind = "segment" if parse_segment_name(name) else "file"
            yield Row.tally(f"{name} ({'needed ' if name in made.needed else ''}{kind})", outcomes)
