from __future__ import annotations

import itertools
import math
import types

import pytest

from asynctune.config import CheckpointConfig
from asynctune.errors import ConfigError, TransitionError, TrialNotFoundError
from asynctune.store.store import ExperimentStore
from asynctune.trial import ALLOWED_TRANSITIONS, TrialStatus
from tests.store.scenes import StoppedClock, directory_with, put_into, result_rows

PENDING, RUNNING, PAUSED, TERMINATED, ERROR = TrialStatus


# -- adding ------------------------------------------------------------------------------------------------


async def test_a_new_trial_is_pending_with_what_was_given(location):
    clock = StoppedClock(1_700_000_123.5)
    async with ExperimentStore.open(location, clock=clock) as store:
        trial = store.add_trial({"lr": 0.1, "layers": (64, 32)}, metadata={"job": 17})
        assert trial == store.get_trial(trial.trial_id)
        assert trial.config == {"lr": 0.1, "layers": (64, 32)}
        assert (trial.status, trial.num_results, trial.num_failures) == (PENDING, 0, 0)
        assert trial.metadata == {"job": 17}
        assert trial.trial_name == trial.trial_id
        assert trial.created_at == clock.now
        assert (trial.started_at, trial.ended_at, trial.error, trial.checkpoints) == (None, None, None, ())
        assert trial.last_result == {}
        assert trial.trial_id == f"{store.experiment_id[:5]}_00000"


async def test_ids_and_names_are_unique_in_every_combination(store):
    store.add_trial({}, "a")
    store.add_trial({}, "b", "named")
    for trial_id, name in [("a", None), ("a", "c"), ("c", "a"), ("c", "named"), ("named", None), ("c", "b")]:
        with pytest.raises(ConfigError, match=r"taken|directory of another trial"):
            store.add_trial({}, trial_id, name)
    store.add_trial({}, "named", "other")
    assert [t.trial_id for t in store.trials] == ["a", "b", "named"]
    assert store.get_trial("b").trial_name == "named"


@pytest.mark.parametrize("name", ["a/b", "..", "x\0y", "x" * 300, " x", "\ud800", "", ".x", 5])
async def test_a_bad_name_adds_nothing(store, name):
    for given in ({"trial_id": name}, {"trial_name": name}, {"trial_id": "ok", "trial_name": name}):
        with pytest.raises(ConfigError):
            store.add_trial({}, **given)
    assert len(store.trials) == 0
    assert store.stats().dirty_keys <= 2


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"a": {"b": [1, object()]}}, r"config\['a'\]\['b'\]\[1\]"),
        ({"a": lambda: 0}, r"config\['a'\] is code"),
        ({"a": {"b": "\ud800"}}, r"config\['a'\]\['b'\] is text that is not valid Unicode"),
        ({"a": {("k", b"k"): object()}}, r"config\['a'\]\[\('k', b'k'\)\]"),
        ({5: 1}, "config has the key 5"),
        ([("a", 1)], "config must be a mapping"),
        (None, "config must be a mapping"),
    ],
)
async def test_a_config_that_cannot_be_stored_names_the_path_to_the_part_and_adds_nothing(
    store, config, path
):
    with pytest.raises(ConfigError, match=path):
        store.add_trial(config)
    trial = store.add_trial({"x": 1})
    with pytest.raises(ConfigError, match=path.replace("NoneType", "")):
        store.update_trial(trial.trial_id, config=config if config is not None else [None])
    assert [t.config for t in store.trials] == [{"x": 1}]


