"""Population-based training with a scheduler of one's own, which survives being killed to the last digit.

    python population_based.py /tmp/population      # kill it at any moment, and start it again

Eight softmax regressions learn to read handwritten digits, each with its own learning rate and momentum. They
train side by side for two epochs, PAUSED in between; after each such generation the two worst ones take over
the model of one of the two best (`clone_checkpoint`) and go on with its hyperparameters, changed a little.
Source: Jaderberg et al., "Population Based Training of Neural Networks", 2017.

What it takes to survive a kill between any two lines:

- A decision is made once and recorded with the scheduler's state (`get_state`), before anything is done about
  it; doing it has steps that are skipped if they were done before. The decisions of a generation follow from
  its scores and its number alone, so one that was lost is made again in the same way.
- Everything that training depends on is in the checkpoint, or follows from the trial's id and the epoch.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from asynctune import CheckpointConfig, ExperimentStore, Trial, TrialStatus

POPULATION = 8
GENERATIONS = 6
EPOCHS = 2  # for each generation
STEPS = 10  # between the checkpoints of two generations: room for the clones in between


class Digits:
    """Softmax regression on 1,797 images of 64 pixels, with momentum; trained in a thread."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        self.images, self.labels = images[order] / 16, labels[order]

    def train(self, source: Path | None, target: Path, config: dict[str, Any], first_epoch: int) -> float:
        """Train on from the checkpoint in `source`, write one to `target`; accuracy on images held out."""
        weights, velocity = np.zeros((64, 10)), np.zeros((64, 10))
        if source is not None:
            weights, velocity = np.load(source / "weights.npy"), np.load(source / "velocity.npy")
        images, labels = self.images[:1297], self.labels[:1297]
        for epoch in range(first_epoch, first_epoch + EPOCHS):
            order = np.random.default_rng([config["seed"], epoch]).permutation(len(images))
            for batch in np.array_split(order, 40):
                scores = np.exp(images[batch] @ weights)
                scores /= scores.sum(axis=1, keepdims=True)
                scores[np.arange(len(batch)), labels[batch]] -= 1
                velocity = config["momentum"] * velocity - images[batch].T @ scores / len(batch)
                weights = weights + config["learning_rate"] * velocity
        shutil.rmtree(target, ignore_errors=True)  # of a driver that was killed
        target.mkdir(parents=True)
        np.save(target / "weights.npy", weights)
        np.save(target / "velocity.npy", velocity)
        guesses = (self.images[1297:] @ weights).argmax(axis=1)
        return float((guesses == self.labels[1297:]).mean())


class PopulationBasedTraining:
    """The scheduler: knows the generation, and what was decided at its end."""

    def __init__(self) -> None:
        self.generation = 0
        self.decisions: list[list[Any]] | None = None  # [loser, winner, new config], once all have arrived

    def decide(self, trials: list[Trial]) -> list[list[Any]]:
        """Who takes over from whom. From the scores and the generation's number alone."""
        ranked = sorted(trials, key=lambda trial: -trial.last_result["accuracy"])
        best, worst = ranked[:2], ranked[-2:]
        draw = random.Random(self.generation)
        decisions: list[list[Any]] = []
        for loser in worst:
            winner = draw.choice(best)
            config = {
                "learning_rate": winner.config["learning_rate"] * draw.choice([0.8, 1.25]),
                "momentum": min(0.99, winner.config["momentum"] * draw.choice([0.9, 1.1])),
                "seed": loser.config["seed"],
            }
            decisions.append([loser.trial_id, winner.trial_id, config])
        return decisions

    def get_state(self) -> dict[str, Any]:
        return {"generation": self.generation, "decisions": self.decisions}

    def set_state(self, state: dict[str, Any]) -> None:
        self.generation, self.decisions = state["generation"], state["decisions"]


async def train(
    store: ExperimentStore, digits: Digits, trial: Trial, generation: int, at_once: asyncio.Semaphore
) -> None:
    """One generation of one trial: resumed from its newest checkpoint, paused with the next one."""
    first_epoch, step = generation * EPOCHS, (generation + 1) * STEPS
    async with at_once:
        store.set_status(trial.trial_id, TrialStatus.RUNNING)
        target = store.location / ".scratch" / trial.trial_name
        work = (target, dict(trial.config), first_epoch)
        if trial.checkpoints:
            async with store.lease(trial.trial_id) as newest:  # retention must not take it while it is read
                accuracy = await asyncio.to_thread(digits.train, newest.path, *work)
        else:
            accuracy = await asyncio.to_thread(digits.train, None, *work)
        store.report(trial.trial_id, {"accuracy": accuracy}, iteration=first_epoch + EPOCHS)
        await store.save_checkpoint(
            trial.trial_id, target, step=step, metrics={"accuracy": accuracy}, move=True
        )
        store.set_status(trial.trial_id, TrialStatus.PAUSED)
    print(f"trained {trial.trial_name} generation {generation} accuracy {accuracy:.4f}", flush=True)


async def exploit(store: ExperimentStore, decision: list[Any], generation: int) -> None:
    """The loser takes over the winner's model, with new hyperparameters; once, however often called."""
    loser, winner, config = decision
    step = (generation + 1) * STEPS
    if newest_step(store, loser) == step:  # else it was cloned before the kill
        await store.clone_checkpoint(winner, step, to_trial=loser)
    store.update_trial(loser, config=config)
    print(f"cloned {winner} to {loser} generation {generation}", flush=True)


def newest_step(store: ExperimentStore, trial_id: str) -> int:
    return max((checkpoint.step or 0 for checkpoint in store.checkpoints(trial_id)), default=0)


async def run(directory: str) -> None:
    """Start the experiment, or go on with it."""
    digits = Digits()
    async with ExperimentStore.open(directory, checkpoint_config=CheckpointConfig(num_to_keep=1)) as store:
        draw = random.Random(1)
        for index in range(POPULATION):
            config = {
                "learning_rate": 10 ** draw.uniform(-3, 0),
                "momentum": draw.uniform(0, 0.9),
                "seed": index,
            }
            if index >= len(store.trials):
                store.add_trial(config, trial_name=f"member_{index}")
        scheduler = PopulationBasedTraining()
        store.attach_scheduler(scheduler)
        store.requeue()  # who was RUNNING when the driver died is PENDING, who was PAUSED stays so
        print(f"at generation {scheduler.generation}, decided: {scheduler.decisions}", flush=True)
        while scheduler.generation < GENERATIONS:
            generation, at_once = scheduler.generation, asyncio.Semaphore(2)
            async with asyncio.TaskGroup() as group:
                for trial in store.trials:
                    if newest_step(store, trial.trial_id) < (generation + 1) * STEPS:
                        group.create_task(train(store, digits, trial, generation, at_once))
            if scheduler.decisions is None:
                scheduler.decisions = scheduler.decide(list(store.trials))
                await store.flush()
            for decision in scheduler.decisions:
                await exploit(store, decision, generation)
            scheduler.generation, scheduler.decisions = generation + 1, None
            await store.flush()
        for trial in store.trials:
            store.set_status(trial.trial_id, TrialStatus.TERMINATED)
        for trial in store.trials:
            print(f"{trial.trial_name} {trial.last_result['accuracy']:.4f} {dict(trial.config)}")
        best = store.best_trial("accuracy", "max")
        assert best is not None
        print(f"best: {best.trial_name}, accuracy {best.last_result['accuracy']:.4f}")


if __name__ == "__main__":
    try:
        asyncio.run(run(sys.argv[1]))
    except KeyboardInterrupt:
        print("stopped")
