"""What is kept of a trial's exception."""

from __future__ import annotations

import pytest

from asynctune.errors import TrialFailedError
from asynctune.runners.failure import MAX_CHARACTERS, failure_of, failure_text, is_interruption
from asynctune.session import TrialInterrupted
from tests.runners import trials


def raised(what):
    try:
        trials.raises({"what": what})
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError


def test_the_trials_own_frames_are_told():
    text = failure_text(raised("group"))
    assert "trials.py" in text
    assert "ValueError: one" in text
    assert isinstance(failure_of(raised("group")), TrialFailedError)


def test_one_that_cannot_be_printed_is_named():
    text = failure_text(raised("unprintable"))
    assert "Unprintable" in text
    assert "trials.py" in text


def test_text_that_is_no_unicode_can_be_stored():
    assert failure_text(raised("surrogate")).encode("utf-8").endswith(rb"bad \udcff text")


def test_a_long_one_is_cut_in_the_middle():
    text = failure_text(raised("huge"))
    assert len(text) < MAX_CHARACTERS + 100
    assert text.startswith("Traceback")
    assert text.endswith("the end")


STOP = TrialInterrupted("STOP")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (STOP, True),
        (BaseExceptionGroup("", [STOP, BaseExceptionGroup("", [STOP])]), True),
        (BaseExceptionGroup("", [STOP, ValueError()]), False),
        (ValueError(), False),
        (KeyboardInterrupt(), False),
    ],
    ids=["one", "group", "group-with-failure", "failure", "interrupt"],
)
def test_what_is_an_interruption(error, expected):
    assert is_interruption(error) is expected