async def test_metadata_and_metrics_that_cannot_be_stored_name_the_path_and_change_nothing(store):
    with pytest.raises(ConfigError, match=r"metadata\['job'\]\[0\]"):
        store.add_trial({}, metadata={"job": [object()]})
    trial = store.add_trial({}, metadata={"keep": 1})
    with pytest.raises(ConfigError, match=r"metadata\['job'\]"):
        store.update_trial(trial.trial_id, metadata={"job": object()})
    with pytest.raises(ConfigError, match="metadata must be a mapping"):
        store.update_trial(trial.trial_id, metadata=[1])
    with pytest.raises(ConfigError, match=r"metrics\['eval'\]\['acc'\]"):
        store.report(trial.trial_id, {"eval": {"acc": object()}})
    with pytest.raises(ConfigError, match="metrics has the key 1"):
        store.report(trial.trial_id, {1: 1})
    with pytest.raises(ConfigError, match="metrics must be a mapping"):
        store.report(trial.trial_id, [1])
    assert store.get_trial(trial.trial_id) == trial


async def test_a_recursive_value_is_refused(store):
    config: dict[str, object] = {}
    config["self"] = config
    with pytest.raises(ConfigError, match="nested too deeply"):
        store.add_trial(config)


async def test_an_oversized_value_is_an_error_at_the_call_and_the_store_goes_on(store, monkeypatch):
    trial = store.add_trial({"x": 1})
    monkeypatch.setattr("asynctune.store.records.MAX_RECORD_BYTES", 1000)
    large = "x" * 1100
    for call in (
        lambda: store.add_trial({"x": large}),
        lambda: store.update_trial(trial.trial_id, config={"x": large}),
        lambda: store.update_trial(trial.trial_id, metadata={"x": large}),
        lambda: store.report(trial.trial_id, {"x": large}),
        lambda: store.set_metadata("k", large),
        lambda: store.set_metadata(large, 1),
        lambda: store.set_status(trial.trial_id, ERROR, error=large),
    ):
        with pytest.raises(ConfigError, match="limit is 1,000"):
            call()
    assert store.get_trial(trial.trial_id) == trial
    assert len(store.trials) == 1
    await store.flush()


async def test_later_changes_of_the_callers_values_change_nothing(store):
    config, metadata, metrics, value = {"a": [1]}, {"m": {"n": 1}}, {"loss": [1.0]}, {"k": [1]}
    trial_id = store.add_trial(config, metadata=metadata).trial_id
    store.report(trial_id, metrics)
    store.set_metadata("v", value)
    config["a"].append(2)
    metadata["m"]["n"] = 2
    metrics["loss"].append(2.0)
    value["k"].append(2)
    before = store.get_trial(trial_id)
    assert before.config == {"a": [1]}
    assert before.metadata == {"m": {"n": 1}}
    assert before.last_result["loss"] == [1.0]
    assert store.metadata == {"v": {"k": [1]}}
    # ... nor do changes of what the store handed out
    before.config["a"].append(3)
    before.last_result["loss"].append(3)
    store.metadata["v"]["k"].append(3)
    assert store.get_trial(trial_id).config == {"a": [1]}
    assert store.get_trial(trial_id).last_result["loss"] == [1.0]
    assert store.metadata == {"v": {"k": [1]}}


async def test_any_mapping_is_taken(store):
    trial = store.add_trial(types.MappingProxyType({"a": types.MappingProxyType({"b": 1})}))
    store.report(trial.trial_id, types.MappingProxyType({"loss": 1}))
    assert store.get_trial(trial.trial_id).config == {"a": {"b": 1}}
    assert store.get_trial(trial.trial_id).last_result["loss"] == 1


async def test_update_trial_replaces_the_config_and_merges_the_metadata(store):
    trial_id = store.add_trial({"a": 1, "b": 2}, trial_name="n", metadata={"x": 1, "y": 1}).trial_id
    store.update_trial(trial_id, config={"a": 3})
    store.update_trial(trial_id, metadata={"y": 2, "z": 3})
    store.update_trial(trial_id)
    trial = store.get_trial(trial_id)
    assert trial.config == {"a": 3}
    assert trial.metadata == {"x": 1, "y": 2, "z": 3}
    assert trial.trial_name == "n"


async def test_a_config_that_changed_reaches_params_json(location):
    async with ExperimentStore.open(location) as store:
        trial_id = store.add_trial({"lr": 1}).trial_id
        store.set_status(trial_id, RUNNING)
        await store.flush()
        store.update_trial(trial_id, config={"lr": 2})
    assert '"lr": 2' in (location / trial_id / "params.json").read_text()


