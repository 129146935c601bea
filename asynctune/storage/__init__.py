"""Where bytes live: a directory, memory, S3 or GCS, behind one protocol (`base.ObjectStorage`).

This room knows objects and keys. It knows no experiment, no checkpoint and no mirror.
"""
