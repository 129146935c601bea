from __future__ import annotations

import pytest

from asynctune.checkpoints.trial_paths import LOG_FILES, belongs_to_trial, check_trial_path
from asynctune.errors import ConfigError
from asynctune.results import freezing


@pytest.mark.parametrize(
    "path",
    ["stdout", "stderr", "plot.png", "logs", "sub/result.json", "sub/checkpoint_1/w", "checkpoints/best",
     "result.json.bak", "events.out.tfevents.17.host", "a/b/c"],
)  # fmt: skip
def test_what_is_the_trials_own(path):
    assert belongs_to_trial(path)
    check_trial_path(path)


@pytest.mark.parametrize(
    "path",
    ["params.json", "result.json", "Result.JSON", "progress.csv", "result.cut-3.json", "checkpoint_000005",
     "checkpoint_000005/weights", "CHECKPOINT_1", "checkpoint_new\n", "events.out.tfevents.17.h.asynctune", ".hidden",
     "result.json/x", "Params.json/a/b", "progress.csv/",
     ".staged-0123/weights", "a/.git/config", ".asynctune/LOCK", ".result.json.tmp"],
)  # fmt: skip
def test_what_is_the_stores(path):
    assert not belongs_to_trial(path)
    with pytest.raises(ConfigError, match="cannot be taken from its node"):
        check_trial_path(path)


@pytest.mark.parametrize(
    "path", ["", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "x\0", "\ud800", "a/", "./a"]
)
def test_what_leads_elsewhere(path):
    with pytest.raises(ConfigError, match="cannot be taken from its node"):
        check_trial_path(path)


def test_whatever_the_results_room_writes_is_the_stores_except_what_the_trial_prints():
    names = [
        "params.json",
        "result.json",
        "progress.csv",
        "result.cut-1.json",
        "result.cut-999.json",
        "events.out.tfevents.1700000000.host.asynctune",
        "stdout",
        "stderr",
    ]
    assert all(map(freezing.is_result_file, names))
    assert {name for name in names if belongs_to_trial(name)} == freezing.LOG_FILES == LOG_FILES
    assert {name for name in freezing._NAMED if belongs_to_trial(name)} == LOG_FILES
