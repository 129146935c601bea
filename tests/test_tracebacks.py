"""Of a traceback the line that says most."""

from __future__ import annotations

import traceback

import pytest

from asynctune.tracebacks import error_line


def raised(error: BaseException, cause: BaseException | None = None) -> str:
    """As it is stored of a trial."""
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001 - any
        return "".join(traceback.format_exception(caught)).rstrip()


def caught(error: Exception) -> Exception:
    """With a traceback."""
    raised(error)
    return error


def noted() -> Exception:
    error = ValueError("bad lr")
    error.add_note("see the documentation")
    return error


LINES = "out of memory:\n  tried 2 GiB\nfree: 1 GiB"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no"), "ValueError: no"),
        (KeyError(), "KeyError"),
        (RuntimeError(LINES), "RuntimeError: out of memory:"),
        (noted(), "ValueError: bad lr"),
        (SyntaxError("bad", ("x.py", 1, 2, "a = | b\n")), "SyntaxError: bad"),
        (ExceptionGroup("two", [KeyError("a"), OSError(28, LINES)]), "OSError: [Errno 28] out of memory:"),
        (ExceptionGroup("two", [KeyError("a"), caught(RuntimeError(LINES))]), "RuntimeError: out of memory:"),
        (ExceptionGroup("two", [ExceptionGroup("in", [noted()])]), "ValueError: bad lr"),
        (ExceptionGroup("two", [caught(ExceptionGroup("in", [caught(noted())]))]), "ValueError: bad lr"),
        (ExceptionGroup("many", [KeyError(number) for number in range(20)]), "KeyError: 14"),
    ],
    ids=["one", "bare", "lines", "notes", "syntax", "group", "raised", "nested", "nested-raised", "many"],
)
def test_the_exception_is_named(error, line):
    assert error_line(raised(error)) == line
    assert error_line(raised(ValueError("above"), cause=error)) == "ValueError: above"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("out of memory\non device 3", "out of memory"),
        ("  \n  killed by SIGKILL  \n", "killed by SIGKILL"),
        (
            '  File "x", line 3, in f\nBroken, which cannot be printed: ValueError',
            "Broken, which cannot be printed: ValueError",
        ),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
        ("  | Traceback (most recent call last):\n  |\n+---- 1 ----", "+---- 1 ----"),
        (None, ""),
        ("", ""),
        (" !!! ", "!!!"),
    ],
    ids=["lines", "spaces", "frames", "cut", "cut-group", "none", "empty", "signs"],
)
def test_any_other_text(error, line):
    assert error_line(error) == line
