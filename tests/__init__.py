"""The tests of asynctune: they mirror its rooms. `python -m tests.lab --full` runs the long ones."""
