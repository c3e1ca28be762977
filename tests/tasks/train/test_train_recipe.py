"""The learning rate's course: the authors' table, and torch's schedulers."""

import pytest
import torch
from torch import nn

from i3d.tasks.train import TrainOptions
from i3d.tasks.train.recipe import Schedule


def test_the_authors_steps():
    """The table of their description, step by step."""
    rgb = Schedule("original", "rgb", 115_000, 0)
    for step, factor in (
        *((0, 1), (96_999, 1), (97_000, 0.1), (107_999, 0.1), (108_000, 0.01), (114_999, 0.01)),
    ):
        assert rgb.factor(step) == factor
    flow = Schedule("original", "flow", 155_000, 0)
    for step, factor in (
        *((96_999, 1), (97_000, 0.1), (104_499, 0.1), (104_500, 0.01), (114_999, 0.01)),
        *((115_000, 1), (139_999, 1), (140_000, 0.1), (149_999, 0.1), (150_000, 0.01)),
    ):
        assert flow.factor(step) == factor
    short = Schedule("original", "rgb", 1150, 0)
    assert [short.factor(s) for s in (969, 970, 1079, 1080)] == [1, 0.1, 0.1, 0.01]
    assert TrainOptions().schedule("rgb", steps_per_epoch=10).total_steps == 115_000
    assert TrainOptions().schedule("flow", steps_per_epoch=10).total_steps == 155_000


def test_schedules_are_torchs():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    warmup, total = 7, 60
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup)
    theirs = torch.optim.lr_scheduler.SequentialLR(optimizer, [linear, cosine], [warmup])
    ours = Schedule("finetune", "rgb", total, warmup)
    for step in range(total):
        assert ours.factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
