from __future__ import annotations

import pickle

import pytest

from asynctune.errors import (
    CorruptStateError,
    ExperimentLockedError,
    MissingExtraError,
    StorageError,
    TrialNotFoundError,
)


@pytest.mark.parametrize(
    "error",
    [
        TrialNotFoundError("no trial 't'"),
        StorageError("cannot", operation="write", key="/f", retryable=True, hint="free some space"),
        CorruptStateError("damaged", path="/f", offset=7),
        ExperimentLockedError("open", pid=4, hostname="h", since=1.5),
        MissingExtraError("ray", "ray", "the runner"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_crosses_a_pipe_whole(error):
    received = pickle.loads(pickle.dumps(error))
    assert type(received) is type(error)
    assert str(received) == str(error)
    assert vars(received) == vars(error)
