"""A tuning driver of one's own on the bare store: its own worker processes, its own scheduler, no Tuner.

    python docs/examples/own_driver /tmp/halving      # kill it at any moment, and start it again

Sixteen networks learn to read handwritten digits by successive halving. Trials wait `PAUSED` at rungs until all have
come there, then the better half goes on; each trains in a worker process and saves a checkpoint after each epoch.
However often it is killed, it ends with the same table as if it never was.

`driver` is the loop over the store, `halving` decides who trains how far, `workers` the driver's end of the worker
processes, `worker` the other end, `model` what is trained.
"""

from __future__ import annotations

import asyncio
import sys

from driver import Driver

from asynctune import AsynctuneError, CheckpointConfig, ExperimentStore


async def main(directory: str, trials: int, epochs: int) -> None:
    retention = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="accuracy")
    async with ExperimentStore.open(directory, checkpoint_config=retention) as store:
        driver = Driver(store, trials, epochs)
        await driver.work(workers=2)
        for trial in store.trials:
            result, config = trial.last_result, trial.config
            print(
                f"{trial.trial_name} {trial.status.lower()} at epoch {result.get('training_iteration', 0)}: "
                f"accuracy {result.get('accuracy', 0):.4f}, {config['units']} units, "
                f"learning rate {config['learning_rate']}, batches of {config['batch_size']}"
            )
        if (best := store.best_trial("accuracy", "max")) is not None:
            print(f"best: {best.trial_name}, accuracy {best.last_result['accuracy']:.4f}")


if __name__ == "__main__":
    if len(sys.argv) not in {2, 4}:
        sys.exit("usage: python own_driver DIRECTORY [TRIALS EPOCHS]")
    try:
        asyncio.run(main(sys.argv[1], *(map(int, sys.argv[2:] or ("16", "16")))))
    except AsynctuneError as error:
        sys.exit(f"own_driver: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped, and all of it is on disk; start it again, and it goes on")
