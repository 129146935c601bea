"""Owns the demo's asyncio driver: it brings trials to the workers, and what comes of them to the store.

What it shows is how little a driver has to do to survive: it tells the store what happened, as it happens,
and at the next start asks what that was. It never waits for the disk but to hand a checkpoint over.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shlex
import shutil
from dataclasses import asdict
from typing import Any, Final

from asynctune.clock import SystemClock
from asynctune.demo.display import Display, Progress, Row, first_line, plural, trial_table
from asynctune.demo.heartbeat import INTERVAL_S, Heartbeat, LastWords, Unsaved, read_last_words
from asynctune.demo.resumption import examine, tell
from asynctune.demo.scheduler import METRIC, Plan, SuccessiveHalving, sample_config
from asynctune.demo.workers import Worker, WorkerDiedError
from asynctune.errors import CheckpointNotFoundError, ConfigError, StorageError
from asynctune.store.store import ExperimentStore
from asynctune.trial import Trial, TrialStatus

__all__ = ["SETTINGS_KEY", "TEST_KEY", "Driver"]

SETTINGS_KEY: Final = "demo"
TEST_KEY: Final = "test_accuracy"
RUNGS_KEY: Final = "rungs"
OWN_DIRECTORY: Final = ".demo"
"""Below the experiment: the heartbeat, and where workers write what the store then takes over by rename."""

_MAX_FAILURES: Final = 2
_PICTURE_S: Final = 0.2


class Driver:
    """One driver of one open experiment.

    Args:
        store: The experiment, open for writing.
        plan: What to try.
        display: Where to say what happens.
    """

    def __init__(self, store: ExperimentStore, plan: Plan, display: Display) -> None:
        self._store = store
        self._plan = plan
        self._display = display
        self._clock = SystemClock()
        self._scheduler = SuccessiveHalving(plan.rungs)
        self._own = os.path.join(store.location, OWN_DIRECTORY)
        self._scratch = os.path.join(self._own, f"scratch-{store.opening.epoch}")
        self._tries = itertools.count()
        self._training: dict[str, Unsaved] = {}  # by trial id, what the heartbeat tells
        self._rows: dict[str, Row] = {}  # by trial id, what the picture shows
        self._tested = False
        self._changed = asyncio.Event()  # something that lets a waiting worker decide anew

    async def work(self, workers: int) -> None:
        """Run all trials to their end, from wherever they are, and test the best one."""
        heart = await asyncio.to_thread(self._open_heartbeat)
        try:
            self._begin()
            self._beat(heart)
            async with asyncio.TaskGroup() as group:
                beats = group.create_task(self._keep_beating(heart))
                async with asyncio.TaskGroup() as serving:
                    for _ in range(workers):
                        serving.create_task(self._serve())
                beats.cancel()
        except asyncio.CancelledError:
            for trial in self._store.trials:
                if trial.status is TrialStatus.RUNNING:
                    self._store.set_status(trial.trial_id, TrialStatus.PENDING)
            self._beat(heart, closed=True)
            raise
        finally:
            heart.close()
        await asyncio.to_thread(shutil.rmtree, self._own)

    # -- the beginning -------------------------------------------------------------------------------

    def _open_heartbeat(self) -> Heartbeat:
        path = os.path.join(self._own, "heartbeat")
        try:
            os.makedirs(self._own, exist_ok=True)
            self._last_words = read_last_words(path)
            for name in os.listdir(self._own):
                # Of drivers before; nothing in there was acknowledged to anybody.
                if name.startswith("scratch-"):
                    shutil.rmtree(os.path.join(self._own, name), ignore_errors=True)
            return Heartbeat(path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error}", operation="write", key=path) from error

    def _begin(self) -> None:
        store, display = self._store, self._display
        display.line(
            f"{plural(self._plan.trials, 'trial')} of a neural network on the handwritten digits; "
            f"kill this at any moment, by any means, and start it again."
        )
        trials = store.trials
        if len(trials):
            found = examine(trials, self._last_words, store.opening.epoch)
            for line in tell(found, self._plan.trials, self._clock.time()):
                display.line(line)
            store.requeue()
        # All in one commit when it is new; the rest of them if that commit was never made whole.
        store.set_metadata(SETTINGS_KEY, asdict(self._plan))
        for index in range(len(trials), self._plan.trials):
            store.add_trial(sample_config(self._plan.seed, index), trial_name=f"trial_{index:02}")
        store.attach_scheduler(self._scheduler)
        # The scheduler's own state may be a moment older than the trials: it hears again what they recorded.
        self._scheduler.add_trials(trial.trial_id for trial in store.trials)
        for trial in store.trials:
            self._scheduler.add_scores(trial.trial_id, trial.metadata.get(RUNGS_KEY, {}))
            if trial.status is TrialStatus.ERROR:
                self._scheduler.on_trial_error(trial.trial_id)
        self._stop_the_beaten()

    # -- training ------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """One worker process: as long as there are trials, train one after the other in it."""
        worker: Worker | None = None
        try:
            while (trial_id := await self._next_trial()) is not None:
                worker = worker or await Worker.start()
                try:
                    await self._train(worker, trial_id)
                except CheckpointNotFoundError as error:
                    self._record_error(trial_id, str(error))  # none that is intact, so nothing to go on from
                except WorkerDiedError as error:
                    await worker.aclose()
                    worker = None
                    self._record_death(trial_id, error)
                finally:
                    self._rows.pop(trial_id, None)
                self._training.pop(trial_id, None)
                self._stop_the_beaten()
            if not self._tested:
                self._tested = True
                worker = worker or await Worker.start()
                await self._test_best(worker)
        finally:
            if worker is not None:
                await worker.aclose()

    async def _next_trial(self) -> str | None:
        """A trial to train, now `RUNNING`; `None` when all are through."""
        while True:
            unfinished = [trial for trial in self._store.trials if not trial.status.is_finished]
            if not unfinished:
                return None
            waiting = [trial.trial_id for trial in unfinished if trial.status is not TrialStatus.RUNNING]
            chosen = self._scheduler.choose_trial_to_run(waiting)
            if chosen is not None:
                self._store.set_status(chosen, TrialStatus.RUNNING)
                return chosen
            self._changed.clear()
            await self._changed.wait()

    async def _train(self, worker: Worker, trial_id: str) -> None:
        """Train one trial to its next rung, with a checkpoint after each epoch."""
        store = self._store
        trial = store.get_trial(trial_id)
        metrics: dict[str, Any] = {}
        checkpoint, epoch = None, 0
        if trial.checkpoints:
            checkpoint = await store.restore_checkpoint(trial_id)
            metrics, epoch = dict(checkpoint.metrics), checkpoint.metrics["epoch"]
        until = self._scheduler.next_rung(trial_id)
        # one for each try: a worker that was killed may have left half a checkpoint in the one before
        directory = os.path.join(self._scratch, f"{trial.trial_name}-{next(self._tries)}")
        task = {
            "config": trial.config,
            "checkpoint": None if checkpoint is None else str(checkpoint.path),
            "until": until,
            "directory": directory,
        }
        self._training[trial_id] = Unsaved(epoch, self._clock.time())
        self._rows[trial_id] = Row(trial.trial_name, epoch, until, metrics.get(METRIC))
        async for message in worker.perform(task):
            if message.get("storage"):
                raise StorageError(
                    f"a worker cannot write {directory} or read its checkpoint: {message['error']}",
                    key=directory,
                    hint="put that right and start the demo again; it goes on",
                )
            if "error" in message:
                self._record_error(trial_id, message["error"])
                return
            if "epoch" in message:
                epoch = message["epoch"]
                store.report(trial_id, message["metrics"], iteration=epoch)
                metrics = {"epoch": epoch, **message["metrics"]}
                # The step is the epoch, but for a trial that had to go back to before a damaged checkpoint.
                step = max([epoch, *((each.step or 0) + 1 for each in store.checkpoints(trial_id)[-1:])])
                await store.save_checkpoint(
                    trial_id, message["checkpoint"], step=step, metrics=metrics, move=True
                )
                self._training[trial_id] = Unsaved(epoch, message["ended_at"])
                self._rows[trial_id] = Row(trial.trial_name, epoch, until, metrics[METRIC])
        decision = self._scheduler.on_trial_result(trial_id, {**metrics, "training_iteration": epoch})
        # No await from here on: score and status are in one commit, or in none.
        store.update_trial(trial_id, metadata={RUNGS_KEY: self._scheduler.scores(trial_id)})
        store.set_status(trial_id, TrialStatus.TERMINATED if decision == "STOP" else TrialStatus.PAUSED)
        what = "finished" if decision == "STOP" else f"at epoch {epoch}"
        self._display.line(f"{trial.trial_name} {what}: accuracy {metrics[METRIC]:.4f}")

    def _stop_the_beaten(self) -> None:
        """End the trials that are not promoted, and let waiting workers look again."""
        beaten = [
            trial
            for trial in self._store.trials
            if trial.status is TrialStatus.PAUSED and self._scheduler.verdict(trial.trial_id) == "STOP"
        ]
        for trial in beaten:
            self._store.set_status(trial.trial_id, TrialStatus.TERMINATED)
        if beaten:
            names = " ".join(trial.trial_name.removeprefix("trial_") for trial in beaten)
            self._display.line(f"{plural(len(beaten), 'trial')} finished ({names}), the others go on")
            self._display.line(self._progress().store_line, style="dim")
        self._changed.set()

    def _record_error(self, trial_id: str, error: str) -> None:
        self._store.set_status(trial_id, TrialStatus.ERROR, error=error)
        self._scheduler.on_trial_error(trial_id)
        trial = self._store.get_trial(trial_id)
        self._display.line(f"{trial.trial_name} failed: {first_line(error)}", style="red")

    def _record_death(self, trial_id: str, error: WorkerDiedError) -> None:
        trial = self._store.get_trial(trial_id)
        if trial.num_failures >= _MAX_FAILURES:
            self._record_error(trial_id, str(error))
            return
        self._store.set_status(trial_id, TrialStatus.PENDING, error=error)
        self._display.line(f"{trial.trial_name} will go on elsewhere: {first_line(error)}", style="yellow")

    # -- the end -------------------------------------------------------------------------------------

    def _best(self) -> Trial | None:
        return self._store.best_trial(METRIC, "max")

    async def _test_best(self, worker: Worker) -> None:
        """Measure the winner once, on images that the search has never seen."""
        best = self._best()
        if best is None:
            self._store.set_metadata(TEST_KEY, None)
            return
        try:
            checkpoint = await self._store.restore_checkpoint(best.trial_id)
        except CheckpointNotFoundError as error:
            self._display.line(f"{best.trial_name}, the best, cannot be tested: {error}", style="red")
            self._store.set_metadata(TEST_KEY, None)
            return
        task = {"config": best.config, "checkpoint": str(checkpoint.path), "test": True}
        async for message in worker.perform(task):
            if "error" in message:
                raise ConfigError(f"{best.trial_name}, the best, cannot be tested: {message['error']}")
            self._store.set_metadata(TEST_KEY, message["test_accuracy"])
        await self._store.flush()

    def conclude(self) -> None:
        """Print the table and the winner."""
        store, display = self._store, self._display
        best = self._best()
        display.line("")
        display.show(trial_table(list(store.trials), None if best is None else best.trial_id))
        display.line("")
        if best is not None:
            text = f"best: {best.trial_name}, accuracy {_accuracy(best):.4f} on the validation images"
            if (tested := store.metadata[TEST_KEY]) is not None:
                text += f", {tested:.4f} on test images that the search never saw"
            display.line(text, style="bold")
        if self._tested:  # by this opening: one that only shows the table has no figures worth showing
            display.line(self._progress().store_line)
        location = shlex.quote(str(store.location))
        display.line(f"look closer:  python -m asynctune.inspect {location}")
        display.line(f"start anew:   rm -r {location}")

    # -- meanwhile -----------------------------------------------------------------------------------

    async def _keep_beating(self, heart: Heartbeat) -> None:
        drawn_at = -_PICTURE_S
        while True:
            self._beat(heart)
            if self._display.live and self._clock.monotonic() >= drawn_at + _PICTURE_S:
                drawn_at = self._clock.monotonic()
                self._display.update(self._progress())
            await self._clock.sleep(INTERVAL_S)

    def _beat(self, heart: Heartbeat, *, closed: bool = False) -> None:
        stats = self._store.stats()
        heart.beat(
            LastWords(
                opening=self._store.opening.epoch,
                at=self._clock.time(),
                dirty_s=stats.oldest_dirty_age_s,
                training=self._training,
                closed=closed,
            )
        )

    def _progress(self) -> Progress:
        stats, trials, best = self._store.stats(), self._store.trials, self._best()
        return Progress(
            finished=sum(trial.status.is_finished for trial in trials),
            trials=len(trials),
            epochs=sum(trial.last_result.get("training_iteration", 0) for trial in trials),
            epochs_in_all=self._plan.epochs_in_all,
            running=tuple(self._rows.values()),
            best=None if best is None else (best.trial_name, _accuracy(best)),
            commits=stats.commits,
            checkpoint_fraction=stats.checkpoint_fraction,
        )


def _accuracy(trial: Trial) -> float:
    return float(trial.last_result.get(METRIC, 0.0))
