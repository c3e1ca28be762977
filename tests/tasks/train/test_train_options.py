"""The settings of training: what is refused, and which recipe they make."""

import subprocess
import sys
from dataclasses import fields

import pytest

from i3d.cli import train
from i3d.errors import UsageError
from i3d.tasks.train import RunOptions, TrainOptions
from i3d.tasks.train.recipe import Schedule


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 1, "steps": 1}, "give one"),
        ({"epochs": 0}, "epochs 0"),
        ({"frames": 8}, "at least 9"),
        ({"val_frames": 8}, "val-frames 8"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"ema": 1.0}, "ema 1.0"),
        ({"learning_rate": 0.0}, "learning-rate 0.0"),
        ({"learning_rate": float("nan")}, "learning-rate nan"),
        ({"clip_gradients": -1.0}, "clip-gradients"),
        ({"freeze": "Logits"}, "the endpoints are Conv3d_1a_7x7"),
        ({"recipe": "sgd"}, "original and finetune"),
        ({"recipe": "finetune", "momentum": 0.9}, "AdamW"),
        ({"seed": -1}, "seed -1"),
        ({"precision": "fp8"}, "fp8"),
        ({"workers": -1}, "workers -1"),
        ({"width": 5.0}, "width 5.0"),
    ],
)
def test_options_without_meaning(wrong, message):
    with pytest.raises(UsageError, match=message):
        TrainOptions(**wrong)


def test_numbers_of_the_recipes():
    original, finetune = (
        TrainOptions().complete_recipe(),
        TrainOptions(recipe="finetune").complete_recipe(),
    )
    assert (original.learning_rate, original.weight_decay, original.momentum) == (0.1, 1e-7, 0.9)
    assert original.batch_size * 64 == 384
    assert (finetune.learning_rate, finetune.weight_decay, finetune.momentum) == (1e-4, 0.05, None)
    assert TrainOptions(recipe="finetune", epochs=10).schedule(
        "rgb", steps_per_epoch=20
    ) == Schedule("finetune", "rgb", 200, 10)
    changed = TrainOptions(learning_rate=0.5, momentum=0.8, weight_decay=0.0).complete_recipe()
    assert (changed.learning_rate, changed.momentum, changed.weight_decay) == (0.5, 0.8, 0)


def test_the_settings_are_light():
    """`i3d --help` imports them."""
    script = "import sys, i3d.tasks.train.options; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy"} & set(done.stdout.split())


def test_every_setting_is_an_option():
    names = {field.name for cls in (RunOptions, TrainOptions) for field in fields(cls)}
    flags = {flag for option in train.params for flag in (*option.opts, *option.secondary_opts)}
    assert {f"--{name.replace('_', '-')}" for name in names} <= flags
    assert "--no-flip" in flags
