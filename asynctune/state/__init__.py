"""Owns one experiment's state on one disk: records, journal, snapshots, recovery, pacing and the writer.

Knows keys and bytes, not trials: what a record means belongs to the store above.
"""
