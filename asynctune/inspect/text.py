"""Owns how single values read to people: numbers, durations, sizes, times, untrusted text. Pure.

Whatever comes from an experiment may hold anything, so `printable` takes the control characters out of all of
it: an error message must not be able to repaint the terminal of the person who reads it.
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from asynctune.tracebacks import error_line as line_of

__all__ = [
    "DASH",
    "ago",
    "clock_time",
    "count",
    "duration",
    "error_line",
    "flatten",
    "metric_number",
    "path_text",
    "printable",
    "setting",
    "size",
]

DASH: Final = "-"
"""What an empty cell shows."""

_SIGNIFICANT: Final = 4
_SMALLEST_PLAIN: Final = -4  # powers of ten between which a number needs no exponent
_SMALLEST_POWER: Final = 7
_KIB: Final = 1024
_MAX_DEPTH: Final = 8
_SURROGATES: Final = range(0xDC80, 0xDD00)  # how Python keeps the bytes of a name that is not UTF-8


def printable(text: str, *, keep: str = "") -> str:
    """`text` with every character that a terminal might act on written as an escape.

    Args:
        text: Anything, lone surrogates and escape sequences included.
        keep: Characters to leave as they are, such as a newline.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escape(char) for char in text)


def _escape(char: str) -> str:
    if unicodedata.category(char) == "Zs":
        return " "
    code = ord(char)
    if code in _SURROGATES:
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def path_text(path: str | os.PathLike[str]) -> str:
    """A path to show; a byte that is not UTF-8 appears as a backslash, `x` and two hexadecimal digits."""
    return printable(os.fspath(path))


def metric_number(value: object) -> str:
    """A metric at 4 significant digits, always with all four, so that a column of them lines up."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return setting(value)
    if isinstance(value, int):
        return (
            str(value) if abs(value) < 10**15 else f"{float(value):.3e}" if abs(value) < 10**300 else "huge"
        )
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if _SMALLEST_PLAIN <= magnitude < _SMALLEST_POWER:
        return f"{value:.{max(0, _SIGNIFICANT - 1 - magnitude)}f}"
    return f"{value:.{_SIGNIFICANT - 1}e}"


def setting(value: object) -> str:
    """A hyperparameter or note on one line, numbers as short as they can be told apart."""
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else DASH
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return printable(repr(value))


def duration(seconds: float | None) -> str:
    """`340ms`, `4.2s`, `45s`, `3m20s`, `2h05m`, `4d03h`."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    seconds = max(0.0, seconds)
    if (milliseconds := round(seconds * 1000)) < 1000:  # noqa: PLR2004 - a second
        return f"{milliseconds}ms"
    if (tenths := round(seconds * 10)) < 100 and isinstance(seconds, float):  # noqa: PLR2004 - a decimal still tells
        return f"{tenths / 10}s"
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not minutes:
        return f"{second}s"
    if not hours:
        return f"{minute}m{second:02d}s"
    return f"{hour}h{minute:02d}m" if not days else f"{days}d{hour:02d}h"


def ago(then: float, now: float) -> str:
    """How long before `now`; a clock that is behind reads as just now."""
    return "just now" if now - then < 1 else f"{duration(math.floor(now - then))} ago"


def clock_time(seconds: float) -> str:
    """A time since the Unix epoch as local date and time, or the bare number if no calendar has it."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def size(size_bytes: int) -> str:
    """`812 B`, `12.3 KiB`, `4.0 GiB`."""
    if size_bytes < _KIB:
        return f"{size_bytes} B"
    value, units = size_bytes / _KIB, ["KiB", "MiB", "GiB", "TiB"]
    while len(units) > 1 and round(value, 1) >= _KIB:
        value, units = value / _KIB, units[1:]
    return f"{value:.1f} {units[0]}"


def count(number: int, noun: str) -> str:
    """`1 trial`, `2,048 trials`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def error_line(error: str | None) -> str:
    """The one line of an error that says most: its first; of a traceback, the exception's name."""
    return printable(line_of(error))


def flatten(values: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings, named `outer/inner`."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and depth < _MAX_DEPTH:
            yield from flatten(value, f"{name}/", depth + 1)
        else:
            yield name, value
