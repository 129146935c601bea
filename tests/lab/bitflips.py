"""Flips every bit of every file of a state, zeroes every sector, and tears the last write in every way."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from asynctune.state.codec import FrameError
from asynctune.state.epochs import read_claim
from asynctune.state.stored import SECTOR
from tests.lab.registry import Lab, Row, experiment
from tests.lab.states import HeldFiles, Made, boundaries, judge, make_state

__all__ = ["flip_bits", "tear_last_write", "zero_sectors"]


def flip_bits(directory: str, made: Made, bits: Iterable[tuple[str, int]]) -> Counter[str]:
    """Flip one bit: never another state than the true one, not even an earlier one with a notice."""
    outcomes: Counter[str] = Counter()
    for name, bit in bits:
        data = bytearray(made.contents[name])
        data[bit // 8] ^= 1 << bit % 8
        damaged = made.contents | {name: bytes(data)}
        outcome, found = judge(directory, damaged, made.truth)
        assert outcome in {"intact", "made good", "refused"}, (
            f"{name} bit {bit}: {outcome}, {found and found.notices}"
        )
        if bit // 8 < made.needed.get(name, 0):
            assert outcome == "refused", f"{name} bit {bit}: {outcome}"
        if name.startswith("epoch-"):
            _check_claim(directory, damaged, name)
        outcomes[outcome] += 1
    return outcomes


def _check_claim(directory: str, damaged: dict[str, bytes], name: str) -> None:
    try:
        read_claim(directory, int(name.removeprefix("epoch-")), HeldFiles(directory, damaged))
    except FrameError:
        return
    raise AssertionError(name)


def every_bit(made: Made) -> list[tuple[str, int]]:
    """Each file and bit."""
    return [(name, bit) for name, data in sorted(made.contents.items()) for bit in range(8 * len(data))]


def zero_sectors(directory: str, made: Made) -> Counter[str]:
    """Zero one sector of a file, and several: refused, made good, or (at the journal's end) a tear that is told."""
    outcomes: Counter[str] = Counter()
    for name, data in made.contents.items():
        starts = range(0, len(data), SECTOR)
        for count in (1, 2, len(starts)):
            for start in starts:
                stop = min(len(data), start + count * SECTOR)
                zeroed = data[:start] + bytes(stop - start) + data[stop:]
                outcome, _ = judge(directory, made.contents | {name: zeroed}, made.truth)
                allowed = {"intact", "made good", "refused"}
                if name == str(made.last):
                    allowed = {"refused", "earlier, told"}
                if start < made.needed.get(name, 0) and name != str(made.last):
                    allowed = {"refused"}
                assert outcome in allowed, f"{name}, {count} sectors at {start}: {outcome}"
                outcomes[outcome] += 1
    return outcomes


def tear_last_write(directory: str, made: Made, rng: random.Random, times: int) -> Counter[str]:
    """Leave out any sectors of the last write, and any part of its end: always a tear, never corruption."""
    name = str(made.last)
    data = made.contents[name]
    ends = sorted(boundaries(made.last, data))
    outcomes: Counter[str] = Counter()
    for _ in range(times):
        nth = rng.randrange(1, len(ends))
        start, end = ends[nth - 1], ends[nth]
        torn = bytearray(data[: rng.choice((end, rng.randint(start + 1, end)))])
        sectors = range(start // SECTOR, (len(torn) - 1) // SECTOR + 1)
        lost = rng.sample(sectors, rng.randint(len(torn) == end, len(sectors)))
        for sector in lost:
            low, high = max(start, sector * SECTOR), min(len(torn), (sector + 1) * SECTOR)
            torn[low:high] = bytes(high - low)
        outcome, found = judge(directory, made.contents | {name: bytes(torn)}, made.truth)
        assert found is not None, f"{start} to {end}, without {lost}: {outcome}"
        assert found.seq == boundaries(made.last, data)[start]
        assert [notice.kind for notice in found.notices] == ["tear"]
        outcomes[outcome] += 1
    return outcomes


@experiment("bitflips", "every bit of every state file flipped")
def run(lab: Lab) -> Iterable[Row]:
    directory = f"{lab.directory}/state"
    made = make_state(directory, lab.rng, size=lab.times(26, 6))
    total = sum(map(len, made.contents.values()))
    bits = lab.few(every_bit(made), 20_000)
    outcomes = flip_bits(directory, made, lab.progress(bits, "bits", len(bits)))
    yield Row.tally(f"single bits of {len(made.contents)} files, {total:,} bytes", outcomes)


@experiment("sectors", "sectors zeroed, and last writes torn")
def run_sectors(lab: Lab) -> Iterable[Row]:
    directory = f"{lab.directory}/state"
    made = make_state(directory, lab.rng, size=lab.times(26, 6))
    yield Row.tally("sectors zeroed", zero_sectors(directory, made))
    yield Row.tally("torn last writes", tear_last_write(directory, made, lab.rng, lab.times(50_000, 2_000)))
