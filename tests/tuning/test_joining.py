"""Searcher, scheduler and callbacks know, after a restore, what they knew; and hear what the restore changed."""

from __future__ import annotations

from typing import Any

import pytest

from asynctune import CorruptStateError, ExperimentStore, RunConfig, TuneConfig, Tuner, UserCodeError
from tests.tuning import trainables
from tests.tuning.test_deciding import Searcher


class Remembers(Searcher):
    """Proposes numbers, and keeps what it is told in its state."""

    def suggest(self, trial_id):
        self.told.append(["suggest", trial_id])
        return {"x": len([each for each in self.told if each[0] == "suggest"])}

    def on_trial_result(self, trial_id, result):
        self.told.append(["result", trial_id, result["training_iteration"]])

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.told.append(["complete", trial_id, error])

    def on_trial_add(self, trial_id, config):
        self.told.append(["add", trial_id, config["x"]])

    def add_past_trial(self, trial, rows, *, ended, failed):
        self.told.append(["past", trial.trial_id, [row["training_iteration"] for row in rows], ended, failed])

    def get_state(self):
        return self.told

    def set_state(self, state):
        self.told = state


class Counting:
    """A callback with a state."""

    def __init__(self):
        self.results = 0

    def on_trial_result(self, trial, result):
        self.results += 1

    def get_state(self):
        return self.results

    def set_state(self, state):
        self.results = state


def settings(searcher, samples, **run):
    return {
        "tune_config": TuneConfig(search_alg=searcher, num_samples=samples, max_concurrent_trials=1),
        "run_config": RunConfig(verbose=0, **run),
    }


async def made(tmp_path, *, callbacks=(), samples=4):
    """Four trials of `failing`, of which the first and the third fail."""
    made = settings(Remembers(), samples, name="exp", local_dir=tmp_path, callbacks=callbacks)
    await Tuner(trainables.failing, **made).fit()
    return tmp_path / "exp"


async def rerun(path, *, callbacks=(), samples=4, **flags):
    searcher = Remembers()
    tuner = await Tuner.restore(
        path, trainables.failing, **flags, **settings(searcher, samples, callbacks=callbacks)
    )
    return searcher.told, await tuner.fit(), searcher


async def test_the_past_is_told_before_anything_else(tmp_path):
    path = await made(tmp_path)
    _, results, searcher = await rerun(path, samples=5)
    one, two, three, four, five = (result.trial_id for result in results)
    past = [
        ["past", one, [1], True, True],
        ["past", two, [1], True, False],
        ["past", three, [1], True, True],
        ["past", four, [1], True, False],
    ]
    assert searcher.told[12:] == [*past, ["suggest", five], ["result", five, 1], ["complete", five, False]]


@pytest.mark.parametrize("known", [8, 7], ids=["reported", "suggested"])
async def test_what_the_saved_state_does_not_know_is_no_past(tmp_path, monkeypatch, known):
    monkeypatch.setattr(ExperimentStore, "drop_events", lambda _store, _before: None)
    path = await made(tmp_path)
    async with ExperimentStore.open(path, mode="resume") as store:
        # as if the state had been saved after the proposal or the result of the third trial
        state: Any = store._records.get("searcher")
        state["state"] = {"position": known, "state": state["state"]["state"][:known]}
        store._records.put("searcher", state)
        store.set_metadata("asynctune.progress", {"finished": False})
        events = [event[0] for _, event in store.logged_events()]
        assert events[-4:] == ["completed", "suggested", "reported", "completed"], (
            "the log still has what is needed"
        )
    _, results, searcher = await rerun(path)
    one, two, three, four = (result.trial_id for result in results)
    rows = [1] if known == 8 else []
    past = [
        ["past", one, [1], True, True],
        ["past", two, [1], True, False],
        ["past", three, rows, False, False],
    ]
    again = [["complete", three, True], ["suggest", four], ["result", four, 1], ["complete", four, False]]
    if known == 7:
        again.insert(0, ["result", three, 1])
    assert searcher.told[known:] == past + again


