"""What a user may set, and what is refused at the line that sets it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, assert_type

import pytest

from asynctune import CommandSyncer, Syncer
from asynctune.config import (
    CHECKPOINT_PERIOD_VARIABLE,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    SyncConfig,
    TuneConfig,
    checkpoint_period_s,
    result_dir,
)
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


def test_the_defaults_of_a_sync_config():
    assert dataclasses.asdict(SyncConfig()) == {
        "upload_dir": None,
        "syncer": "auto",
        "sync_period": 300,
        "sync_timeout": 1800,
        "sync_on_checkpoint": True,
        "storage_options": None,
    }


def test_without_a_mirror_the_rest_is_taken_as_it_is():
    config = SyncConfig(syncer=None, sync_period=0.5, sync_timeout=1, sync_on_checkpoint=False)
    assert (config.syncer, config.sync_period, config.sync_timeout) == (None, 0.5, 1)
    assert config.sync_on_checkpoint is False
    assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("sync_period", "sync_timeout")
            for value in (0, -1, math.nan, math.inf, True, "60", None)
        ),
        *(("sync_on_checkpoint", value) for value in (None, 1, "yes")),
        *(("syncer", value) for value in ("", "aws s3 sync {source} {target}", "AUTO")),
    ],
    ids=repr,
)
def test_a_sync_setting_that_cannot_work_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be") as refused:
        SyncConfig(**{name: value})
    assert repr(value) in str(refused.value)


@pytest.mark.parametrize("value", [7, False, object(), ["auto"]], ids=["number", "False", "object", "list"])
def test_what_is_no_syncer_is_refused(value):
    with pytest.raises(ConfigError, match="syncer must be") as refused:
        SyncConfig(syncer=value)
    assert type(value).__name__ in str(refused.value)


class Copying:
    """Has what a syncer needs."""

    password = "hunter2"

    def sync_up(self, local_dir, remote_dir, exclude=None): ...

    async def sync_down(self, remote_dir, local_dir, exclude=None): ...

    def delete(self, remote_dir): ...

    def __repr__(self):
        return self.password

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("place", "stored"),
    [
        ("s3://bucket/runs/", "s3://bucket/runs/"),
        ("gs://bucket", "gs://bucket"),
        ("S3://bucket/a@b", "S3://bucket/a@b"),
        ("memory://test/x", "memory://test/x"),
        ("file:///mnt/copy", "file:///mnt/copy"),
        ("/mnt/copy", "/mnt/copy"),
        ("~/copy of it", "~/copy of it"),
        (Path("/mnt/copy"), "/mnt/copy"),
    ],
    ids=repr,
)
def test_where_the_built_in_syncer_copies_to(place, stored):
    config = SyncConfig(upload_dir=place)
    assert (config.upload_dir, config.syncer) == (stored, "auto")
    assert dataclasses.replace(config, sync_period=1).upload_dir == stored


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("", "must be a directory's path or a URI"),
        ("a\0b", "must be a directory's path or a URI"),
        (7, "not int"),
        (b"/mnt", "not bytes"),
        (["s3://bucket"], "not list"),
        ("azure://container/x", "azure:// is no storage that asynctune knows"),
        ("https://bucket.example/x", "https:// is no storage"),
        ("s3:///runs", "names no bucket"),
        (Path("s3://bucket/runs"), "two slashes"),
        ("gs:/bucket/runs", "two slashes"),
    ],
    ids=repr,
)
def test_a_place_that_cannot_be_one_is_refused(place, why):
    with pytest.raises(ConfigError, match=why) as refused:
        SyncConfig(upload_dir=place)
    assert "upload_dir" in str(refused.value)


@pytest.mark.parametrize(
    "place",
    ["azure://container/x", "host:/mnt/copy", "ssh://me@host:22/x", "/mnt/copy", "hdfs://host:9000/x"],
)
def test_a_syncer_of_ones_own_may_copy_anywhere(place):
    config = SyncConfig(upload_dir=place, syncer=Copying())
    assert config.upload_dir == place
    assert isinstance(config.syncer, Syncer)
    assert hash(config) == hash(dataclasses.replace(config))
    assert Copying.password not in repr(config), "its repr may hold credentials"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"syncer": Copying()}, r"syncer=Copying\(\.\.\.\) copies to upload_dir, and none is given"),
        ({"syncer": Copying}, r"not the class Copying; write Copying\(\.\.\.\)"),
        ({"syncer": None, "upload_dir": "s3://b/x"}, "syncer=None .* upload_dir='s3://b/x'"),
        (
            {"syncer": Copying(), "upload_dir": "s3://b/x", "storage_options": {"key": "hunter2"}},
            "give them to the Copying",
        ),
        *(
            ({"upload_dir": place, "storage_options": {"key": "hunter2"}}, "takes none; leave them out")
            for place in ("/mnt/copy", "file:///mnt/copy", "memory://x")
        ),
    ],
    ids=lambda value: repr(value).replace("hunter2", "") if isinstance(value, str) else None,
)
def test_settings_that_contradict_each_other(settings, why):
    with pytest.raises(ConfigError, match=why) as refused:
        SyncConfig(**settings)
    assert "hunter2" not in str(refused.value)


def test_a_method_that_was_only_inherited_from_the_protocol_is_none():
    class Inheriting(Syncer):
        def sync_up(self, local_dir, remote_dir, exclude=None): ...

        def sync_down(self, remote_dir, local_dir, exclude=None): ...

    with pytest.raises(ConfigError, match="syncer Inheriting has no method delete"):
        SyncConfig(upload_dir="/mnt/copy", syncer=Inheriting())  # type: ignore[abstract]


def test_what_type_checkers_take_for_a_syncer():
    class Typed:
        def sync_up(self, local_dir: str, remote_dir: str, exclude: list[str] | None = None) -> bool:
            return True

        def sync_down(
            self, remote_dir: str, local_dir: str, exclude: Sequence[str] | None = None
        ) -> None: ...

        async def delete(self, remote_dir: str) -> bool:
            return True

    syncer: Syncer = CommandSyncer("t {source} {target}", "t {source} {target}", "t {target}")
    config = SyncConfig(upload_dir="s3://bucket", syncer=syncer)
    assert_type(config.syncer, Literal["auto"] | Syncer | None)
    assert isinstance(SyncConfig(upload_dir="s3://bucket", syncer=Typed()).syncer, Typed)


def test_options_of_a_bucket():
    options = {"key": "hunter2"}
    assert SyncConfig(upload_dir="s3://bucket/x", storage_options=options).storage_options == options
    assert SyncConfig(upload_dir="/mnt/copy", storage_options={}).upload_dir == "/mnt/copy"


def test_half_a_syncer_is_refused_with_what_it_lacks():
    class Half:
        def sync_up(self, local_dir, remote_dir, exclude=None): ...

    with pytest.raises(ConfigError, match="syncer Half has no method sync_down, delete"):
        SyncConfig(upload_dir="/mnt/copy", syncer=Half())  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [[("key", "hunter2")], "key=hunter2", {1: "hunter2"}], ids=repr)
def test_credentials_that_cannot_be_used_are_not_shown_either(options):
    with pytest.raises(ConfigError, match="storage_options must be a mapping") as refused:
        SyncConfig(storage_options=options)
    assert "hunter2" not in str(refused.value)


def test_credentials_are_never_shown():
    config = SyncConfig(storage_options={"secret": "hunter2"})
    assert config.storage_options == {"secret": "hunter2"}
    assert "hunter2" not in f"{config} {config!r} {RunConfig(sync_config=config)!r}"


@pytest.mark.parametrize(
    "place",
    [
        "s3://me:hunter2@bucket/runs",
        "s3://hunter2@bucket/runs",
        "s3://me:hunter2/with/slash@bucket/runs",
        "s3://me:hunter2/bucket/runs",
        "gs://bucket/runs?token=hunter2",
        "s3://bucket/runs#hunter2",
        "https://me:hunter2@bucket/runs?X-Signature=hunter2",
    ],
)
@pytest.mark.parametrize("syncer", ["auto", Copying()], ids=["auto", "own"])
def test_credentials_in_a_place_are_refused_and_not_shown(place, syncer):
    if syncer != "auto" and "//hunter2@" in place:
        pytest.skip("a user alone, as in ssh://user@host, is a syncer's own affair")
    with pytest.raises(ConfigError, match="upload_dir") as refused:
        SyncConfig(upload_dir=place, syncer=syncer)
    assert "hunter2" not in str(refused.value)
    assert "runs" in str(refused.value)


# -- RunConfig, TuneConfig, FailureConfig ------------------------------------------------------------------


def test_the_defaults_of_a_run():
    config = RunConfig()
    assert (config.sync_config, config.checkpoint_config) == (SyncConfig(), CheckpointConfig())
    assert config.failure_config == FailureConfig(max_failures=0, fail_fast=False)
    assert (config.name, config.local_dir, config.stop, tuple(config.callbacks)) == (None, None, None, ())
    assert (config.verbose, config.log_to_file) == (1, False)


@pytest.mark.parametrize("verbose", [0, 1, 2, 3])
def test_how_much_is_shown(verbose):
    assert RunConfig(verbose=verbose).verbose == verbose


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("name", value) for value in ("", 7, b"exp")),
        *(("stop", value) for value in (10, "loss", {"loss": "low"}, {"loss": math.nan}, {1: 2})),
        *(("sync_config", value) for value in ({"storage_options": "hunter2"}, SyncConfig)),
        ("checkpoint_config", SyncConfig()),
        *(("failure_config", value) for value in (3, False)),
        *(("callbacks", value) for value in ("print", object(), 0)),
        *(("local_dir", value) for value in (5, b"runs", ["runs"], False)),
        *(("verbose", value) for value in (-1, 4, None, "2")),
        *(("log_to_file", value) for value in (None, "out.log", ("out.log", "err.log"))),
    ],
    ids=lambda value: "object" if type(value) is object else repr(value),
)
def test_a_setting_of_a_run_that_cannot_work_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be|{name} must have") as refused:
        RunConfig(**{name: value})
    assert "hunter2" not in str(refused.value)


def test_none_is_the_default_as_in_scripts_for_ray_tune():
    names = ("sync_config", "checkpoint_config", "failure_config", "callbacks", "local_dir", "stop", "name")
    nothing: dict[str, Any] = dict.fromkeys(names)
    assert RunConfig(**nothing) == RunConfig()
    assert type(RunConfig(failure_config=None).failure_config) is FailureConfig  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "place", ["s3://me:hunter2@bucket/runs?key=hunter2", "gs://bucket/runs", "file:///runs"]
)
def test_experiments_are_made_on_a_disk(place):
    for refused in (
        lambda: RunConfig(local_dir=place),
        lambda: result_dir(place),
        lambda: result_dir(None, {"TUNE_RESULT_DIR": place}),
    ):
        with pytest.raises(
            ConfigError, match=r"(local_dir|TUNE_RESULT_DIR)='\w+://.*runs': .*upload_dir"
        ) as said:
            refused()
        assert "hunter2" not in str(said.value)
    assert RunConfig(local_dir="./s3:/runs").local_dir == "./s3:/runs"


@pytest.mark.parametrize("count", [0, 3, -1])
def test_how_often_a_trial_is_tried_again(count):
    assert FailureConfig(max_failures=count).max_failures == count


@pytest.mark.parametrize(
    "settings",
    [
        *({"max_failures": value} for value in (-2, 1.0, True, None)),
        *({"fail_fast": value} for value in (None, "stop")),
        {"max_failures": 1, "fail_fast": True},
        {"max_failures": -1, "fail_fast": "raise"},
    ],
    ids=repr,
)
def test_a_failure_config_that_cannot_work_is_refused(settings):
    with pytest.raises(ConfigError, match=next(reversed(settings))):
        FailureConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        *(({"metric": value, "mode": "min"}, "metric") for value in ("", "/", 7)),
        *(({"metric": "loss", "mode": value}, "mode") for value in ("least", 1, None)),
        ({"mode": "max"}, "metric"),
        *(({"num_samples": value}, "num_samples") for value in (0, -2, 1.5, True, None)),
        *(({"max_concurrent_trials": value}, "max_concurrent_trials") for value in (0, -1, 2.0, True)),
        ({"search_alg": object()}, "suggest"),
        ({"scheduler": "asha"}, "choose_trial_to_run"),
    ],
    ids=lambda value: "searcher" if isinstance(value, dict) and "search_alg" in value else repr(value),
)
def test_a_tune_config_that_cannot_work_is_refused_by_name(settings, named):
    with pytest.raises(ConfigError, match=named):
        TuneConfig(**settings)


# -- result_dir --------------------------------------------------------------------------------------------


def test_where_experiments_are_made(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    variable = {"TUNE_RESULT_DIR": "/scratch/runs"}
    assert result_dir(None, {}) == str(home / "asynctune_results")
    assert result_dir(None, variable) == "/scratch/runs"
    assert result_dir(None, {"TUNE_RESULT_DIR": ""}) == str(home / "asynctune_results")
    assert result_dir("~/ray_results", variable) == str(home / "ray_results")
    assert result_dir(tmp_path / "a" / ".." / "b", variable) == str(tmp_path / "b")
    assert result_dir("runs", variable) == str(tmp_path / "runs")
    monkeypatch.setenv("TUNE_RESULT_DIR", "/scratch/others")
    assert result_dir(None) == "/scratch/others"


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
