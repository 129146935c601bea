"""The counts that are too many for every test run: `python -m tests.lab [--full] [--seed N] [--only NAME]`.

One module per experiment; each registers itself with `tests.lab.registry.experiment`. The sampled tests under
`tests/` run the same code on fewer cases.
"""
