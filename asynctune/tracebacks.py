"""Owns which line of a stored traceback tells most. Pure; how it is shown is up to whoever shows it."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["error_line"]

_TRACEBACK: Final = "Traceback (most recent call last)"
_MEMBER: Final = re.compile(r" *\+[-+]+ \d+ -+")
_IN_A_GROUP: Final = re.compile(r" *[|+] ")


def error_line(error: str | None) -> str:
    """The one line of an error that says most; it may hold any character but the end of a line.

    Of a traceback, the line with the exception's name: the last exception of a chain, and the last one of a group.
    Of any other text, the first line.
    """
    lines = [line.rstrip() for line in (error or "").splitlines() if any(map(str.isalnum, line))]
    if not lines:
        return (error or "").strip()
    for index in reversed(range(len(lines))):
        if _TRACEBACK in lines[index]:
            lines = _within(lines[index], lines[index + 1 :]) or lines
            break
        if _MEMBER.fullmatch(lines[index]):  # of a group, and without a traceback of its own
            lines = _within("".join(lines[index + 1 : index + 2]), lines[index + 1 :]) or lines
            break
    named = next((line for line in lines if not line.startswith(" ")), lines[-1])  # frames are indented
    return named.strip()


def _within(first: str, lines: list[str]) -> list[str]:
    """These lines without the margin that `first` has in a group."""
    margin = _IN_A_GROUP.match(first)
    return lines if margin is None else [line for each in lines if (line := each[margin.end() :])]
