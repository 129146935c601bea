"""Owns how the demo's experiment is begun, taken up again, or refused; the driver does the rest."""

from __future__ import annotations

from collections.abc import Mapping

from asynctune.config import CheckpointConfig
from asynctune.demo.display import Display, plural
from asynctune.demo.driver import SETTINGS_KEY, TEST_KEY, Driver
from asynctune.demo.scheduler import METRIC, Plan
from asynctune.errors import ConfigError
from asynctune.store.store import ExperimentStore

__all__ = ["run"]


async def run(directory: str, given: Mapping[str, int], workers: int, display: Display) -> None:
    """Start the experiment in `directory`, or go on with it, to its end.

    Args:
        directory: The experiment's directory.
        given: Fields of `Plan` that the user has set.
        workers: Worker processes at a time.
        display: Where to say what happens.

    Raises:
        AsynctuneError: See there; each says what to do.
    """
    retention = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute=METRIC)
    async with ExperimentStore.open(directory, checkpoint_config=retention) as store:
        plan = _settle_plan(store, given)
        driver = Driver(store, plan, display)
        if TEST_KEY in store.metadata:
            display.line(f"This experiment is finished: {plural(plan.trials, 'trial')}, nothing left to run.")
        else:
            await driver.work(workers)
        driver.conclude()


def _settle_plan(store: ExperimentStore, given: Mapping[str, int]) -> Plan:
    """The plan of this experiment: the recorded one, or a new one of what the user has set.

    Raises:
        ConfigError: The experiment is not the demo's, or was begun with other numbers.
    """
    recorded = store.metadata.get(SETTINGS_KEY)
    if recorded is None:
        if len(store.trials):
            raise ConfigError(
                f"the experiment in {store.location} is not the demo's; choose another directory"
            )
        return Plan(**given)
    for name, value in given.items():
        if recorded[name] != value:
            raise ConfigError(
                f"the experiment in {store.location} was begun with --{name} {recorded[name]}, not {value}; "
                "leave the option out to go on with it, or choose another directory"
            )
    return Plan(**recorded)
