from __future__ import annotations

import asyncio
import math

import pytest

from asynctune.errors import ConfigError
from asynctune.packing import unpack
from asynctune.store.attached import CaptureError
from asynctune.store.store import ExperimentStore
from asynctune.testing import ManualClock
from tests.store.scenes import Counter, directory_with, state_of

PARTS = ["searcher", "scheduler"]


def attach(store, part, value):
    return getattr(store, f"attach_{part}")(value)


async def on_disk(location, part):
    return unpack((await asyncio.to_thread(state_of, location))[part])


@pytest.mark.parametrize("part", PARTS)
async def test_the_state_comes_back_with_the_seq_it_knows(location, part):
    first = Counter({"rng": [1, 2], "t": (1, 2)})
    async with ExperimentStore.open(location) as store:
        assert attach(store, part, first) is None
        assert attach(store, part, first) is None  # the same one again
        seq = await store.flush()
        assert (await on_disk(location, part)) == {"seq": seq, "state": first.value}
        first.value = {"rng": [3], "t": ()}
    for _ in range(2):
        other = Counter()
        async with ExperimentStore.open(location) as store:
            known = attach(store, part, other)
            assert known is not None
            assert seq < known <= store.opening.recovered_commits
            assert other.given == [{"rng": [3], "t": ()}]


@pytest.mark.parametrize("state", [b"\x80opaque", None, [], math.nan, "text", 2**80])
async def test_any_storable_state_comes_back(location, state):
    async with ExperimentStore.open(location) as store:
        store.attach_searcher(Counter(state))
    async with ExperimentStore.open(location) as store:
        other = Counter()
        store.attach_searcher(other)
        assert repr(other.given) == repr([state])


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [None, object(), "text", Counter])
async def test_what_lacks_the_methods_is_refused(store, part, value):
    if value is Counter:
        value = type("HalfDone", (), {"get_state": lambda self: 1})()
    with pytest.raises(ConfigError, match=f"the {part} .* has no method"):
        attach(store, part, value)
    attach(store, part, Counter())
    with pytest.raises(ConfigError, match="attached already"):
        attach(store, part, Counter())


async def test_a_set_state_that_fails_is_raised_and_nothing_is_attached(location):
    async with ExperimentStore.open(location) as store:
        store.attach_searcher(Counter(5))

    class Choosy(Counter):
        def set_state(self, state):
            raise RuntimeError("another version")

    async with ExperimentStore.open(location) as store:
        with pytest.raises(RuntimeError, match="another version"):
            store.attach_searcher(Choosy())
        other = Counter()
        store.attach_searcher(other)
        assert other.value == 5


@pytest.mark.parametrize("part", PARTS)
async def test_a_failing_get_state_is_told_by_flush_and_everything_else_is_durable(location, part, caplog):
    searcher = Counter(1)
    store = await ExperimentStore.open(location)
    attach(store, part, searcher)
    await store.flush()
    searcher.value, searcher.error = 2, RuntimeError("sampler broke")
    store.set_metadata("k", "kept")
    with pytest.raises(CaptureError, match="sampler broke") as caught:
        await store.flush()
    assert part in str(caught.value)
    assert "Counter" in str(caught.value)
    assert caught.value.__cause__ is searcher.error
    assert unpack((await asyncio.to_thread(state_of, location))["meta/k"]) == "kept"
    assert (await on_disk(location, part))["state"] == 1
    store.set_metadata("k", "at the close")
    with pytest.raises(CaptureError):
        await store.aclose()
    await store.aclose()  # told once
    async with ExperimentStore.open(location) as store:
        assert store.metadata == {"k": "at the close"}
        other = Counter()
        attach(store, part, other)
        assert other.given == [1]


async def test_one_that_stands_for_another_is_named_as_it_says(location):
    class Cover(Counter):
        state_of = "TheirSearcher"

    store = await ExperimentStore.open(location)
    cover = Cover(object())
    store.attach_searcher(cover)
    with pytest.raises(CaptureError, match="the state of the searcher TheirSearcher could not") as caught:
        await store.flush()
    assert "Cover" not in str(caught.value)
    cover.value = 1
    await store.aclose()


async def test_a_state_that_cannot_be_packed_names_the_part(location):
    store = await ExperimentStore.open(location)
    searcher = Counter({"trials": [1, object()]})
    store.attach_searcher(searcher)
    with pytest.raises(CaptureError, match=r"searcher state\['trials'\]\[1\]"):
        await store.flush()
    searcher.value = {"trials": [1, 2]}
    await store.flush()
    searcher.value = {"trials": [1, {1, object}]}
    with pytest.raises(CaptureError, match=r"searcher state\['trials'\]\[1\]"):
        await store.flush()
    searcher.value = 7
    await store.aclose()
    assert (await on_disk(location, "searcher"))["state"] == 7


