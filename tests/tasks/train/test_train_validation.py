"""Validations: `i3d evaluate` on what was kept, and which one is the best."""

import numpy as np
import pytest
import torch
from support.training import CLASSES, PRESET, column, rows
from torch import nn

import i3d
from i3d.tasks.evaluate import evaluate
from i3d.tasks.evaluate import options as evaluate_options
from i3d.tasks.train.loop import Loop
from i3d.tasks.train.state import History, ValidationRow
from i3d.tasks.train.validation import cross_entropy


def test_validation_is_evaluate(run, val):
    """`i3d evaluate` on what was kept gives what the run logged."""
    outcome, folder = run(val=val, epochs=3, val_frames=12)
    assert [row["epoch"] for row in rows(folder, "validation.csv")] == [1, 2, 3]
    options = evaluate_options.EvaluateOptions(frames=12, workers=0, device="cpu")
    for name, logged in (("last", outcome.validation), ("best", outcome.best)):
        path = folder / f"{name}.safetensors"
        predictions = evaluate(val, {"rgb": path}, options=options).evaluation
        scores = predictions.scores["rgb"]
        assert (scores.videos, scores.top1.value, scores.mean_class) == (
            *(logged.videos, logged.top1, logged.mean_class),
        )
        logits = torch.from_numpy(predictions.predictions.logits["rgb"]).double()
        targets = torch.from_numpy(predictions.predictions.targets)
        expected = nn.functional.cross_entropy(logits, targets).item()
        assert logged.loss == pytest.approx(expected, rel=1e-12)
    best = max(column(folder, "top1", "validation.csv"))
    assert outcome.best.top1 == best
    model = i3d.load(folder / "best.safetensors")
    assert model.classes == CLASSES and model.preset == PRESET and model.source


def test_the_loss_of_certain_mistakes_is_finite():
    logits = np.array([[0, 2000], [1, 2]], np.float32)
    expected = nn.functional.cross_entropy(torch.tensor(logits), torch.tensor([0, 1])).item()
    assert cross_entropy(logits, np.array([0, 1])) == pytest.approx(expected)


def test_of_equal_validations_the_earlier_is_the_best(run, val, monkeypatch):
    def row(epoch, top1):
        return ValidationRow(epoch, epoch, 9, 0, 1.0, top1, 1.0, top1)

    assert History(validation=[row(1, 0.2), row(2, 0.5), row(3, 0.5)]).best.epoch == 2
    assert History().best is None
    written = []
    write = Loop._write_network

    def noted(self, what, name):
        written.append((name, self.step))
        write(self, what, name)

    monkeypatch.setattr(Loop, "_write_network", noted)
    outcome, folder = run(val=val, epochs=4)
    top1 = column(folder, "top1", "validation.csv")
    steps = column(folder, "step", "validation.csv")
    improved = [int(s) for i, s in enumerate(steps) if top1[i] > max(top1[:i], default=-1)]
    assert [step for name, step in written if name == "best.safetensors"] == improved
    assert outcome.best.step == improved[-1]


def test_validation_now_and_then(run, val):
    _, folder = run(val=val, epochs=5, val_every=2)
    assert [row["epoch"] for row in rows(folder, "validation.csv")] == [2, 4, 5]
