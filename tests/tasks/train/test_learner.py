"""A step: a plain loop of torch gives the same weights, and each option does what it says."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.training import (
    CLASSES,
    CROP,
    PRESET,
    checkpoint,
    column,
    command,
    equal,
    finished,
    started,
    weights,
)
from torch import nn

import i3d
from i3d.cli import main
from i3d.clips import rgb_clip
from i3d.data.reading.random_clips import Order, open_training_set, read_clip
from i3d.errors import UsageError
from i3d.tasks.train.state import read_state


@pytest.mark.parametrize("recipe", ["original", "finetune"])
def test_a_run_is_a_plain_loop_of_torch(run, shards, recipe):
    """SGD's or AdamW's own groups, torch's schedulers, batches by hand: the same weights."""
    rate = 0.002
    outcome, folder = run(
        recipe=recipe, steps=5, epochs=None, dropout=0.0, bn_momentum=0.01, seed=3
    )
    data = open_training_set(shards, "rgb")
    torch.manual_seed(3)
    model = i3d.I3D("rgb", classes=CLASSES, width=0.125, preset=PRESET)
    model.to(memory_format=torch.channels_last_3d).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 0.01
    named = list(model.named_parameters())
    trunk = [(n, p) for n, p in named if "Logits" not in n]
    head = [(n, p) for n, p in named if "Logits" in n]
    factor, decay = (1, 1e-7) if recipe == "original" else (10, 0.05)
    groups = [
        {
            "params": [p for n, p in part if n.endswith("weight") == filters],
            "lr": lr,
            "weight_decay": wd,
        }
        for part, lr in ((trunk, rate), (head, rate * factor))
        for filters, wd in ((True, decay), (False, 0.0))
    ]
    if recipe == "original":
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
        # 97 / 115 and 108 / 115 of five steps, rounded
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 5], 0.1)
    else:
        optimizer = torch.optim.AdamW(groups, lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)  # 5 % of 5 is none
    order = Order(len(data), batch_size=4, seed=3)
    losses = []
    for step in range(5):
        epoch, videos = order.batch(step)
        clips = torch.stack(
            [
                rgb_clip(
                    read_clip(
                        data.dataset,
                        data.keys[v],
                        "rgb",
                        (3, epoch, int(data.places[v])),
                        frames=16,
                        preset=data.preset,
                    ),
                    crop=CROP,
                )
                for v in videos
            ]
        ).to(memory_format=torch.channels_last_3d)
        logits = model.Logits(model.features(clips))
        loss = nn.functional.cross_entropy(logits, torch.tensor(data.labels[videos]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert outcome.steps == 5
    np.testing.assert_allclose(column(folder, "loss"), losses, rtol=1e-5)  # measured 0
    equal(weights(folder), model.state_dict(), rtol=1e-4, atol=1e-5)  # measured 0


def test_accumulated_gradients_are_those_of_the_whole_batch(run, tmp_path):
    """With BatchNorm out of it, which sees the micro-batches alone; dropout is the clips' own."""
    init = str(checkpoint(tmp_path))
    _, whole = run("whole", init=init, freeze="Mixed_5c", learning_rate=0.1)
    _, parts = run(
        "parts", init=init, freeze="Mixed_5c", learning_rate=0.1, batch_size=2, accumulate=2
    )
    # measured 9e-8
    np.testing.assert_allclose(column(parts, "loss"), column(whole, "loss"), rtol=1e-5)
    equal(weights(parts), weights(whole), rtol=1e-4, atol=1e-6)
    assert not torch.equal(
        weights(whole)["Logits.Conv3d_0c_1x1.weight"],
        load_file(init)["Logits.Conv3d_0c_1x1.weight"],
    )


def test_bounded_gradients_and_smooth_labels(run):
    _, plain = run("plain", steps=1, epochs=None, dropout=0.0)
    _, smooth = run("smooth", steps=1, epochs=None, dropout=0.0, label_smoothing=0.3)
    _, bounded = run("bounded", steps=1, epochs=None, dropout=0.0, clip_gradients=10.0)
    assert column(plain, "loss") == column(bounded, "loss") != column(smooth, "loss")
    norm = column(plain, "gradient_norm")[0]
    assert norm == column(bounded, "gradient_norm")[0] > 20
    torch.manual_seed(0)
    start = i3d.I3D("rgb", classes=CLASSES, width=0.125).state_dict()
    name = "Mixed_4b.Branch_1.Conv3d_0b_3x3.conv.weight"
    moved = [weights(folder)[name] - start[name] for folder in (plain, bounded)]
    torch.testing.assert_close(moved[1] * (norm / 10), moved[0], rtol=1e-2, atol=1e-5)


def test_bf16_is_near(run, tmp_path):
    init = str(checkpoint(tmp_path))
    options = {"init": init, "steps": 1, "epochs": None, "dropout": 0.0, "frames": 24}
    _, full = run("full", **options)
    _, half = run("half", precision="bf16", **options)
    difference = abs(column(full, "loss") - column(half, "loss"))[0]
    assert 0 < difference < 0.05
    start, exact, rounded = load_file(init), weights(full), weights(half)
    # In front rounding has passed through all of BatchNorm's divisions; measured: 0.43 and 0.9.
    for name, least in (
        ("Conv3d_2c_3x3.conv.weight", 0.2),
        ("Mixed_5c.Branch_1.Conv3d_0b_3x3.conv.weight", 0.75),
    ):
        moved = [(tensors[name] - start[name]).flatten() for tensors in (exact, rounded)]
        assert torch.cosine_similarity(*moved, dim=0) > least, name
    with pytest.raises(UsageError, match="more than 16 frames"):
        run("wrong", precision="bf16", **options | {"frames": 16})


@pytest.mark.slow
def test_compiled_is_the_same(run, monkeypatch):
    """The graphs that torch.compile takes, run as they are: no compiler is needed."""
    compiled = torch.compile
    calls = []

    def eager(model, **options):
        calls.append(model)
        return compiled(model, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", eager)
    _, one = run("one", epochs=1)
    _, other = run("other", epochs=1, compile=True)
    assert len(calls) == 1
    np.testing.assert_allclose(column(other, "loss"), column(one, "loss"), rtol=1e-3)


def test_a_loss_that_is_no_number_names_the_clips(run, shards, tmp_path, capsys):
    """At such a learning rate the second step's is none."""
    options = ["--save-steps", "1", "--learning-rate", "1e30", "--steps", "5"]
    arguments = command(shards, tmp_path / "run", *options)[3:]
    with pytest.raises(SystemExit) as done:
        main(arguments)
    output = capsys.readouterr()
    assert done.value.code == 1 and "Traceback" not in output.err
    message = output.err.strip().splitlines()[-1]
    data = open_training_set(shards, "rgb")
    state = read_state(tmp_path / "run")
    step = state["position"]["step"]
    _, videos = Order(len(data), batch_size=4).batch(step)
    for v in videos:
        assert data.keys[v] in message
    assert f"step {step + 1}, learning rate 1e+30" in message
    assert f"the state after step {step} stays" in message
    assert all(bool(torch.isfinite(t).all()) for t in state["network"].values())


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_all_processes(shards, tmp_path):
    options = {"learning_rate": 1e30, "batch_size": 2, "steps": 5}
    texts = finished(started(command(shards, tmp_path / "run", **options), 2), code=1)
    assert "learning rate 1e+30" in texts[0][1] and "Traceback" not in texts[0][1]
    assert "process 0 says where" in texts[1][1]