async def test_a_state_with_an_array_in_it_says_so_each_time(store):
    numpy = pytest.importorskip("numpy")
    searcher = Counter({"w": [1.0]})
    store.attach_searcher(searcher)
    await store.flush()
    searcher.value = {"w": numpy.ones(3)}
    with pytest.raises(CaptureError, match="is an array"):
        await store.flush()
    searcher.value = None


async def test_a_background_capture_that_fails_is_an_event_and_the_store_goes_on(location, caplog):
    clock = ManualClock()
    async with ExperimentStore.open(location, clock=clock) as store:
        searcher = Counter(1)
        searcher.error = RuntimeError("sampler broke")
        store.attach_searcher(searcher)
        events = store.events()
        store.set_metadata("k", 1)
        await clock.advance(10)
        kinds = []
        async for event in events:
            kinds.append(event.kind)
            if event.kind == "committed":
                break
        assert "searcher_failed" in kinds
        assert "sampler broke" in caplog.text
        searcher.error = None


async def test_a_capture_that_fails_again_and_again_is_told_once_until_one_goes_well(location, caplog):
    clock = ManualClock()
    async with ExperimentStore.open(location, clock=clock) as store:
        searcher = Counter(1)
        store.attach_searcher(searcher)
        events = store.events()
        for error in (True, True, True, False, True, True):
            searcher.error = RuntimeError("sampler broke") if error else None
            seq = store.stats().committed_seq
            store.set_metadata("k", clock.monotonic())
            searcher.value += 1
            while store.stats().committed_seq == seq:
                await clock.advance(10)
        searcher.error = None
    kinds = [event.kind async for event in events]
    assert kinds.count("searcher_failed") == 2
    assert caplog.text.count("sampler broke") == 2


async def test_a_state_that_did_not_change_dirties_nothing(store):
    searcher = Counter({"nan": math.nan})
    store.attach_searcher(searcher)
    await store.flush()
    seq = await store.flush()
    assert await store.flush() == seq
    assert searcher.captures >= 3
    assert store.stats().dirty_keys == 0


class Slow(Counter):
    """Takes a second of its clock."""

    def __init__(self, clock, value):
        super().__init__(value)
        self.clock = clock

    def get_state(self):
        self.clock.move(1.0)
        return super().get_state()


async def test_commits_forced_by_a_checkpoint_leave_the_searcher_out(location, tmp_path):
    clock = ManualClock()
    async with ExperimentStore.open(location, clock=clock) as store:
        searcher = Slow(clock, 1)
        store.attach_searcher(searcher)
        await store.flush()
        store.add_trial({}, "t")
        captures, searcher.value = searcher.captures, 2
        await store.save_checkpoint("t", directory_with(tmp_path / "d"))
        assert searcher.captures == captures
        assert (await on_disk(location, "searcher"))["state"] == 1
        await store.flush()
        assert (await on_disk(location, "searcher"))["state"] == 2
        searcher.value = 3
    assert (await on_disk(location, "searcher"))["state"] == 3


async def test_a_slow_searcher_has_a_budget_of_its_own(location):
    clock = ManualClock()
    async with ExperimentStore.open(location, clock=clock) as store:
        searcher = Slow(clock, 0)
        store.attach_searcher(searcher)
        await store.flush()
        assert searcher.captures == 1
        before = store.stats()
        for number in range(1, 23):  # within 24 seconds
            store.set_metadata("k", number)
            searcher.value = number
            assert store._engine is not None
            # before time goes on: a commit under way would seem to take it
            await store._engine.writer.flush()
            await clock.advance(1.0)
        assert searcher.captures == 1
        assert store.stats().commits > before.commits  # the others did not wait for it
        events = store.events()
        await clock.advance(3.0)
        while (await anext(events)).kind != "committed":
            pass
        assert searcher.captures == 2
        assert (await on_disk(location, "searcher"))["state"] == 22
        assert store.stats().checkpoint_seconds >= 2.0


async def test_any_number_of_states_by_name(location):
    async with ExperimentStore.open(location) as store:
        assert store.attach_state("pace", Counter({"n": 1})) is None
        assert store.attach_state("other", Counter(2)) is None
        with pytest.raises(ConfigError, match="a pace is attached already"):
            store.attach_state("pace", Counter())
        with pytest.raises(ConfigError, match="must be a text"):
            store.attach_state("", Counter())
        seq = await store.flush()
        assert await on_disk(location, "state/pace") == {"seq": seq, "state": {"n": 1}}
    async with ExperimentStore.open(location) as store:
        assert store.attach_state("other", again := Counter()) is not None
        assert again.given == [2]


async def test_an_object_is_told_when_its_state_could_be_packed(store):
    class Told(Counter):
        times = 0

        def state_saved(self):
            self.times += 1

    told = Told({"fine": 1})
    store.attach_searcher(told)
    await store.flush()
    assert told.times == 1
    told.value = object()
    with pytest.raises(CaptureError):
        await store.flush()
    assert told.times == 1
    told.value = 3
    await store.flush()
    assert told.times == 2
