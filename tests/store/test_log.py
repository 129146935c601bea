"""The experiment's log, the tracked metric, and other things that a driver like the Tuner needs of a store."""

from __future__ import annotations

import pytest

from asynctune import ConfigError, ExperimentStore, TrialStatus


async def test_events_keep_their_numbers_across_openings(tmp_path):
    async with ExperimentStore.open(tmp_path / "exp") as store:
        assert [store.append_event({"n": n}) for n in range(4)] == [0, 1, 2, 3]
        store.drop_events(2)
        assert list(store.logged_events()) == [(2, {"n": 2}), (3, {"n": 3})]
        assert list(store.logged_events(3)) == [(3, {"n": 3})]
        store.drop_events(100)
        assert list(store.logged_events()) == [(3, {"n": 3})], "the newest tells where numbers go on"
    async with ExperimentStore.open(tmp_path / "exp") as store:
        assert store.append_event("more") == 4
        store.append_event("most")
        store.drop_events(1)
        store.drop_events(4)
        assert list(store.logged_events()) == [(4, "more"), (5, "most")]
    async with ExperimentStore.open(tmp_path / "exp", mode="read") as reader:
        assert list(reader.logged_events()) == [(4, "more"), (5, "most")]
        with pytest.raises(ConfigError, match="read"):
            reader.append_event(1)


async def test_the_tracked_metric_is_summed_up_and_rewound(tmp_path):
    directory = tmp_path / "files"
    directory.mkdir()
    (directory / "a").write_bytes(b"x")
    async with ExperimentStore.open(tmp_path / "exp") as store:
        assert store.tracked_metric == (None, None)
        trial = store.add_trial({}).trial_id
        store.set_status(trial, TrialStatus.RUNNING)
        assert store.metric_summary(trial) == {}
        store.track_metric("eval/loss", "min")
        for number, loss in enumerate((3.0, 1.0, 2.0), 1):
            store.report(trial, {"eval": {"loss": loss}})
            if number == 2:
                await store.save_checkpoint(trial, directory)
        assert store.metric_summary(trial) == {"min": 1.0, "max": 3.0, "avg": 2.0, "last-10-avg": 2.0}
        store.set_status(trial, TrialStatus.PENDING)
        assert store.metric_summary(trial)["avg"] == 2.0
        assert store.metric_summary(trial)["max"] == 3.0
        store.set_status(trial, TrialStatus.RUNNING)
        store.report(trial, {"eval": {"loss": 8.0}})
    async with ExperimentStore.open(tmp_path / "exp", mode="read") as reader:
        assert reader.tracked_metric == ("eval/loss", "min")
        assert reader.metric_summary(trial) == {"min": 1.0, "max": 8.0, "avg": 4.0, "last-10-avg": 4.0}
    async with ExperimentStore.open(tmp_path / "exp") as store:
        store.track_metric("other", "max")
        assert store.metric_summary(trial) == {}
        with pytest.raises(ConfigError, match="track_metric"):
            store.track_metric("other", "best")


async def test_ids_and_directories_are_there_before_a_trial_runs(tmp_path):
    async with ExperimentStore.open(tmp_path / "exp") as store:
        trial_id = store.new_trial_id()
        assert trial_id == store.new_trial_id()
        trial = store.add_trial({}, trial_id=trial_id, trial_name="mine")
        assert store.new_trial_id() != trial_id
        path = await store.trial_dir(trial.trial_id)
        assert path == str(tmp_path / "exp/mine")
        assert (tmp_path / "exp/mine").is_dir()
        assert await store.trial_dir(trial.trial_id) == path
        assert [each.trial_id async for each in store.iterate()] == [trial_id]
        assert store.checkpoint_config.num_to_keep is None
