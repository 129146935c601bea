"""The room of trial checkpoints: directories of a trial's files, staged, committed, kept, verified, deleted.

It owns what happens to checkpoint directories on the local disk and the records that name them. It does not
own the journal those records go to (the store binds it as a `CommitSink`), nor trials, nor the way to a
bucket.
"""