@pytest.mark.parametrize("trial_id", ["missing", "", "a/b", None, 7])
async def test_an_unknown_trial_is_refused_by_every_method_with_the_ids_there_are(store, tmp_path, trial_id):
    store.add_trial({}, "known")
    directory = directory_with(tmp_path / "d")
    for call in (
        lambda: store.get_trial(trial_id),
        lambda: store.checkpoints(trial_id),
        lambda: store.set_status(trial_id, RUNNING),
        lambda: store.report(trial_id, {}),
        lambda: store.update_trial(trial_id, metadata={}),
        lambda: store.lease(trial_id),
    ):
        with pytest.raises(TrialNotFoundError, match="there are known") as caught:
            call()
        assert isinstance(caught.value, KeyError)
    for coroutine in (
        store.save_checkpoint(trial_id, directory),
        store.restore_checkpoint(trial_id),
        store.clone_checkpoint(trial_id, to_trial="known"),
        store.clone_checkpoint("known", to_trial=trial_id),
        store.adopt_checkpoint(trial_id, directory),
    ):
        with pytest.raises(TrialNotFoundError):
            await coroutine


# -- statuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("present", TrialStatus)
@pytest.mark.parametrize("target", TrialStatus)
async def test_the_transition_table(store, present, target):
    trial_id = store.add_trial({}).trial_id
    put_into(store, trial_id, present)
    if target is present:
        before = store.get_trial(trial_id)
        store.set_status(trial_id, target)
        assert store.get_trial(trial_id) == before
    elif target in ALLOWED_TRANSITIONS[present]:
        store.set_status(trial_id, target.value)
        assert store.get_trial(trial_id).status is target
    else:
        with pytest.raises(TransitionError, match=f"is {present} and cannot become {target}"):
            store.set_status(trial_id, target)
        assert store.get_trial(trial_id).status is present


def test_the_transition_table_is_the_documented_one():
    assert {present: set(targets) for present, targets in ALLOWED_TRANSITIONS.items()} == {
        PENDING: {RUNNING, TERMINATED, ERROR},
        RUNNING: {PAUSED, TERMINATED, ERROR, PENDING},
        PAUSED: {PENDING, RUNNING, TERMINATED, ERROR},
        ERROR: {PENDING},
        TERMINATED: {PENDING},
    }


async def test_times_and_errors_of_a_trial_that_is_retried(location):
    clock = StoppedClock(1000.0)
    async with ExperimentStore.open(location, clock=clock) as store:
        trial_id = store.add_trial({}).trial_id
        clock.now = 1001.0
        store.set_status(trial_id, RUNNING)
        clock.now = 1002.0
        store.set_status(trial_id, PENDING, error="preempted")
        trial = store.get_trial(trial_id)
        assert (trial.error, trial.num_failures, trial.ended_at) == ("preempted", 1, None)
        clock.now = 1003.0
        store.set_status(trial_id, RUNNING)
        clock.now = 1004.0
        store.set_status(trial_id, ERROR, error=RuntimeError("boom"))
        trial = store.get_trial(trial_id)
        assert (trial.created_at, trial.started_at, trial.ended_at) == (1000.0, 1001.0, 1004.0)
        assert trial.num_failures == 2
        assert trial.error == "RuntimeError: boom"
        store.set_status(trial_id, PENDING)
        trial = store.get_trial(trial_id)
        assert (trial.num_failures, trial.ended_at, trial.error) == (2, None, "RuntimeError: boom")
        store.set_status(trial_id, ERROR)
        assert store.get_trial(trial_id).error == "no reason given"


@pytest.mark.parametrize("target", [RUNNING, TERMINATED])
async def test_an_error_where_none_belongs_is_refused(store, target):
    trial_id = store.add_trial({}).trial_id
    with pytest.raises(ConfigError, match="belongs to status ERROR"):
        store.set_status(trial_id, target, error="x")
    assert store.get_trial(trial_id).status is PENDING


