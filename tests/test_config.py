"""What a user may set, and what is refused at the line that sets it."""

from __future__ import annotations

import dataclasses
import math

import pytest

from asynctune.config import CHECKPOINT_PERIOD_VARIABLE, CheckpointConfig, SyncConfig, checkpoint_period_s
from asynctune.errors import ConfigError

VARIABLE = "TUNE_GLOBAL_CHECKPOINT_S"


# -- CheckpointConfig --------------------------------------------------------------------------------------


def test_by_default_everything_is_kept_and_nothing_is_asked_of_a_class():
    assert dataclasses.asdict(CheckpointConfig()) == {
        "num_to_keep": None,
        "checkpoint_score_attribute": None,
        "checkpoint_score_order": "max",
        "checkpoint_frequency": 0,
        "checkpoint_at_end": None,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_to_keep", 1),
        ("num_to_keep", 10**9),
        ("checkpoint_score_attribute", "loss"),
        ("checkpoint_score_attribute", "eval/acc"),
        ("checkpoint_score_order", "min"),
        ("checkpoint_frequency", 5),
        ("checkpoint_at_end", True),
        ("checkpoint_at_end", False),
    ],
)
def test_a_value_that_works_is_taken_as_it_is(name, value):
    assert getattr(CheckpointConfig(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_to_keep", value) for value in (0, -1, 1.0, 2.5, "3", True, False, math.nan)),
        *(("checkpoint_score_attribute", value) for value in ("", "/", "//", 7, b"loss", ["loss"])),
        *(("checkpoint_score_order", value) for value in ("", "MAX", "maximum", None, 1, ["max"])),
        *(("checkpoint_at_end", value) for value in ("no", 2, [True])),
        *(("checkpoint_frequency", value) for value in (-1, 1.0, "1", True, False, None)),
    ],
    ids=repr,
)
def test_a_value_that_cannot_work_is_refused_by_name(name, value):
    with pytest.raises(ConfigError) as refused:
        CheckpointConfig(**{name: value})
    assert name in str(refused.value)
    assert repr(value) in str(refused.value)


def test_a_config_stays_as_it_was_checked():
    config = CheckpointConfig(num_to_keep=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_to_keep = 0  # type: ignore[misc]
    with pytest.raises(TypeError):
        CheckpointConfig(2)  # type: ignore[call-arg]
    with pytest.raises(ConfigError):
        dataclasses.replace(config, num_to_keep=0)


# -- SyncConfig --------------------------------------------------------------------------------------------


def test_no_mirror_is_fine():
    assert SyncConfig() == SyncConfig(upload_dir=None)


@pytest.mark.parametrize("place", ["s3://bucket/runs", "/mnt/copy", ""], ids=repr)
def test_a_mirror_is_refused_rather_than_silently_not_made(place):
    with pytest.raises(ConfigError, match="leave upload_dir unset") as refused:
        SyncConfig(upload_dir=place)
    assert repr(place) in str(refused.value)


# -- checkpoint_period_s -----------------------------------------------------------------------------------


def test_the_variable_has_the_name_that_is_documented():
    assert CHECKPOINT_PERIOD_VARIABLE == VARIABLE


@pytest.mark.parametrize(
    ("setting", "seconds"),
    [
        ("auto", None),
        ("AUTO", None),
        (0, 0.0),
        (0.25, 0.25),
        (30, 30.0),
        ("30", 30.0),
        ("1e2", 100.0),
    ],
    ids=repr,
)
def test_a_setting(setting, seconds):
    assert checkpoint_period_s(setting, {}) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("auto", None), (" Auto\n", None), ("0", 0.0), (" 2.5 ", 2.5), ("10", 10.0)],
    ids=repr,
)
@pytest.mark.parametrize("setting", ["auto", 7.0, "nonsense", -1])
def test_the_environment_goes_before_the_setting(setting, text, seconds):
    assert checkpoint_period_s(setting, {VARIABLE: text, "OTHER": "1"}) == seconds


def test_the_process_environment_is_read_unless_another_is_given(monkeypatch):
    monkeypatch.setenv(VARIABLE, "12")
    assert checkpoint_period_s(7) == 12.0
    assert checkpoint_period_s(7, {}) == 7.0
    monkeypatch.delenv(VARIABLE)
    assert checkpoint_period_s(7) == 7.0
    assert checkpoint_period_s() is None


@pytest.mark.parametrize(
    "setting",
    [
        -1,
        -0.001,
        math.inf,
        -math.inf,
        math.nan,
        "",
        "soon",
        "10s",
        "nan",
        "inf",
        "-1",
        True,
        False,
        None,
        [5],
        pytest.param(10**400, id="10**400"),
    ],
    ids=repr,
)
def test_a_bad_setting_is_refused(setting):
    with pytest.raises(ConfigError, match=r"^checkpoint_period must be a number of seconds") as refused:
        checkpoint_period_s(setting, {})
    assert repr(setting) in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "  ", "soon", "10s", "nan", "inf", "-inf", "-1", "None", "true"], ids=repr
)
def test_a_bad_variable_is_refused_by_its_name_though_the_setting_is_good(text):
    with pytest.raises(ConfigError, match=rf"^the environment variable {VARIABLE} must be") as refused:
        checkpoint_period_s(5.0, {VARIABLE: text})
    assert repr(text.strip()) in str(refused.value)
