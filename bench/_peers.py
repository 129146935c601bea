"""Owns what one commit is measured beside: a bare file, Ray Tune's `save_to_dir`, Optuna's journal file.

Each is a subject for `_children`. The peers do their real work through their own classes; what is arranged
here is only that N trials are known before the first measurement.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import Any

__all__ = ["OptunaJournal", "RayTune", "hyperparameters"]

STARTED = time.time()


def hyperparameters(rng: random.Random) -> dict[str, Any]:
    """The six hyperparameters that every trial of these benchmarks has."""
    return {
        "lr": rng.random(),
        "momentum": rng.random(),
        "weight_decay": rng.random(),
        "layers": rng.randrange(1, 9),
        "units": 2 ** rng.randrange(4, 12),
        "activation": rng.choice(("relu", "tanh", "gelu")),
    }


class RayTune:
    """`TuneController.save_to_dir` with N trials known and one of them changed since the last save.

    The controller, its trials and its search algorithm are Ray's own, without a cluster: saving needs none.
    Nothing is synced to the disk, and the copy into the storage path that follows in a real run is left out.
    """

    async def prepare(self, directory: str, trials: int) -> dict[str, Any]:
        # No cluster is started by a stray call, and none is asked how many CPUs it has.
        os.environ |= {
            "RAY_ENABLE_AUTO_CONNECT": "0",
            "RAY_AUTH_MODE": "disabled",
            "TUNE_MAX_PENDING_TRIALS_PG": "1",
            "RAY_AIR_NEW_OUTPUT": "0",
        }
        import ray.train._internal.storage as storage_module  # noqa: PLC0415 - only this child pays for it
        from ray.tune.execution.tune_controller import TuneController  # noqa: PLC0415
        from ray.tune.experiment import Trial  # noqa: PLC0415

        # The staging directory is below the session's, which only a cluster has.
        storage_module._get_ray_train_session_dir = lambda: directory
        storage = storage_module.StorageContext(storage_path=directory, experiment_dir_name="experiment")
        controller = TuneController(storage=storage, resource_manager_factory=object)
        rng = random.Random(7)
        for index in range(trials):
            config = hyperparameters(rng)
            trial = Trial(
                "train",
                config=config,
                evaluated_params=config,
                experiment_tag=str(index),
                trial_id=f"3f9ac_{index:05d}",
                storage=storage,
                stub=True,  # the trainable's code is not looked up
            )
            trial.update_last_result(_row(trial.trial_id, rng.random(), 1))
            controller.add_trial(trial)
        self._controller = controller
        self._changes = 1
        controller.save_to_dir()
        return {"bytes": await asyncio.to_thread(os.path.getsize, controller.experiment_state_path)}

    async def measure(self, count: int) -> dict[str, Any]:
        seconds = []
        for _ in range(count):
            trials = self._controller.get_trials()
            trial = trials[self._changes * 7919 % len(trials)]
            self._changes += 1
            start = time.perf_counter()
            trial.update_last_result(_row(trial.trial_id, 1 / self._changes, self._changes))
            self._controller._mark_trial_to_checkpoint(trial)
            self._controller.save_to_dir()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    async def close(self) -> None:
        pass


class OptunaJournal:
    """Ask, set one attribute and tell, through `JournalStorage(JournalFileBackend(...))`, N trials known."""

    async def prepare(self, directory: str, trials: int) -> dict[str, Any]:
        import optuna  # noqa: PLC0415 - only this child pays for it
        from optuna.storages import JournalStorage  # noqa: PLC0415
        from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = os.path.join(directory, "journal.log")
        backend = JournalFileBackend(path)
        first = optuna.create_study(storage=JournalStorage(backend), study_name="bench")
        rng = random.Random(7)
        trial = first.ask()
        for name, value in hyperparameters(rng).items():
            if isinstance(value, str):
                trial.suggest_categorical(name, ["relu", "tanh", "gelu"])
            else:
                trial.suggest_float(name, 0, 4096)
        trial.set_user_attr("note", 1.0)
        first.tell(trial, 1.0)
        # The first trial was made by Optuna; its lines, numbered on, make the others in one go.
        lines = list(backend.read_logs(1))
        backend.append_logs(
            [
                line | {"trial_id": index} if "trial_id" in line else line
                for index in range(1, trials)
                for line in lines
            ]
        )
        # Random sampling, so that the storage is measured and not a model of the N trials.
        self._study = optuna.load_study(
            study_name="bench",
            storage=JournalStorage(backend),
            sampler=optuna.samplers.RandomSampler(seed=7),
        )
        known = len(self._study.get_trials(deepcopy=False))
        if known != trials:
            msg = f"Optuna knows {known} trials instead of {trials}"
            raise RuntimeError(msg)
        return {"bytes": await asyncio.to_thread(os.path.getsize, path)}

    async def measure(self, count: int) -> dict[str, Any]:
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            trial = self._study.ask()
            trial.set_user_attr("note", start)
            self._study.tell(trial, start)
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    async def close(self) -> None:
        pass


def _row(trial_id: str, loss: float, iteration: int) -> dict[str, Any]:
    """A result row as short as Ray's can be; a real one repeats the config and names the host."""
    return {
        "loss": loss,
        "training_iteration": iteration,
        "time_total_s": time.time() - STARTED,
        "trial_id": trial_id,
    }
