"""What is told of a Tuner's experiment, of a bare store's searcher, and of settings that make no sense."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from asynctune import (
    ExperimentStore,
    FailureConfig,
    RunConfig,
    TuneConfig,
    Tuner,
    grid_search,
    sample_from,
    uniform,
)
from asynctune.errors import ConfigError
from asynctune.inspect.facts import experiment_facts, facts_grid
from asynctune.inspect.jsonout import json_text
from asynctune.inspect.report import TrialsReport
from asynctune.inspect.tuned import KNOWN_FORM, objective, own_objective, tuning
from tests.inspect_cli.examples import a_head, a_tuning
from tests.inspect_cli.stores import ask, show
from tests.tuning import trainables


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


class Patient:
    """A scheduler that counts."""

    def __init__(self) -> None:
        self.seen = 0

    def on_trial_result(self, _trial_id, _result):
        self.seen += 1
        return "CONTINUE"

    def choose_trial_to_run(self, trial_ids):
        return trial_ids[0] if trial_ids else None

    def get_state(self):
        return self.seen

    def set_state(self, state):
        self.seen = state


class Quiet:
    def on_experiment_end(self, _trials):
        pass


def run_config(path: Path, **given: Any) -> RunConfig:
    return RunConfig(name=path.name, local_dir=path.parent, verbose=0, **given)


async def fit(path: Path, trainable: Any, space: dict[str, Any], tune: TuneConfig, **run: Any) -> None:
    await Tuner(trainable, param_space=space, tune_config=tune, run_config=run_config(path, **run)).fit()


async def fit_and_restore(path: Path) -> None:
    """Four trials of which two fail after a retry; they are started over once, and fail again."""

    def tune() -> TuneConfig:
        return TuneConfig(
            metric="loss", mode="min", num_samples=1, max_concurrent_trials=2, scheduler=Patient()
        )

    given: dict[str, Any] = {"failure_config": FailureConfig(max_failures=1), "callbacks": [Quiet()]}
    await fit(path, trainables.failing, {"x": grid_search([0, 1, 2, 3])}, tune(), **given)
    tuner = await Tuner.restore(
        path, restart_errored=True, tune_config=tune(), run_config=RunConfig(verbose=0, **given)
    )
    await tuner.fit()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "tuned"
    asyncio.run(fit_and_restore(path))
    return path


# -- a Tuner's experiment ----------------------------------------------------------------------------------


def test_a_summary_tells_how_it_searches_and_how_far_it_is(tuned, capsys):
    code, text, errors = show(capsys, tuned)
    assert (code, errors) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in text.partition("\n\n")[0].splitlines())
    assert lines["trainable"] == "failing (coroutine)"
    assert lines["searcher"].startswith("grid search; state of commit ")
    assert lines["searcher"].endswith(", up to date")
    assert lines["scheduler"].startswith("Patient; state of commit ")
    assert lines["callbacks"].startswith("Quiet")
    assert lines["metric"] == "loss, min"
    assert lines["samples"] == "4 of 4 proposed (1 x a grid of 4)"
    assert lines["run"] == "finished, restored once"
    assert lines["trials"] == "4: 2 TERMINATED, 2 ERROR"
    assert lines["failures"] == "4 in 2 trials, 2 tried again; 2 trials were started over"
    assert lines["best"].startswith("loss = 0, ")
    assert "settings" not in lines  # their form is known
    assert "metadata" not in lines
    assert "asynctune." not in text


def test_the_document_says_the_same(tuned, capsys):
    code, document = ask(capsys, tuned)
    experiment = document["experiment"]
    assert code == 0
    assert experiment["tuner"] == {
        "form": KNOWN_FORM,
        "trainable": "failing",
        "trainable_kind": "coroutine",
        "runner": None,
        "searcher": None,
        "search": "grid search",
        "scheduler": "Patient",
        "callbacks": ["Quiet"],
        "num_samples": 1,
        "grid_size": 4,
        "samples_planned": 4,
        "samples_proposed": 4,
        "max_concurrent_trials": 2,
        "stop": None,
        "stop_function": None,
        "max_failures": 1,
        "fail_fast": False,
        "restores": 1,
        "finished": True,
    }
    for name in ("searcher", "scheduler"):
        state = experiment["saved_states"][name]
        assert (state["events_behind"], state["error"]) == (0, None)
        assert 0 < state["seq"] <= experiment["seq"]
    assert (experiment["metric"], experiment["mode"], experiment["epoch"]) == ("loss", "min", 2)
    assert (document["metric"], document["mode"], document["best"]["last_result"]["loss"]) == (
        "loss",
        "min",
        0,
    )
    assert (document["failures"], document["retries"], experiment["trials_started_over"]) == (4, 2, 2)


def test_the_metric_need_not_be_named(tuned, capsys):
    _, asked = ask(capsys, tuned, "best", "--metric", "loss", "--mode", "min")
    _, own = ask(capsys, tuned, "best")
    assert [own[name] for name in ("metric", "mode", "best")] == [
        asked[name] for name in ("metric", "mode", "best")
    ]
    assert ask(capsys, tuned, "best", "--metric", "loss")[1]["mode"] == "min"
    assert ask(capsys, tuned, "best", "--mode", "max")[1]["best"]["last_result"]["loss"] == 3
    assert "(max), " in show(capsys, tuned, "--mode", "max")[1]
    code, _, errors = show(capsys, tuned, "best", "--metric", "other")
    assert (code, "the experiment has min for 'loss' alone" in errors) == (2, True)


def test_a_trial_tells_what_was_tried_again_and_started_over(tuned, capsys):
    _, document = ask(capsys, tuned, "trials", "--status", "ERROR")
    new = document["trials"][0]["trial_id"]
    old = document["trials"][0]["in_place_of"]
    assert document["trials"][0]["started_over_as"] is None
    _, text, _ = show(capsys, tuned, "trial", new)
    assert f"in place of  {old}, which failed" in text
    assert "failures     2, tried again once" in text
    assert "\nerror\n" in text
    code, document = ask(capsys, tuned, "trial", old)
    assert (code, document["trial"]["started_over_as"], document["trial"]["in_place_of"]) == (0, new, None)
    assert f"status      ERROR, started over as {new}" in show(capsys, tuned, "trial", old)[1]


def test_a_trial_that_came_through_shows_its_last_error(tmp_path, capsys):
    path = tmp_path / "once"
    asyncio.run(
        fit(path, trainables.failing_once, {}, TuneConfig(), failure_config=FailureConfig(max_failures=1))
    )
    (trial,) = ask(capsys, path)[1]["trials"]
    _, text, _ = show(capsys, path, "trial", trial["trial_id"])
    assert "status      TERMINATED" in text
    assert "failures    1, tried again once" in text
    assert "\nlast error\n" in text
    assert "RuntimeError: half way" in text


def test_a_directory_names_the_best_of_each_by_its_own_metric(tuned, capsys):
    code, text, _ = show(capsys, tuned.parent)
    assert code == 0
    header, line = text.splitlines()[:2]
    assert header.split()[-3:] == ["best", "best", "trial"]
    assert "loss = 0" in line
    (line,) = ask(capsys, tuned.parent)[1]["experiments"]
    assert (line["metric"], line["mode"], line["best"]["last_result"]["loss"]) == ("loss", "min", 0)


@pytest.mark.parametrize(
    ("space", "searcher", "scheduler", "samples"),
    [
        ({"x": uniform(0, 1)}, "random search", "FIFO, stops no trial early", "3 of 3 proposed"),
        (
            {"x": uniform(0, 1), "y": [grid_search([1, 2])]},
            "random and grid search",
            "FIFO, stops no trial early",
            "6 of 6 proposed (3 x a grid of 2)",
        ),
        (
            {"x": sample_from(lambda _: 2)},
            "random or grid search",
            "FIFO, stops no trial early",
            "3 of 3 proposed",
        ),
    ],
    ids=["random", "both", "functions"],
)
def test_the_built_in_search_is_told_in_words(tmp_path, capsys, space, searcher, scheduler, samples):
    asyncio.run(fit(tmp_path / "exp", trainables.failing, space, TuneConfig(num_samples=3)))
    lines = dict(
        line.split(maxsplit=1) for line in show(capsys, tmp_path / "exp")[1].partition("\n\n")[0].splitlines()
    )
    assert lines["searcher"].partition(";")[0] == searcher
    assert (lines["scheduler"], lines["samples"], lines["run"]) == (
        scheduler,
        samples,
        "finished, never restored",
    )
    assert "metric" not in lines


# -- a bare store's ----------------------------------------------------------------------------------------


class Fixed:
    def get_state(self):
        return {"position": 0, "state": 1}

    def set_state(self, state):
        pass


async def attach(path: Path) -> None:
    async with ExperimentStore.open(path) as store:
        store.attach_searcher(Fixed())
        await store.flush()
        store.append_event("mine")
        store.set_metadata("asynctune.mine", 7)


def test_a_bare_store_tells_whether_there_is_a_saved_state(tmp_path, capsys):
    asyncio.run(attach(tmp_path / "bare"))
    _, document = ask(capsys, tmp_path / "bare")
    seq = document["experiment"]["seq"]
    state = document["experiment"]["saved_states"]["searcher"]
    assert state["seq"] < seq
    assert state["events_behind"] is None  # its log is not a Tuner's
    assert document["experiment"]["tuner"] is None
    _, text, _ = show(capsys, tmp_path / "bare")
    labels = [line.split()[0] for line in text.partition("\n\n")[0].splitlines()]
    assert labels == ["experiment", "location", "created", "driver", "searcher", "trials", "metadata"]
    assert f"searcher    state of commit {state['seq']} of {seq}\n" in text
    assert "asynctune.mine=7" in text


def test_a_tracked_metric_is_the_experiments_own(tmp_path, capsys):
    async def fill() -> None:
        async with ExperimentStore.open(tmp_path / "bare") as store:
            store.track_metric("loss", "min")
            for loss in (2, 1):
                store.report(store.add_trial({}).trial_id, {"loss": loss})

    asyncio.run(fill())
    assert ask(capsys, tmp_path / "bare", "best")[1]["best"]["last_result"]["loss"] == 1
    assert "best        loss = 1" in show(capsys, tmp_path / "bare")[1]


@pytest.mark.parametrize("command", ["summary", "trials", "best", "verify"])
def test_a_saved_state_that_makes_no_sense_is_a_problem(tmp_path, capsys, command):
    async def fill() -> None:
        async with ExperimentStore.open(tmp_path / "odd") as store:
            store.track_metric("loss", "min")
            store.report(store.add_trial({}).trial_id, {"loss": 1})
            store._records.put("scheduler", [1, 2])

    asyncio.run(fill())
    code, document = ask(capsys, tmp_path / "odd", command)
    (problem,) = document["problems"]
    assert (code, problem["kind"]) == (1, "state")
    assert "the saved state of the scheduler cannot be read" in problem["message"]
    if command == "summary":
        assert "scheduler   its saved state cannot be read" in show(capsys, tmp_path / "odd")[1]


def test_events_that_a_saved_state_does_not_know_are_counted(tmp_path, capsys):
    async def fill() -> None:
        async with ExperimentStore.open(tmp_path / "exp") as store:
            store.set_metadata("asynctune.tuner", {"form": KNOWN_FORM, "searcher": "Mine", "scheduler": None})
            numbers = [store.append_event(n) for n in range(1200)]
            store._records.put("searcher", {"seq": 1, "state": {"position": numbers[100], "state": None}})
            store._records.put("scheduler", {"seq": 1, "state": "none of a Tuner's"})

    asyncio.run(fill())
    states = ask(capsys, tmp_path / "exp")[1]["experiment"]["saved_states"]
    assert {name: state["events_behind"] for name, state in states.items()} == {
        "searcher": 1100,
        "scheduler": None,
    }
    assert "searcher    Mine; state of commit 1 of" in show(capsys, tmp_path / "exp")[1]
    assert ", 1,100 events behind" in show(capsys, tmp_path / "exp")[1]


# -- settings that make no sense ---------------------------------------------------------------------------

FIELDS = [
    "form",
    "trainable",
    "kind",
    "space",
    "functions",
    "metric",
    "mode",
    "num_samples",
    "max_concurrent_trials",
    "searcher",
    "scheduler",
    "stop",
    "stop_function",
    "failure",
    "callbacks",
    "runner",
    "restores",
    "new",
]
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
anything = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(
            st.text(max_size=5) | st.integers() | st.sampled_from(["__domain__", "values"]),
            inner,
            max_size=3,
        )
        | st.just({"__domain__": "grid", "values": [1, 2]})
    ),
    max_leaves=12,
)


def told(metadata: dict[str, Any]) -> tuple[str, Any]:
    """The head of a summary, and the document, of an experiment with this metadata."""
    settings = tuning(metadata, 4)
    head = a_head(metadata=metadata, tuning=settings, objective=own_objective(settings, (None, None)))
    report = TrialsReport(head=head, counts={}, matching=0, left_out={}, rows=())
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as capture:
        console.print(facts_grid(experiment_facts(report)))
    return capture.get(), json.loads("".join(json_text("summary", report)))


@given(anything | st.dictionaries(st.sampled_from(FIELDS), anything), anything)
def test_no_settings_keep_the_rest_from_being_told(settings, progress):
    text, document = told({"note": 1, "asynctune.tuner": settings, "asynctune.progress": progress})
    assert "experiment  digits" in text
    assert "note=1" in text
    assert document["experiment"]["tuner"]["samples_proposed"] == 4


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        (
            {"form": KNOWN_FORM + 1, "trainable": "train"},
            f"not known here ({KNOWN_FORM + 1}); shown is what can be",
        ),
        ([1, 2], "of a form that is not known here (none)"),
    ],
    ids=["newer", "damaged"],
)
def test_settings_of_another_form_are_said_to_be(settings, shown):
    text, document = told({"asynctune.tuner": settings})
    assert shown in text
    assert "searcher    unknown" in text
    assert "scheduler   unknown" in text
    assert "whether it is finished is not known" in text
    assert document["experiment"]["tuner"]["searcher"] == "unknown"
    assert document["experiment"]["tuner"]["samples_planned"] is None


def test_a_search_without_end_and_a_given_runner_are_told():
    text, _ = told(
        {
            "asynctune.tuner": {
                "form": KNOWN_FORM,
                "trainable": "train",
                "kind": "class",
                "runner": "Cluster",
                "searcher": "Tpe",
                "scheduler": "Asha\x1b[31m",
                "num_samples": -1,
                "restores": 3,
            },
            "asynctune.progress": {"finished": False},
        }
    )
    assert "trainable   train (class), run by Cluster" in text
    assert "searcher    Tpe; no state saved yet" in text
    assert "scheduler   Asha\\x1b[31m" in text
    assert "samples     4 proposed, without end" in text
    assert "run         not finished, restored 3 times" in text


# -- which metric ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "tracked", "own"),
    [
        (None, (None, None), None),
        (None, ("acc", "max"), ("acc", "max")),
        (a_tuning(), ("acc", "max"), ("loss", "min")),
        (a_tuning(metric=None, mode=None), ("acc", "max"), ("acc", "max")),
        (a_tuning(mode="pareto"), (None, None), None),
    ],
    ids=["none", "tracked", "tuned", "tuned-without", "unknown-mode"],
)
def test_the_tuned_metric_is_the_experiments_own_else_the_tracked_one(settings, tracked, own):
    assert own_objective(settings, tracked) == own


def test_what_is_asked_for_goes_before_the_experiments_own():
    head = a_head(objective=("loss", "min"))
    assert objective(head, None, None) == ("loss", "min")
    assert objective(head, None, "max") == ("loss", "max")
    assert objective(head, "loss", None) == ("loss", "min")
    assert objective(head, "acc", "max") == ("acc", "max")
    with pytest.raises(ConfigError, match="--metric acc needs --mode"):
        objective(head, "acc", None)
    assert objective(a_head(), None, None) is None