async def test_a_bad_status_or_error_changes_nothing(store):
    trial_id = store.add_trial({}).trial_id
    with pytest.raises(ConfigError, match="no trial status"):
        store.set_status(trial_id, "DONE")
    with pytest.raises(ConfigError, match="error must be"):
        store.set_status(trial_id, ERROR, error=5)
    assert store.get_trial(trial_id).status is PENDING


# -- results -----------------------------------------------------------------------------------------------


async def test_iterations_rise_by_themselves_or_as_given(store):
    trial_id = store.add_trial({}).trial_id
    store.report(trial_id, {"loss": 3.0})
    store.report(trial_id, {"loss": 2.0, "training_iteration": 5})
    store.report(trial_id, {"loss": 1.0}, iteration=9)
    for bad in (9, 8, 0, -1, 1.5, "10", True):
        with pytest.raises(ConfigError):
            store.report(trial_id, {"loss": 0.0}, iteration=bad)
    trial = store.get_trial(trial_id)
    assert trial.num_results == 3
    assert trial.last_result["training_iteration"] == 9
    assert trial.last_result["loss"] == 1.0


@pytest.mark.parametrize("status", TrialStatus)
async def test_finished_trials_take_no_results(store, status):
    trial_id = store.add_trial({}).trial_id
    put_into(store, trial_id, status)
    if status.is_finished:
        with pytest.raises(TransitionError, match="takes no more results"):
            store.report(trial_id, {"loss": 1})
        assert store.get_trial(trial_id).num_results == 0
    else:
        store.report(trial_id, {"loss": 1})
        assert store.get_trial(trial_id).num_results == 1


async def test_rows_reach_result_json_with_iteration_and_metrics(location):
    async with ExperimentStore.open(location) as store:
        trial_id = store.add_trial({"lr": 1}, trial_name="named").trial_id
        store.set_status(trial_id, RUNNING)
        for loss in (math.nan, 1.0, math.inf):
            store.report(trial_id, {"loss": loss, "eval": {"acc": 0.5}})
    rows = result_rows(location / "named")
    assert [row["training_iteration"] for row in rows] == [1, 2, 3]
    assert {row["trial_id"] for row in rows} == {trial_id}
    assert rows[1]["loss"] == 1.0
    assert rows[1]["config"] == {"lr": 1}
    assert all(row["time_total_s"] >= 0 for row in rows)


# -- best --------------------------------------------------------------------------------------------------


async def test_the_best_trial(store):
    assert store.best_trial("loss", "min") is None
    values = {"nan": math.nan, "low": 0.25, "tie": 0.25, "high": 4, "inf": math.inf, "text": "0"}
    for trial_id, value in values.items():
        store.add_trial({}, trial_id)
        store.report(trial_id, {"loss": value, "eval": {"acc": value}})
    store.add_trial({}, "silent")
    for metric in ("loss", "eval/acc"):
        low, high = store.best_trial(metric, "min"), store.best_trial(metric, "max")
        assert low is not None
        assert low.trial_id == "low"
        assert high is not None
        assert high.trial_id == "inf"
    assert store.best_trial("missing", "max") is None
    with pytest.raises(ConfigError, match="'min' or 'max'"):
        store.best_trial("loss", "best")


async def test_only_infinitely_bad_values_still_have_a_best_and_only_nan_has_none(store):
    store.add_trial({}, "a")
    store.report("a", {"loss": math.nan})
    assert store.best_trial("loss", "max") is None
    store.add_trial({}, "b")
    store.report("b", {"loss": -math.inf})
    best = store.best_trial("loss", "max")
    assert best is not None
    assert best.trial_id == "b"
    store.report("a", {"loss": 10**400})
    best = store.best_trial("loss", "max")
    assert best is not None
    assert best.trial_id == "a"


# -- the restore table -------------------------------------------------------------------------------------

FLAGS = list(itertools.product([True, False], repeat=3))


