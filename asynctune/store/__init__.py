"""Owns `ExperimentStore`, the front room: joins state, checkpoints and results into one experiment.

Rooms below do the work; this one knows what a record means (trials, statuses, metadata) and who waits for whom.
"""
