"""Owns the copy of an experiment's state in a bucket: what is written there, by whom, and how it is read back.

The same frames as on the disk, named by one object `.asynctune/CURRENT` that is replaced by compare-and-swap only.
Takes its commits from the local journal's files; knows keys and bytes, not trials.
"""
