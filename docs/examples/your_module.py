"""The trainable of the storage examples: a logistic regression that saves and loads checkpoints.

Plain Python, so that it runs wherever the examples do. Everything that training depends on is in the checkpoint, or
follows from the iteration's number: a run that was killed and resumed ends with the same digits as one that was not.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from pathlib import Path
from typing import Any

from asynctune import Checkpoint, session

ITERATIONS = 120
FEATURES = 8
FOLDS = 3  # the held-out examples, in so many parts

Example = tuple[list[float], int]


def examples(count: int, seed: int) -> list[Example]:
    """Two clouds of points that overlap."""
    rng = random.Random(seed)
    labels = [rng.randrange(2) for _ in range(count)]
    return [([rng.gauss(0.4 * label * (i % 3), 1.0) for i in range(FEATURES)], label) for label in labels]


def score(weights: list[float], features: list[float]) -> float:
    return sum(weight * feature for weight, feature in zip(weights, features, strict=True))


def train(weights: list[float], data: list[Example], learning_rate: float) -> None:
    """One pass of stochastic gradient descent, which changes `weights`."""
    for features, label in data:
        wrong = label - 1 / (1 + math.exp(-max(-30.0, min(30.0, score(weights, features)))))
        for i, feature in enumerate(features):
            weights[i] += learning_rate * wrong * feature


def auc(weights: list[float], data: list[Example]) -> float:
    """How often an example of class 1 gets a higher score than one of class 0."""
    ranked = sorted((score(weights, features), label) for features, label in data)
    ranks = [rank for rank, (_, label) in enumerate(ranked, 1) if label]
    ones, zeros = len(ranks), len(data) - len(ranks)
    return (sum(ranks) - ones * (ones + 1) / 2) / (ones * zeros)


def my_trainable(config: dict[str, Any]) -> None:
    """Train, and report after each pass: `max-auc` is that of the held-out part where the model does best."""
    data, held_out = examples(1500, seed=1), examples(300, seed=2)
    weights, done = [0.0] * FEATURES, 0

    checkpoint = session.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            saved = json.loads(Path(directory, "model.json").read_text("ascii"))
        weights, done = saved["weights"], saved["iteration"]

    for iteration in range(done + 1, config.get("iterations", ITERATIONS) + 1):
        random.Random(iteration).shuffle(data := sorted(data))
        train(weights, data, config.get("learning_rate", 0.3))
        aucs = [auc(weights, held_out[fold::FOLDS]) for fold in range(FOLDS)]
        with tempfile.TemporaryDirectory() as directory:
            model = {"weights": weights, "iteration": iteration}
            Path(directory, "model.json").write_text(json.dumps(model), "ascii")
            session.report(
                {"max-auc": max(aucs), "mean-auc": sum(aucs) / FOLDS},
                checkpoint=Checkpoint.from_directory(directory),
            )