def expected_status(status: TrialStatus, unfinished: bool, errored: bool, restart: bool) -> TrialStatus:
    """The restore table of the design, row by row; a restarted trial is left out and its successor PENDING."""
    match status:
        case TrialStatus.TERMINATED:
            return TERMINATED
        case TrialStatus.PENDING | TrialStatus.RUNNING:
            return PENDING if unfinished else TERMINATED
        case TrialStatus.PAUSED:
            return PAUSED if unfinished else TERMINATED
        case TrialStatus.ERROR:
            return PENDING if errored or restart else ERROR


@pytest.mark.parametrize(("unfinished", "errored", "restart"), FLAGS)
@pytest.mark.parametrize("reopen", [True, False])
async def test_the_restore_table(location, tmp_path, unfinished, errored, restart, reopen):
    store = await ExperimentStore.open(location)
    for status in TrialStatus:
        store.add_trial({"of": status.value}, status.value, metadata={"m": 1})
        put_into(store, status.value, status)
    before = {trial.trial_id: trial for trial in store.trials}
    if reopen:
        await store.aclose()
        store = await ExperimentStore.open(location)
        assert {trial.trial_id: trial for trial in store.trials} == before  # opening changes no status
    store.requeue(resume_unfinished=unfinished, resume_errored=errored, restart_errored=restart)
    await store.aclose()
    async with ExperimentStore.open(location, mode="read") as reader:
        restarted = restart and not errored
        for status in TrialStatus:
            wanted = expected_status(status, unfinished, errored, restart)
            if status is ERROR and restarted:
                old, new = reader.get_trial("ERROR"), reader.trials[-1]
                assert old == before["ERROR"]
                assert "ERROR" not in [trial.trial_id for trial in reader.trials]
                assert new.trial_id not in before
                assert new.trial_name not in before
                assert (new.status, new.config, new.metadata) == (PENDING, {"of": "ERROR"}, {"m": 1})
                assert (new.num_failures, new.error, new.last_result) == (0, None, {})
            else:
                trial = reader.get_trial(status.value)
                assert trial.status is wanted, (status, trial.status)
                assert (trial.ended_at is not None) == wanted.is_finished
        assert len(reader.trials) == reader.stats().trials == len(TrialStatus)


async def test_a_trial_that_was_started_over_can_do_no_more(store):
    store.add_trial({}, "a")
    put_into(store, "a", ERROR)
    store.requeue(restart_errored=True)
    (new,) = store.trials
    with pytest.raises(TransitionError, match=new.trial_id):
        store.set_status("a", PENDING)
    with pytest.raises(TransitionError):
        store.report("a", {})
    store.requeue(restart_errored=True)
    assert [trial.trial_id for trial in store.trials] == [new.trial_id]
    assert store.best_trial("loss", "min") is None


@pytest.mark.parametrize(
    ("name", "again"),
    [("train_one", "train_{}"), (None, "{}"), ("one", "{}"), ("train", "{}"), ("trainone", "{}")],
    ids=["ends-in-the-id", "left-out", "the-id", "of-its-own", "no-separator"],
)
async def test_a_trial_that_is_started_over_is_called_as_it_was_but_for_its_id(store, name, again):
    store.add_trial({}, "one", name)
    put_into(store, "one", ERROR)
    store.requeue(restart_errored=True)
    (new,) = store.trials
    assert new.trial_name == again.format(new.trial_id)


