"""Errors that travel: what they are there, and that nothing of them can fail to be told."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import (
    AsynctuneError,
    AuthenticationError,
    CheckpointExistsError,
    ConfigError,
    ExperimentExistsError,
    NotFoundError,
    StorageError,
    TrialFailedError,
)
from asynctune.packing import pack, unpack
from asynctune.runners.told_errors import FullDiskError, raised, told


def of_a_full_disk():
    error = StorageError("full", retryable=True)
    error.__cause__ = OSError(errno.ENOSPC, "full")
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError("x"), ConfigError),
        (ExperimentExistsError("x"), ConfigError),
        (TrialFailedError("x"), TrialFailedError),
        (CheckpointExistsError("x"), TrialFailedError),
        (StorageError("x"), StorageError),
        (NotFoundError("x"), NotFoundError),
        (AuthenticationError("x"), AuthenticationError),
        (of_a_full_disk(), FullDiskError),
        (KeyError("x"), TrialFailedError),
        (RuntimeError(), TrialFailedError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_what_an_error_is_there(error, kind):
    there = raised(unpack(pack(told(error))))
    assert type(there) is kind
    if isinstance(error, AsynctuneError):
        assert str(there) == str(error)
    if isinstance(error, StorageError):
        assert isinstance(there, StorageError)
        assert there.retryable == error.retryable


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_any_text_can_be_told(text):
    assert str(raised(unpack(pack(told(ValueError(text)))))).startswith("ValueError")


def test_a_long_text_keeps_its_beginning_and_its_end():
    text = str(raised(told(ConfigError("begin" + "x" * 1_000_000 + "end"))))
    assert len(text) < 101_000
    assert text.startswith("begin")
    assert text.endswith("end")


@pytest.mark.parametrize(
    "value", [None, 3, "x", {}, {"kind": 3}, {"kind": "SystemExit", "text": "x"}], ids=repr
)
def test_nonsense_is_a_failed_trial(value):
    assert type(raised(value)) is TrialFailedError
