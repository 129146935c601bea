from __future__ import annotations

import json

import numpy as np
import pytest

from asynctune.demo.training import Digits, DigitsModel, DigitsTrial

CONFIG = {
    "layers": 2,
    "units": 24,
    "activation": "relu",
    "learning_rate": 3e-3,
    "alpha": 1e-4,
    "batch_size": 64,
    "seed": 5,
}


@pytest.fixture(scope="module")
def digits():
    return Digits.load()


def test_the_splits_share_no_image(digits):
    sets = {
        split: {image.tobytes() for image in images[: len(images) // 9 if split == "train" else None]}
        for split, images in digits.images.items()
    }
    assert {split: len(images) for split, images in sets.items()} == {
        "train": 1197,
        "validation": 300,
        "test": 300,
    }
    assert not sets["train"] & sets["validation"]
    assert not sets["train"] & sets["test"]
    assert not sets["validation"] & sets["test"]


def test_shifted_images_keep_their_labels(digits):
    assert len(digits.images["train"]) == len(digits.labels["train"]) == 9 * 1197
    first, up = digits.images["train"][0].reshape(8, 8), digits.images["train"][1197].reshape(8, 8)
    assert np.array_equal(up[1:], first[:-1])


def test_a_model_learns(digits):
    model = DigitsModel(CONFIG, digits)
    losses = [model.train_epoch()["loss"] for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert model.accuracy("test") > 0.8


def test_an_interrupted_trial_gives_exactly_the_same_curve(digits, tmp_path):
    model = DigitsModel(CONFIG, digits)
    uninterrupted = [model.train_epoch() for _ in range(5)]

    trial = DigitsTrial()
    trial.setup(dict(CONFIG))
    curve = []
    for epoch in range(1, 6):
        curve.append(trial.step())
        if epoch in {1, 3, 4}:
            directory = tmp_path / str(epoch)
            directory.mkdir()
            trial.save_checkpoint(str(directory))
            assert trial.reset_config(json.loads(json.dumps(CONFIG)))
            trial.load_checkpoint(directory)
    assert curve == uninterrupted


def test_another_seed_gives_another_curve(digits):
    curves = [DigitsModel(CONFIG | {"seed": seed}, digits).train_epoch() for seed in (1, 2)]
    assert curves[0] != curves[1]


def test_the_checkpoint_holds_no_pickle(digits, tmp_path):
    model = DigitsModel(CONFIG, digits)
    model.train_epoch()
    model.save(tmp_path)
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as arrays:
        names = sorted(arrays)
        assert all(arrays[name].dtype == np.float32 for name in names)
    assert len(names) == 18  # weights and biases of three layers, each with two moments
    assert json.loads((tmp_path / "params.json").read_text()) == {"epoch": 1, "adam_steps": 169}