async def test_requeue_again_changes_nothing_more(store):
    for status in TrialStatus:
        store.add_trial({}, status.value)
        put_into(store, status.value, status)
    store.requeue(resume_errored=True)
    after = list(store.trials)
    store.requeue(resume_errored=True)
    assert list(store.trials) == after


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("requeue", RUNNING),
        ("requeue", ERROR),
        ("requeue", PENDING),
        ("set_status", RUNNING),
        ("set_status", ERROR),
        ("set_status", TERMINATED),
    ],
)
async def test_the_timeline_is_cut_at_the_checkpoint_that_the_trial_goes_on_from(
    location, tmp_path, how, status
):
    async with ExperimentStore.open(location) as store:
        trial_id = store.add_trial({}).trial_id
        if status is not PENDING:
            store.set_status(trial_id, RUNNING)
        for iteration in (1, 2, 3):
            store.report(trial_id, {"loss": 1.0 / iteration, "run": 1})
            if iteration == 2:
                await store.save_checkpoint(trial_id, directory_with(tmp_path / "d"))
        if status not in {RUNNING, PENDING}:
            store.set_status(trial_id, status)
    async with ExperimentStore.open(location) as store:
        assert store.get_trial(trial_id).num_results == 3
        if how == "requeue":
            store.requeue(resume_errored=True)
        else:
            store.set_status(trial_id, PENDING)
        trial = store.get_trial(trial_id)
        assert trial.status is PENDING
        assert trial.num_results == 2
        assert trial.last_result["training_iteration"] == 2
        assert trial.last_result["loss"] == 0.5
        restored = await store.restore_checkpoint(trial_id)
        assert restored.step == 1
        assert restored.path is not None
        assert (restored.path / "model.bin").read_bytes() == b"weights"
        store.set_status(trial_id, RUNNING)
        for _ in range(2):
            store.report(trial_id, {"loss": 0.1, "run": 2})
        saved = await store.save_checkpoint(trial_id, directory_with(tmp_path / "d"))
        assert saved.step == 2
    rows = result_rows(location / trial_id)
    assert [(row["training_iteration"], row["run"]) for row in rows] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    (cut,) = (location / trial_id).glob("result.cut-*.json")
    assert '"training_iteration": 3' in cut.read_text()
    assert '"run": 1' in cut.read_text()


async def test_without_a_checkpoint_a_trial_starts_from_nothing(location):
    async with ExperimentStore.open(location) as store:
        trial_id = store.add_trial({}).trial_id
        store.set_status(trial_id, RUNNING)
        store.report(trial_id, {"loss": 1}, iteration=10)
    async with ExperimentStore.open(location) as store:
        store.requeue()
        trial = store.get_trial(trial_id)
        assert (trial.num_results, trial.last_result) == (0, {})
        store.set_status(trial_id, RUNNING)
        store.report(trial_id, {"loss": 2})
    assert [(r["training_iteration"], r["loss"]) for r in result_rows(location / trial_id)] == [(1, 2)]


async def test_a_paused_trial_keeps_its_timeline(location):
    async with ExperimentStore.open(location) as store:
        trial_id = store.add_trial({}).trial_id
        store.set_status(trial_id, RUNNING)
        store.report(trial_id, {"loss": 1})
        store.set_status(trial_id, PAUSED)
    async with ExperimentStore.open(location) as store:
        store.requeue()
        store.set_status(trial_id, PENDING)
        store.set_status(trial_id, RUNNING)
        store.report(trial_id, {"loss": 2})
        assert store.get_trial(trial_id).num_results == 2


async def test_after_a_rewind_checkpoints_get_directories_that_nothing_had_before(location, tmp_path):
    used = set()
    for opening in range(3):
        async with ExperimentStore.open(location, checkpoint_config=CheckpointConfig(num_to_keep=1)) as store:
            trial_id = store.trials[0].trial_id if opening else store.add_trial({}).trial_id
            for _ in range(2):
                store.requeue()
                store.set_status(trial_id, RUNNING)
                saved = await store.save_checkpoint(trial_id, directory_with(tmp_path / "d"))
                assert saved.path not in used
                used.add(saved.path)
    assert len(used) == 6


@pytest.mark.parametrize("name", ["get_trial", "report", "set_status", "update_trial", "checkpoints"])
async def test_a_trial_in_place_of_its_id_is_told_so(store, name):
    trial = store.add_trial({"lr": 0.1})
    rest = {"report": ({},), "set_status": (RUNNING,)}.get(name, ())
    with pytest.raises(TrialNotFoundError, match=f"give trial.trial_id, '{trial.trial_id}', not the Trial"):
        getattr(store, name)(trial, *rest)
