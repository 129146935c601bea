"""Owns `python -m asynctune.inspect`: what happened, what won, is it intact. Only ever reads.

Each module has one step of the way from a location to the screen::

    cli          the command line: words and options, nothing else
    answers      what each command asks, and what draws the answer
    reading      opens one experiment in read mode      directory    opens all of a directory or bucket
    buckets      which experiments are below a location
    building     what a store says, as reports          places       looks for files, in threads
    scan         one pass over all trials               fields       what a trial says by name
    verifying    all against its checksums              state_files  each frame of the state
    verifying_copy   the same of a copy in a bucket     tallying     counts, a few checkpoints at a time
    recorded     checkpoints in the raw state
    garbage      looks through a bucket                 leaks        what in it nothing needs
    tuned        what a Tuner stored of itself
    report       the values that are the answers
    tables       reports for people                     facts, columns, listings, text: what fits, how it reads
    jsonout      reports for programs, a stated contract (docs/inspect.md)
    screen       the way out                            exits        exit codes

It needs nothing of the code that ran the trials: state holds names and numbers, never code.
"""

from __future__ import annotations

__all__: list[str] = []
