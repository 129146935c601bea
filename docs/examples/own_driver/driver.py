"""The loop over the store: it brings trials to the workers, and what comes of them to the store.

What it shows is how little a driver has to do to survive: it tells the store what happened, as it happens, and at the
next start asks what that was. It waits for the disk only to hand a checkpoint over.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil

from halving import SuccessiveHalving, rungs_of, sample_config
from workers import Worker, WorkerDiedError

from asynctune import CheckpointNotFoundError, ConfigError, ExperimentStore, TrialStatus

PLAN = "plan"  # key of the experiment's metadata: what it was begun with
RUNGS = "rungs"  # key of a trial's metadata: what it reached at which rung
MAX_FAILURES = 2


class Driver:
    """One driver of one open experiment."""

    def __init__(self, store: ExperimentStore, trials: int, epochs: int) -> None:
        self.store = store
        self.trials, self.epochs = trials, epochs
        self.scheduler = SuccessiveHalving(rungs_of(epochs))
        # Below the experiment, where the store takes over by rename; of this opening alone, because a driver that was
        # killed has left half a checkpoint in its own.
        self.scratch = os.path.join(store.location, ".own_driver", f"scratch-{store.opening.epoch}")
        self.tries = itertools.count()
        self.changed = asyncio.Event()  # something that lets a waiting worker decide anew

    async def work(self, workers: int) -> None:
        """Run all trials to their end, from wherever they are."""
        await asyncio.to_thread(shutil.rmtree, os.path.dirname(self.scratch), ignore_errors=True)
        self.begin()
        try:
            async with asyncio.TaskGroup() as serving:
                for _ in range(workers):
                    serving.create_task(self.serve())
        except asyncio.CancelledError:  # Ctrl-C
            for trial in self.store.trials:
                if trial.status is TrialStatus.RUNNING:
                    self.store.set_status(trial.trial_id, TrialStatus.PENDING)
            raise
        await asyncio.to_thread(shutil.rmtree, os.path.dirname(self.scratch), ignore_errors=True)

    def begin(self) -> None:
        """Record the plan and all trials in one commit, or take up what is there."""
        store, trials = self.store, self.store.trials
        plan = {"trials": self.trials, "epochs": self.epochs}
        if store.metadata.get(PLAN, plan) != plan:
            raise ConfigError(f"{store.location} was begun with {store.metadata[PLAN]}, not {plan}")
        if trials:
            finished = sum(trial.status.is_finished for trial in trials)
            running = [trial.trial_name for trial in trials if trial.status is TrialStatus.RUNNING]
            print(f"{finished} trials were finished; go on from their checkpoints: {running}", flush=True)
            store.requeue()
        store.set_metadata(PLAN, plan)
        for index in range(len(trials), self.trials):
            store.add_trial(sample_config(index), trial_name=f"trial_{index:02}")
        store.attach_scheduler(self.scheduler)
        # The scheduler's own state may be a moment older than the trials: it hears again what they recorded.
        for trial in store.trials:
            self.scheduler.add_scores(trial.trial_id, trial.metadata.get(RUNGS, {}))
            if trial.status is TrialStatus.ERROR:
                self.scheduler.on_trial_error(trial.trial_id)
        self.stop_the_beaten()

    async def serve(self) -> None:
        """One worker process: as long as there are trials, train one after the other in it."""
        worker: Worker | None = None
        try:
            while (trial_id := await self.next_trial()) is not None:
                try:
                    worker = worker or await Worker.start()
                    await self.train(worker, trial_id)
                except CheckpointNotFoundError as error:  # none that is intact, so nothing to go on from
                    self.fail(trial_id, str(error))
                except WorkerDiedError as error:
                    worker = None
                    if self.store.get_trial(trial_id).num_failures >= MAX_FAILURES:
                        self.fail(trial_id, str(error))
                    else:  # once more, from its newest checkpoint
                        self.store.set_status(trial_id, TrialStatus.PENDING, error=error)
                        print(f"{self.store.get_trial(trial_id).trial_name}: {error}", flush=True)
                self.stop_the_beaten()
        finally:
            if worker is not None:
                await worker.aclose()

    async def next_trial(self) -> str | None:
        """A trial to train, now `RUNNING`; `None` when all are through."""
        while True:
            unfinished = [trial for trial in self.store.trials if not trial.status.is_finished]
            if not unfinished:
                return None
            waiting = [trial.trial_id for trial in unfinished if trial.status is not TrialStatus.RUNNING]
            if (chosen := self.scheduler.choose_trial_to_run(waiting)) is not None:
                self.store.set_status(chosen, TrialStatus.RUNNING)
                return chosen
            self.changed.clear()
            await self.changed.wait()

    async def train(self, worker: Worker, trial_id: str) -> None:
        """Train one trial to its next rung, with a checkpoint after each epoch."""
        store, trial = self.store, self.store.get_trial(trial_id)
        checkpoint = await store.restore_checkpoint(trial_id) if trial.checkpoints else None
        task = {
            "config": trial.config,
            "checkpoint": None if checkpoint is None else str(checkpoint.path),
            "until": self.scheduler.next_rung(trial_id),
            # of this try alone: a worker that was killed may have left half a checkpoint
            "directory": os.path.join(self.scratch, f"{trial.trial_name}-{next(self.tries)}"),
        }
        result = {} if checkpoint is None else dict(checkpoint.metrics)
        async for message in worker.perform(task):
            if "error" in message:
                self.fail(trial_id, message["error"])
                return
            result = message["result"]
            epoch = result["epoch"]
            store.report(trial_id, result, iteration=epoch)
            # The step is the epoch, but for a trial that had to go back to before a damaged checkpoint.
            step = max([epoch, *((each.step or 0) + 1 for each in store.checkpoints(trial_id)[-1:])])
            await store.save_checkpoint(trial_id, message["checkpoint"], step=step, metrics=result, move=True)
        decision = self.scheduler.on_trial_result(trial_id, {**result, "training_iteration": result["epoch"]})
        # No await from here on: score and status are in one commit, or in none.
        store.update_trial(trial_id, metadata={RUNGS: self.scheduler.scores(trial_id)})
        store.set_status(trial_id, TrialStatus.TERMINATED if decision == "STOP" else TrialStatus.PAUSED)
        print(f"{trial.trial_name} at epoch {result['epoch']}: {result['accuracy']:.4f}", flush=True)

    def fail(self, trial_id: str, error: str) -> None:
        """The trial will not come back."""
        self.store.set_status(trial_id, TrialStatus.ERROR, error=error)
        self.scheduler.on_trial_error(trial_id)
        print(f"{self.store.get_trial(trial_id).trial_name} failed: {error}", flush=True)

    def stop_the_beaten(self) -> None:
        """End the trials that are not promoted, and let waiting workers look again."""
        for trial in self.store.trials:
            if trial.status is TrialStatus.PAUSED and self.scheduler.verdict(trial.trial_id) == "STOP":
                self.store.set_status(trial.trial_id, TrialStatus.TERMINATED)
        self.changed.set()