async def test_a_trial_that_was_resumed_after_the_saved_state_had_failed_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ExperimentStore, "drop_events", lambda _store, _before: None)
    path = await made(tmp_path)
    async with ExperimentStore.open(path, mode="read") as store:
        before = store.saved_state("searcher")
    _, results, _ = await rerun(path, resume_errored=True)
    one, two, three, four = (result.trial_id for result in results)
    async with ExperimentStore.open(path, mode="resume") as store:
        # as if no state had been saved since
        assert before is not None
        store._records.put("searcher", {"seq": before[0], "state": before[1]})
        store.set_metadata("asynctune.progress", {"finished": False})
    _, _, searcher = await rerun(path)
    assert [each for each in searcher.told[12:] if each[0] == "past"] == [
        ["past", one, [], True, True],
        ["past", two, [1], True, False],
        ["past", three, [], True, True],
        ["past", four, [1], True, False],
    ]
    assert [each[:2] for each in searcher.told[16:18]] == [["add", one], ["add", three]]


@pytest.mark.parametrize(("flag", "count"), [("resume_errored", 4), ("restart_errored", 4)])
async def test_failed_trials_that_run_again_are_told_of(tmp_path, flag, count):
    path = await made(tmp_path)
    _, results, searcher = await rerun(path, **{flag: True})
    assert len(results) == count
    told = [each for each in searcher.told[12:] if each[0] != "past"]
    added = [each for each in told if each[0] == "add"]
    assert [each[2] for each in added] == [1, 3]
    failed = {each[1] for each in added}
    assert failed == {result.trial_id for result in results if result.config["x"] in {1, 3}}
    assert [each for each in told if each[0] == "complete"] == [["complete", each[1], True] for each in added]


async def test_trials_that_are_not_resumed_are_told_to_have_ended(tmp_path):
    path = await made(tmp_path)
    async with ExperimentStore.open(path, mode="resume") as store:
        waiting = store.add_trial({"x": 9}).trial_id
        store.set_metadata("asynctune.progress", {"finished": False})
    _, results, searcher = await rerun(path, resume_unfinished=False)
    assert results[4].status == "TERMINATED"
    assert searcher.told[-2:] == [["past", waiting, [], False, False], ["complete", waiting, False]]


async def test_a_past_that_cannot_be_taken_is_told_of(tmp_path):
    path = await made(tmp_path)

    class Forgets(Remembers):
        __qualname__ = "Remembers"

        def add_past_trial(self, trial, rows, *, ended, failed):
            raise ValueError("no memory")

    tuner = await Tuner.restore(path, trainables.failing, **settings(Forgets(), 5))
    with pytest.raises(UserCodeError, match=r"add_past_trial\(.*no memory"):
        await tuner.fit()
    assert len(await made_again(path)) == 5, "nothing is lost by it"


async def made_again(path):
    return (await rerun(path, samples=5))[1]


async def test_callbacks_go_on_where_they_were(tmp_path):
    path = await made(tmp_path, callbacks=[counts := Counting()])
    assert counts.results == 4
    _, _, _ = await rerun(path, samples=6, callbacks=[counts := Counting()])
    assert counts.results == 6


async def test_a_state_of_a_bare_store_is_refused(tmp_path):
    path = await made(tmp_path)
    async with ExperimentStore.open(path, mode="resume") as store:
        store._records.put("searcher", {"seq": 1, "state": [1]})
    with pytest.raises(CorruptStateError, match="not written by a Tuner"):
        await rerun(path, samples=5)


async def test_results_that_are_gone_are_said_to_and_end_nothing(tmp_path, caplog):
    path = await made(tmp_path)
    for file in path.glob("*/result.json"):
        file.unlink()
    _, results, searcher = await rerun(path, samples=5)
    assert len(results) == 5
    assert [each[2] for each in searcher.told if each[0] == "past"] == [[]] * 4
    assert caplog.text.count("the searcher is not told the past results of trial") == 4
