"""What is trained: its optimizer's groups, what is frozen, the average."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.bundles import small_model
from support.training import checkpoint, column, equal, weights
from torch.optim.swa_utils import AveragedModel

from i3d.models.i3d import TABLE
from i3d.tasks.train.state import read_state
from i3d.tasks.train.trainee import (
    Average,
    freeze,
    make_optimizer,
    set_learning_rate,
    training_mode,
)


def test_only_filters_decay_and_a_new_head_learns_faster():
    model = small_model().train()
    freeze(model, "Mixed_4b")
    optimizer = make_optimizer(model, momentum=None, weight_decay=0.05, head_factor=10.0)
    assert isinstance(optimizer, torch.optim.AdamW)
    set_learning_rate(optimizer, 1e-3)
    of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in of
            continue
        group = of[id(parameter)]
        head = name.startswith("Logits")
        assert group["weight_decay"] == (0.05 if parameter.ndim == 5 else 0)
        assert group["lr"] == pytest.approx(1e-2 if head else 1e-3)


def test_what_is_frozen_stays(run, tmp_path):
    init = checkpoint(tmp_path)
    _, folder = run(init=str(init), freeze="Mixed_4c", steps=2, epochs=None)
    before, after = load_file(init), weights(folder)
    rows_frozen = [name for name, _ in TABLE][: [name for name, _ in TABLE].index("Mixed_4c") + 1]
    for name, tensor in before.items():
        if name.endswith("num_batches_tracked"):
            continue
        frozen = name.split(".")[0] in rows_frozen
        assert torch.equal(tensor, after[name]) == frozen, name
    model = small_model()
    training_mode(model, freeze(model, "Mixed_4c"))
    assert not model.Mixed_4c.training and model.Mixed_4d.training


def test_the_average_is_torchs(run):
    """AveragedModel with TensorFlow's rising decay."""
    torch.manual_seed(0)
    model = small_model().train()

    def tensorflow(averages, values, count):
        n = int(count) - 1  # it counts the copy at the start
        decay = min(0.6, (1 + n) / (10 + n))
        for average, value in zip(averages, values, strict=True):
            average.copy_(decay * average + (1 - decay) * value)

    theirs = AveragedModel(model, multi_avg_fn=tensorflow, use_buffers=True)
    theirs.update_parameters(model)
    ours = Average(model, 0.6)
    for n in range(20):
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor))
            assert name in ours.tensors
        ours.update(model, n)
        theirs.update_parameters(model)
    for name, tensor in theirs.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(ours.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_average_is_what_is_kept(run, val):
    _, plain = run("plain", val=val)
    _, averaged = run("averaged", val=val, ema=0.9)
    np.testing.assert_array_equal(column(plain, "loss"), column(averaged, "loss"))
    state = read_state(averaged)
    equal(weights(averaged), {k: v.contiguous() for k, v in state["average"].items()})
    equal(weights(plain), {k: v.contiguous() for k, v in state["network"].items()})
    assert not torch.equal(
        weights(plain)["Mixed_5c.Branch_0.Conv3d_0a_1x1.conv.weight"],
        weights(averaged)["Mixed_5c.Branch_0.Conv3d_0a_1x1.conv.weight"],
    )
