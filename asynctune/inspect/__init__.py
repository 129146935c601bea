"""Owns `python -m asynctune.inspect`: what happened, what won, is it intact. Only ever reads.

Each module has one step of the way from a location to the screen::

    cli        the command line: words and options, nothing else
    reading    opens stores in read mode, looks at files in threads, turns errors into exit codes
    scan       one pass over all trials: counts, filter, order, limit
    report     plain values that say everything a command answers (pure)
    verifying  every frame and every file against its checksums
    tables     report -> text for people        columns, text: how cells read, which columns fit
    jsonout    report -> JSON for programs, a stated contract (docs/inspect.md)

It needs nothing of the code that ran the trials: state holds names and numbers, never code.
"""

from __future__ import annotations

__all__: list[str] = []
