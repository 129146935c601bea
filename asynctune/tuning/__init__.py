"""The ready driver: search space, searchers, schedulers, and the `Tuner` that joins them to a runner and a store."""
