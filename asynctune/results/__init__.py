"""Owns result rows: their packed form in the journal, and the files people read, which are projections of it.

Each module has one step of the way from a report to a file::

    rows         row operations, packed for the commit frame, and their expansion to a full row (pure)
    render       a full row as JSON line, CSV cells, params.json (pure)
    lines        row operations as lines of result.json (pure)
    timeline     which lines a trial's result.json must hold, given what the journal says (pure)
    events       TensorBoard event records (pure; the optional extra)
    trial_files  one trial's files, brought in line or appended to (blocking: for the thread)
    projector    ResultFiles: batches from the loop to the thread, retries, durability on request
    history      reading result.json back, with committed rows that it lacks
    freezing     copies of files that have changed, as they were at one moment (blocking: for threads)
    mirroring    ResultUploads: the files to the mirror, every so often and on request
    fetching     the files back from a bucket to an empty directory

The journal has the truth. A file here may lag behind it, and is completed from it when the store is opened.
"""

from __future__ import annotations

__all__: list[str] = []
