"""Training: the same curve however it is divided, killed and resumed; each part against another.

Curves of two runs can be compared to the digit because tests use one thread: with a given number of
threads PyTorch's CPU kernels are deterministic.
"""

import csv
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bundles import small_model
from support.googlenet import googlenet
from torch import nn
from torch.optim.swa_utils import AveragedModel

import i3d
from i3d import files
from i3d.classes import ClassList
from i3d.cli import main
from i3d.clips import Views, flow_clip, quantize_flow, rgb_clip
from i3d.data.reading.random_clips import (
    Cut,
    Order,
    keep_masks,
    load_batches,
    mirror,
    open_training_set,
    read_clip,
    to_clips,
)
from i3d.data.shards import (
    Manifest,
    PictureWriter,
    PlannedSample,
    finish_folder,
    open_dataset,
    plan_shards,
    write_manifest,
    write_shard,
)
from i3d.data.shards.pictures import encode_flow, encode_rgb
from i3d.errors import CheckpointError, DatasetError, I3DError, UsageError
from i3d.models.i3d import TABLE
from i3d.tasks.evaluate import logits as evaluation
from i3d.tasks.train import loop as train_loop
from i3d.tasks.train.batch_norm import statistics_momentum
from i3d.tasks.train.loop import cross_entropy
from i3d.tasks.train.recipe import Options, Schedule, make_optimizer, set_learning_rate
from i3d.tasks.train.run import train
from i3d.tasks.train.start import Average, freeze, training_mode
from i3d.tasks.train.state import History, ValidationRow, read_state

PRESET = "kinetics-i3d-48"
CROP = 42
HEIGHT, WIDTH = 48, 60
CLASSES = ("archery", "bowling", "clapping")
QUICK = Options(
    width=0.125,
    frames=16,
    batch_size=4,
    epochs=2,
    learning_rate=0.002,
    log_steps=1,
    workers=0,
    device="cpu",
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """The curves take longer to draw than to compute here; `test_the_curves_are_drawn` does."""
    monkeypatch.setattr("i3d.tasks.train.run._plot", lambda *_: None)


# --- small shards, written directly ---------------------------------------------------------------


def video(key, label, frames):
    """A class is a colour for RGB and a direction for flow, under a texture of the video's own."""
    rng = np.random.default_rng(list(key.encode()))
    texture = cv2.GaussianBlur(rng.integers(0, 160, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 1.5)
    texture[..., label] += 90
    rgb = np.stack([np.roll(texture, i, axis=1) for i in range(frames)])
    flow = rng.integers(118, 139, (max(frames - 1, 0), HEIGHT, WIDTH, 2), np.uint8)
    flow[..., 1] += np.uint8([0, 60, 196][label])  # still, down, up (196 is -60)
    return rgb, flow


def spool(pictures):
    writer = PictureWriter(io.BytesIO())
    for picture in pictures:
        writer.add(picture)
    return writer.pictures, writer.file


def write_shards(
    folder, lengths, *, classes=CLASSES, preset=PRESET, failed=(), unlabelled=(), streams=2
):
    """Shards of videos ``CLASS/NUMBER`` with so many frames."""
    labels = {f"{CLASSES[i % 3]}/{i:02d}": (i % 3, n) for i, n in enumerate(lengths)}
    samples = [
        PlannedSample(key, f"{key}.mp4", None if key in unlabelled else label)
        for key, (label, _) in labels.items()
    ]
    manifest = Manifest(
        dataset="toy",
        classes=None if classes is None else ClassList("toy", tuple(classes)),
        preset=preset,
        streams=("rgb", "flow")[:streams],
        parameters={"rgb_coding": "jpeg"},
        versions={"simplejpeg": "1"},
        shards=plan_shards(samples, clips_per_shard=5),
    )
    write_manifest(folder, manifest)
    for shard, planned in enumerate(manifest.shards):
        with write_shard(folder, manifest, shard) as writer:
            for sample in planned:
                if sample.key in failed:
                    writer.fail(sample.key, "no video stream")
                    continue
                rgb, flow = video(sample.key, *labels[sample.key])
                writer.add(
                    sample.key,
                    rgb=spool(encode_rgb(frame) for frame in rgb),
                    flow=spool(encode_flow(frame) for frame in flow) if streams == 2 else None,
                    height=HEIGHT,
                    width=WIDTH,
                )
    assert finish_folder(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Thirteen videos of 4 to 40 frames, in three shards."""
    folder = tmp_path_factory.mktemp("train")
    return write_shards(folder, [4, 40, 12, *(10 + i for i in range(10))])


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("val"), [20, 21, 22, 23, 24, 25, 12, 13, 30])


@pytest.fixture
def run(shards, tmp_path):
    """Function: changed options -> (outcome, folder of the run)."""

    def run(name="run", *, stream="rgb", init="scratch", val=None, data=shards, **changes):
        options = replace(QUICK, **({"width": None} if init != "scratch" else {}), **changes)
        output = tmp_path / name
        return train(
            data, stream=stream, output=output, init=init, val=val, options=options
        ), output

    return run


def rows(folder, name="log.csv"):
    with (folder / name).open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def column(folder, name, table="log.csv"):
    return np.array([row[name] for row in rows(folder, table)])


def weights(folder, name="last.safetensors"):
    return load_file(folder / name)


def equal(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        if tolerance and one[name].is_floating_point():
            torch.testing.assert_close(one[name], other[name], msg=name, **tolerance)
        else:
            assert torch.equal(one[name], other[name]), name


# --- which clips, and how they are cut ------------------------------------------------------------


def test_processes_and_micro_batches_take_parts_of_one_order():
    whole = Order(23, batch_size=8, seed=5)
    for batch, accumulate, size in ((4, 1, 2), (2, 1, 4), (4, 2, 1), (2, 2, 2), (1, 8, 1)):
        for step in range(5):
            epoch, expected = whole.batch(step)
            parts = []
            for micro in range(accumulate):
                for rank in range(size):
                    order = Order(23, batch, accumulate, rank, size, seed=5)
                    assert order.clips_per_step == 8 and order.steps_per_epoch == 2
                    found, part = order.batch(step * accumulate + micro)
                    assert found == epoch == order.epoch_of(step) == step // 2
                    parts.append(part)
            np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_an_epoch_has_every_video_once_and_epochs_differ():
    orders = [Order(24, batch_size=8, seed=seed) for seed in (0, 0, 1)]
    epochs = [
        [np.concatenate([o.batch(3 * e + s)[1] for s in range(3)]) for e in (0, 1)] for o in orders
    ]
    for epoch in (e for of_order in epochs for e in of_order):
        assert sorted(epoch) == list(range(24))
    np.testing.assert_array_equal(epochs[0], epochs[1])
    different = [epochs[0][0], epochs[0][1], epochs[2][0]]
    assert len({tuple(e) for e in different}) == 3


def test_a_set_smaller_than_a_step():
    with pytest.raises(UsageError, match=r"24 clips \(batch 4 x accumulate 2 x 3 .*23 videos"):
        Order(23, batch_size=4, accumulate=2, processes=3)


def clips_of(shards, stream="rgb", *, workers=0, frames=12, order=None, first=0, stop=4):
    data = open_training_set(shards, stream)
    order = order or Order(len(data), batch_size=4, seed=7)
    batches = load_batches(
        data, order, first=first, stop=stop, frames=frames, workers=workers, flip=True
    )
    return [batch.numpy() for batch in batches]


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_clips_do_not_depend_on_workers_processes_or_where_one_begins(shards, stream):
    expected = clips_of(shards, stream)
    assert all(
        batch.shape == (4, 12, CROP, CROP, 3 if stream == "rgb" else 2) for batch in expected
    )
    for batch, again in zip(expected, clips_of(shards, stream, workers=2), strict=True):
        np.testing.assert_array_equal(batch, again)
    for batch, again in zip(expected[2:], clips_of(shards, stream, first=2), strict=True):
        np.testing.assert_array_equal(batch, again)
    ranks = [
        clips_of(shards, stream, order=Order(13, batch_size=2, rank=rank, processes=2, seed=7))
        for rank in range(2)
    ]
    for batch, *parts in zip(expected, *ranks, strict=True):
        np.testing.assert_array_equal(batch, np.concatenate(parts))
    # and the next epoch cuts them otherwise: three steps are an epoch here
    assert not any(np.array_equal(expected[0][0], clip) for clip in expected[3])


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_a_clip_is_that_part_of_its_video(shards, stream):
    """cv2 decodes the stored pictures, NumPy cuts, loops and mirrors them."""
    dataset = open_dataset(shards)
    seen = set()
    for sample in dataset.stream():
        for epoch in range(6):
            key = (3, epoch, 0)
            ours = read_clip(dataset, sample.key, stream, key, frames=14, crop=CROP)
            cut = Cut.draw(sample.info, stream, key, frames=14, crop=CROP, flip=True)
            seen.add((cut.mirrored, cut.start > 0, len(sample.info.pictures(stream)) < 14))
            pictures = sample.rgb if stream == "rgb" else sample.flow
            flag = cv2.IMREAD_COLOR_RGB if stream == "rgb" else cv2.IMREAD_GRAYSCALE
            decoded = [cv2.imdecode(np.frombuffer(p, np.uint8), flag) for p in pictures]
            if stream == "flow":
                decoded = [np.stack([p[:HEIGHT], p[HEIGHT:]], -1) for p in decoded]
            part = np.stack(decoded).astype(int)[cut.start : cut.start + 14]
            part = part[:, cut.top : cut.top + CROP, cut.left : cut.left + CROP]
            if cut.mirrored:
                part = part[:, :, ::-1].copy()
                if stream == "flow":
                    part[..., 0] = 128 - (part[..., 0] - 128)
            looped = part[np.arange(14) % len(part)]
            # The decoders' roundings of colour differ by a level here and there.
            assert np.abs(ours - looped).max() <= (0 if stream == "flow" else 2)
    assert {(True, True, False), (False, False, True), (True, False, True)} <= seen


def test_every_place_corner_and_side_is_as_likely(shards):
    info = next(s.info for s in open_dataset(shards).stream() if len(s.info.rgb) == 40)
    cuts = [
        Cut.draw(info, "rgb", (0, epoch, 5), frames=32, crop=CROP, flip=True)
        for epoch in range(3000)
    ]
    for name, most in (("start", 8), ("top", 6), ("left", 18), ("mirrored", 1)):
        counts = np.bincount([int(getattr(cut, name)) for cut in cuts], minlength=most + 1)
        assert len(counts) == most + 1
        expected = 3000 / len(counts)
        assert (np.abs(counts - expected) < 5 * expected**0.5).all(), name
    pairs = {(cut.start, cut.mirrored) for cut in cuts}
    assert len(pairs) == 18  # they do not go together
    assert not any(
        Cut.draw(info, "rgb", (0, e, 5), frames=9, crop=CROP, flip=False).mirrored
        for e in range(50)
    )


def test_mirrored_flow_is_the_flow_of_the_mirrored_video():
    """OpenCV's TV-L1 on mirrored frames."""
    rng = np.random.default_rng(0)
    pattern = cv2.GaussianBlur(rng.integers(0, 256, (96, 128), np.uint8), (0, 0), 2)
    pattern = cv2.normalize(pattern, None, 0, 255, cv2.NORM_MINMAX)
    frames = [np.roll(pattern, (i, 3 * i), (0, 1)) for i in range(2)]
    calc = cv2.optflow.DualTVL1OpticalFlow_create().calc
    flow = quantize_flow(calc(*frames, None)[None])
    of_mirrored = quantize_flow(calc(*(f[:, ::-1].copy() for f in frames), None)[None])
    inside = (slice(None), slice(16, -16), slice(16, -16))

    def distance(x):
        return np.abs(x[inside].astype(int) - of_mirrored[inside]).mean()

    assert distance(mirror(flow, "flow")) < 0.5  # measured 0.03 steps of 0.157 pixels
    assert distance(mirror(flow, "rgb")) > 10  # without the sign
    every = np.arange(1, 256, dtype=np.uint8).reshape(1, 1, 255, 1).repeat(2, -1)
    mirrored = mirror(every, "flow")
    np.testing.assert_array_equal(mirrored[0, 0, ::-1, 0], 256 - every[0, 0, :, 0].astype(int))
    np.testing.assert_array_equal(mirrored[0, 0, ::-1, 1], every[0, 0, :, 1])
    assert (
        flow_clip(mirrored, crop=1)[0, 0, 0, 0]
        == -flow_clip(every[:, :, 127:128], crop=1)[0, 0, 0, 0]
        == 0
    )


@pytest.mark.parametrize(("stream", "channels"), [("rgb", 3), ("flow", 2)])
def test_pixels_are_scaled_as_for_evaluation(stream, channels):
    pixels = torch.randint(1, 256, (2, 9, CROP, CROP, channels), dtype=torch.uint8)
    clips = to_clips(pixels, stream)
    to_clip = rgb_clip if stream == "rgb" else flow_clip
    assert torch.equal(clips, torch.stack([to_clip(p, crop=CROP) for p in pixels]))
    assert clips.is_contiguous(memory_format=torch.channels_last_3d)


def test_dropout_belongs_to_the_clip():
    masks = keep_masks((64, 7), drop=0.25, seed=1, epoch=2, places=np.arange(50))
    assert masks.shape == (50, 64, 7) and masks.dtype == torch.float32
    assert set(masks.unique().tolist()) == {0, np.float32(1 / 0.75)}
    dropped = (masks == 0).float().mean().item()
    assert abs(dropped - 0.25) < 5 * (0.25 * 0.75 / masks.numel()) ** 0.5
    some = keep_masks((64, 7), drop=0.25, seed=1, epoch=2, places=np.array([30, 4]))
    assert torch.equal(some, masks[[30, 4]])
    other = keep_masks((64, 7), drop=0.25, seed=1, epoch=3, places=np.array([30, 4]))
    assert 0.55 < (some == other).float().mean() < 0.7  # 0.625 of independent ones


def test_videos_that_cannot_be_used_are_counted(tmp_path):
    folder = write_shards(
        tmp_path / "shards",
        [9] * 8 + [1],
        failed=["archery/00", "bowling/04"],
        unlabelled=["bowling/01", "clapping/02", "archery/03"],
    )
    data = open_training_set(folder, "flow")
    assert (len(data), data.unlabelled, data.failed, data.without_flow) == (3, 3, 2, 1)
    assert len(open_training_set(folder, "rgb")) == 4
    planned = list(data.dataset.manifest.samples())
    assert [planned[i].key for i in data.places] == list(data.keys)
    assert [CLASSES[i] for i in data.labels] == [key.partition("/")[0] for key in data.keys]
    assert "3 of 9 videos" in str(data) and "2 failed in precompute" in str(data)


# --- the recipes ----------------------------------------------------------------------------------


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
    assert Options().schedule("rgb", steps_per_epoch=10).total_steps == 115_000
    assert Options().schedule("flow", steps_per_epoch=10).total_steps == 155_000


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


def test_numbers_of_the_recipes():
    original, finetune = Options().chosen_recipe(), Options(recipe="finetune").chosen_recipe()
    assert (original.learning_rate, original.weight_decay, original.momentum) == (0.1, 1e-7, 0.9)
    assert original.batch_size * 64 == 384
    assert (finetune.learning_rate, finetune.weight_decay, finetune.momentum) == (1e-4, 0.05, None)
    assert Options(recipe="finetune", epochs=10).schedule("rgb", steps_per_epoch=20) == Schedule(
        "finetune", "rgb", 200, 10
    )
    changed = Options(learning_rate=0.5, momentum=0.8, weight_decay=0.0).chosen_recipe()
    assert (changed.learning_rate, changed.momentum, changed.weight_decay) == (0.5, 0.8, 0)


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


def test_statistics_window_grows_to_the_originals():
    found = [statistics_momentum(s) for s in (0, 1, 99, 100, 400, 1600, 6400, 115_000)]
    assert found == pytest.approx([1, 0.3, 0.3, 0.1, 0.025, 0.00625, 0.001, 0.001])
    assert statistics_momentum(7, 0.3) == 0.3


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
        Options(**wrong)


# --- a run ----------------------------------------------------------------------------------------


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
                        crop=CROP,
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


LEARNING = {"epochs": 20, "batch_size": 12, "learning_rate": 0.01, "dropout": 0.0, "val_every": 99}


@pytest.mark.parametrize(("stream", "recipe"), [("rgb", "original"), ("flow", "finetune")])
def test_it_learns(run, val, stream, recipe):
    """Classes that differ clearly: the loss falls, and all is right at the end."""
    outcome, folder = run(stream=stream, val=val, recipe=recipe, **LEARNING)
    loss = column(folder, "loss")
    assert loss[0] > 0.8 and loss[-1] < 0.2, loss
    assert outcome.log.top1 == 1
    assert outcome.validation.top1 == 1 and outcome.validation.videos == 9


def test_the_curves_are_drawn(run, val, monkeypatch):
    monkeypatch.undo()
    _, folder = run(val=val)
    picture = cv2.imread(str(folder / "curves.png"))
    assert picture.shape[1] > 600 and picture.std() > 5


def test_validation_is_evaluate(run, val):
    """`i3d evaluate` on what was kept gives what the run logged."""
    outcome, folder = run(val=val, epochs=3, val_frames=12)
    assert [row["epoch"] for row in rows(folder, "validation.csv")] == [1, 2, 3]
    options = evaluation.Options(views=Views(frames=12), workers=0, device="cpu")
    for name, logged in (("last", outcome.validation), ("best", outcome.best)):
        path = folder / f"{name}.safetensors"
        predictions = evaluation.evaluate(val, {"rgb": path}, options=options).evaluation
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
    write = train_loop.Run._write_network

    def noted(self, what, name):
        written.append((name, self.step))
        write(self, what, name)

    monkeypatch.setattr(train_loop.Run, "_write_network", noted)
    outcome, folder = run(val=val, epochs=4)
    top1 = column(folder, "top1", "validation.csv")
    steps = column(folder, "step", "validation.csv")
    improved = [int(s) for i, s in enumerate(steps) if top1[i] > max(top1[:i], default=-1)]
    assert [step for name, step in written if name == "best.safetensors"] == improved
    assert outcome.best.step == improved[-1]


def test_validation_now_and_then(run, val):
    _, folder = run(val=val, epochs=5, val_every=2)
    assert [row["epoch"] for row in rows(folder, "validation.csv")] == [2, 4, 5]


def test_tensorboard_has_the_log(run, val):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    _, folder = run(val=val)
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    loss = {e.step: e.value for e in events.Scalars("train/loss")}
    assert loss == {r["step"]: pytest.approx(r["loss"], rel=1e-6) for r in rows(folder)}
    top1 = {e.step: e.value for e in events.Scalars("validation/top1")}
    assert top1 == {r["step"]: pytest.approx(r["top1"]) for r in rows(folder, "validation.csv")}


def test_rows_are_means_over_their_steps(run):
    _, each = run("each")
    _, some = run("some", log_steps=2)
    steps = column(some, "step")
    assert steps.tolist() == [2, 3, 4, 6]  # an epoch of three steps ends a row
    for name in ("loss", "top1"):
        one = column(each, name)
        joined = [one[:2].mean(), one[2], one[3], one[4:].mean()]
        np.testing.assert_allclose(column(some, name), joined, rtol=1e-12)
    equal(weights(each), weights(some))


# --- variations -----------------------------------------------------------------------------------


def checkpoint(folder, name="start", **changes):
    """A network with the statistics of a trained one."""
    options = {"num_classes": 3, "classes": CLASSES, "preset": PRESET} | changes
    path = folder / f"{name}.safetensors"
    i3d.save(small_model(1, **options), path)
    return path


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


def test_an_old_head_stays_and_a_new_one_begins(run, tmp_path, capsys):
    name = "Logits.Conv3d_0c_1x1.weight"

    def notes(init):
        _, folder = run(
            f"from-{init.stem}", init=str(init), steps=1, epochs=None, learning_rate=1e-9
        )
        return weights(folder)[name], i3d.load(folder / "last.safetensors")

    same = checkpoint(tmp_path, "same")
    kept, model = notes(same)
    torch.testing.assert_close(kept, load_file(same)[name], rtol=0, atol=1e-6)
    assert model.classes == CLASSES and "start" not in model.source
    other = checkpoint(tmp_path, "other", classes="kinetics400", num_classes=400)
    replaced, model = notes(other)
    assert replaced.shape[0] == 3 and model.classes == CLASSES
    trunk = "Mixed_4b.Branch_0.Conv3d_0a_1x1.conv.weight"
    torch.testing.assert_close(
        model.get_submodule("Mixed_4b.Branch_0.Conv3d_0a_1x1").conv.weight.shape,
        load_file(other)[trunk].shape,
    )
    renamed = checkpoint(tmp_path, "renamed", classes=("archery", "clapping", "bowling"))
    assert not torch.allclose(notes(renamed)[0], load_file(renamed)[name])
    unnamed = checkpoint(tmp_path, "unnamed", classes=None)
    torch.testing.assert_close(notes(unnamed)[0], load_file(unnamed)[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("classes", "kept"), [(3, True), (5, False)])
def test_inflated_weights_begin_a_run(shards, tmp_path, capsys, classes, kept):
    state = googlenet(classes=classes)
    save_file(state, tmp_path / "google.safetensors")
    options = replace(QUICK, width=None, steps=1, epochs=None, learning_rate=1e-9)
    for stream in ("rgb", "flow"):
        init = f"inflate:{tmp_path / 'google.safetensors'}"
        train(
            shards,
            stream=stream,
            output=tmp_path / stream,
            init=init,
            options=options,
            progress=True,
        )
        said = capsys.readouterr().err
        assert ("with its classifier" if kept else "is replaced by a new one") in said
        tensors = weights(tmp_path / stream)
        middle = tensors["Conv3d_2c_3x3.conv.weight"][:, :, 1]
        scaled = state["conv3.conv.weight"] * state["conv3.bn.weight"].view(-1, 1, 1, 1)
        torch.testing.assert_close(middle * 3, scaled, rtol=1e-4, atol=1e-5)
        head = tensors["Logits.Conv3d_0c_1x1.bias"]
        assert torch.allclose(head, state["fc.bias"][:3], atol=1e-5) == kept


# --- killed, stopped and resumed ------------------------------------------------------------------


def command(shards, output, *options, **changes):
    settings = {
        "stream": "rgb", "output": output, "width": 0.125, "frames": 16, "batch-size": 4,
        "learning-rate": 0.002, "log-steps": 1, "workers": 0, "device": "cpu",
    } | {name.replace("_", "-"): value for name, value in changes.items()}  # fmt: skip
    words = [str(x) for name, value in settings.items() for x in (f"--{name}", value)]
    return [sys.executable, "-m", "i3d", "train", str(shards), *words, *options]


def started(arguments, size=1):
    """As a launcher starts ``size`` processes, with a thread each."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    world = {"OMP_NUM_THREADS": "1"}
    if size > 1:
        world |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            arguments,
            env=os.environ | world | ({"RANK": str(rank)} if size > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def finished(processes, code=0):
    texts = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), texts
    return texts


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def lines(path):
    return len(path.read_bytes().splitlines()) if path.exists() else 0


FULL = {"epochs": 8, "save_steps": 2, "ema": 0.9}


@pytest.fixture(scope="module")
def undisturbed(shards, val, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    torch.set_num_threads(1)
    train(shards, stream="rgb", output=output, val=val, options=replace(QUICK, **FULL))
    return output


def assert_same_run(one, other):
    for name in ("log.csv", "validation.csv", "last.safetensors", "best.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    mine, theirs = read_state(one), read_state(other)
    assert mine["position"] == theirs["position"]
    equal(mine["network"], theirs["network"])
    for mine_of, theirs_of in zip(
        mine["optimizer"]["state"].values(), theirs["optimizer"]["state"].values(), strict=True
    ):
        assert torch.equal(mine_of["momentum_buffer"], theirs_of["momentum_buffer"])


def kill_and_resume(shards, val, output, moments):
    """Kill the command where the log has so many rows, again and again; then let it finish."""
    arguments = command(shards, output, "--resume", "--val", str(val), **(FULL | {"workers": 1}))
    for wanted in moments:
        (process,) = started(arguments)
        wait_for(lambda: lines(output / "log.csv") > wanted or process.poll() is not None)  # noqa: B023
        time.sleep(random.random() * 0.1)
        process.kill()
        _, error = process.communicate()
        assert process.returncode == -signal.SIGKILL, error
    ((_, error),) = finished(started(arguments))
    assert "going on after step" in error and "to the digit" in error
    assert not [p.name for p in output.iterdir() if p.name.endswith(".tmp")]


def test_kill_9_and_resume_gives_the_same_bytes(shards, val, undisturbed, tmp_path):
    """Also in another process than the undisturbed run's, and with a worker that reads ahead."""
    moment = random.randint(3, 19)
    kill_and_resume(shards, val, tmp_path / "run", [moment])
    assert_same_run(undisturbed, tmp_path / "run")


@pytest.mark.slow
def test_many_kills(shards, val, undisturbed, tmp_path):
    moments = sorted(random.choices(range(1, 22), k=10))
    kill_and_resume(shards, val, tmp_path / "run", moments)
    assert_same_run(undisturbed, tmp_path / "run")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_step_and_saves(
    shards, val, undisturbed, tmp_path, capsys, monkeypatch, sent
):
    output = tmp_path / "run"
    forward = train_loop.Run._forward_and_backward
    arguments = command(shards, output, "--val", str(val), **(FULL | {"save_steps": 1000}))[3:]

    def interrupted(self, *batch):
        if self.step == 10:
            os.kill(os.getpid(), sent)
        return forward(self, *batch)

    before = signal.getsignal(sent)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as done:
        patch.setattr(train_loop.Run, "_forward_and_backward", interrupted)
        main(arguments)
    error = capsys.readouterr().err
    assert done.value.code == 130 and "stopped after step 11, which is saved" in error
    assert signal.getsignal(sent) == before
    assert read_state(output)["position"] == {"step": 11, "epoch": 3, "step_in_epoch": 2}
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--resume"])
    assert done.value.code == 0
    # save_steps may differ, and is no part of the outcome
    for name in ("log.csv", "validation.csv", "last.safetensors", "best.safetensors"):
        assert (output / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_a_kill_before_the_validation_is_over(run, shards, val, tmp_path, monkeypatch):
    _, whole = run("whole", val=val)
    evaluate = evaluation.evaluate
    calls = []

    def killed_in_the_second(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError
        return evaluate(*arguments, **options)

    monkeypatch.setattr(evaluation, "evaluate", killed_in_the_second)
    with pytest.raises(MemoryError):
        run("broken", val=val)
    options = {"stream": "rgb", "output": tmp_path / "broken", "val": val, "options": QUICK}
    train(shards, resume=True, **options)
    assert len(calls) == 3
    assert_same_run(whole, tmp_path / "broken")
    # and once more: there is nothing left to do
    outcome = train(shards, resume=True, **options)
    assert len(calls) == 3 and outcome.steps == 6 and outcome.clips_per_second == 0
    assert_same_run(whole, tmp_path / "broken")


def test_other_settings_are_not_mixed_in(run, shards, val, tmp_path, capsys):
    _, folder = run(epochs=1)
    kept = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    with pytest.raises(UsageError, match=r"not empty; --resume"):
        run()

    def again(options, **changes):
        arguments = {"stream": "rgb", "output": folder, "resume": True} | changes
        return train(shards, options=options, **arguments)

    one_epoch = replace(QUICK, epochs=1)
    for options, changes, message in (
        (replace(one_epoch, learning_rate=0.5), {}, r"learning_rate: 0\.002, now 0\.5"),
        (QUICK, {}, "total_steps: 3, now 6"),
        (one_epoch, {"val": val}, "val: null, now "),
        (one_epoch, {"stream": "flow"}, 'stream: "rgb", now "flow"'),
        (replace(one_epoch, seed=1, ema=0.5), {}, r"ema: null, now 0\.5; seed: 0, now 1"),
        (replace(one_epoch, batch_size=2), {}, "clips_per_step: 4, now 2"),
    ):
        with pytest.raises(UsageError, match=message):
            again(options, **changes)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == kept
    # What only divides the work may change.
    again(
        replace(one_epoch, batch_size=2, accumulate=2, save_steps=7),
        progress=True,
    )
    assert "batch_size 4 -> 2" in capsys.readouterr().err


def test_a_damaged_state_is_one_line(run, shards, tmp_path):
    _, folder = run(epochs=1)
    path = folder / "state.pt"
    data = path.read_bytes()
    for damage in (data[: len(data) // 2], b"", b"hello"):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"state\.pt: not the state") as error:
            train(shards, stream="rgb", output=folder, options=QUICK, resume=True)
        assert len(str(error.value).splitlines()) == 1
    torch.save({"format": "else"}, path)
    with pytest.raises(CheckpointError, match="not a state"):
        train(shards, stream="rgb", output=folder, options=QUICK, resume=True)


# --- several processes ----------------------------------------------------------------------------

SYNCHRONISED = """
import torch, torch.distributed as dist
from torch import nn
from i3d.models.i3d import I3D
from i3d.tasks.train.batch_norm import synchronise
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
def network():
    torch.manual_seed(0)
    return I3D("rgb", 3, width=0.125, dropout=0.0).double().train()
torch.manual_seed(5)
x = torch.rand(4, 3, 16, 42, 42, dtype=torch.float64) * 2 - 1
y = torch.tensor([0, 1, 2, 0])
part = slice(2 * rank, 2 * rank + 2)
whole, joined, local = network(), network(), network()
nn.functional.cross_entropy(whole(x), y).backward()
synchronise(joined, dist.group.WORLD)
for model in (joined, local):
    parallel = nn.parallel.DistributedDataParallel(model)
    nn.functional.cross_entropy(parallel(x[part]), y[part]).backward()
    pairs = [(a.grad, b.grad) for a, b in zip(whole.parameters(), model.parameters())]
    pairs += list(zip(whole.buffers(), model.buffers()))
    print(max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs))
dist.destroy_process_group()
"""


def test_synchronised_batch_norm_is_batch_norm_of_the_whole_batch():
    """In float64, gradients and statistics of all layers: torch's BatchNorm in one process."""
    for out, _ in finished(started([sys.executable, "-c", SYNCHRONISED], 2)):
        joined, local = map(float, out.split())
        assert joined < 1e-9  # measured 2e-12
        assert local > 0.1  # each process on its own


def test_two_processes_train_as_one_with_twice_the_batch(shards, val, tmp_path):
    """What rounding differs by is not amplified here: few layers learn, from a trained network.

    Measured: losses differ by 1.4e-6, those of the validation by 8e-6, weights by 5e-6.
    """
    init = str(checkpoint(tmp_path))
    options = replace(QUICK, width=None, freeze="MaxPool3d_5a_2x2", learning_rate=0.01)
    train(shards, stream="rgb", output=tmp_path / "one", init=init, val=val, options=options)
    arguments = command(
        *(shards, tmp_path / "two", "--sync-batch-norm", "--val", str(val)),
        **{"batch_size": 2, "init": init, "freeze": "MaxPool3d_5a_2x2", "learning_rate": 0.01},
        epochs=2,
    )
    at = arguments.index("--width")
    del arguments[at : at + 2]
    texts = finished(started(arguments, 2))
    assert not texts[1][0] and "2 processes" in texts[0][1]
    for name in ("loss", "top1"):
        found, expected = (column(tmp_path / run, name) for run in ("two", "one"))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    found, expected = (rows(tmp_path / run, "validation.csv") for run in ("two", "one"))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == {**theirs, "loss": pytest.approx(theirs["loss"], abs=1e-4)}
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    equal(two, one, rtol=1e-4, atol=1e-4)


def test_a_process_that_dies_ends_the_job_and_resume_goes_on(shards, tmp_path, capsys, monkeypatch):
    arguments = command(shards, tmp_path / "run", "--resume", **{"batch_size": 2, "epochs": 40})
    first, second = started(arguments, 2)
    wait_for(lambda: (tmp_path / "run" / "state.pt").exists() or first.poll() is not None)
    second.kill()
    second.communicate()
    _, error = first.communicate(timeout=60)
    assert first.returncode == 1, error
    assert "lost another one" in error and "Traceback" not in error
    # One process goes on with what two began.
    step = read_state(tmp_path / "run")["position"]["step"]
    again = command(shards, tmp_path / "run", "--resume", epochs=40)[3:]

    def stop(self, *_):
        if self.step == step + 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train_loop.Run, "_show", stop)
    with pytest.raises(SystemExit) as done:
        main(again)
    error = capsys.readouterr().err
    assert done.value.code == 130 and "processes 2 -> 1" in error
    assert read_state(tmp_path / "run")["position"]["step"] > step


@pytest.mark.slow
def test_two_processes_killed_give_the_same_bytes(shards, val, tmp_path):
    options = FULL | {"batch_size": 2, "epochs": 5}
    runs = {}
    for name in ("whole", "killed"):
        flags = ("--resume", "--sync-batch-norm", "--val", str(val))
        arguments = command(shards, tmp_path / name, *flags, **options)
        if name == "killed":
            processes = started(arguments, 2)
            wait_for(lambda: lines(tmp_path / "killed" / "log.csv") > 7)
            for process in processes:
                process.kill()
                process.communicate()
        finished(started(arguments, 2))
        runs[name] = tmp_path / name
    assert_same_run(runs["whole"], runs["killed"])


# --- what is refused ------------------------------------------------------------------------------


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


def test_a_damaged_video_ends_the_run(tmp_path):
    folder = write_shards(tmp_path / "shards", [9] * 8)
    record = open_dataset(folder).index(0).samples[0]
    tar = folder / "shard-00000.tar"
    data = bytearray(tar.read_bytes())
    data[record.member("rgb.mjpeg").offset + 99] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DatasetError, match=rf"{record.key}.*CRC32C"):
        train(folder, stream="rgb", output=tmp_path / "run", options=QUICK)


def test_classes_presets_and_streams_must_agree(run, shards, tmp_path):
    def other(name, **changes):
        return write_shards(tmp_path / name, [9] * 4, **changes)

    with pytest.raises(DatasetError, match=r"labelled with 4 classes and .* with 3"):
        run(val=other("more", classes=(*CLASSES, "diving")))
    with pytest.raises(DatasetError, match=r"others \(class 1 is 'clapping' there and 'bowling'"):
        run(val=other("swapped", classes=("archery", "clapping", "bowling")))
    with pytest.raises(DatasetError, match="preset kinetics-i3d-36"):
        run(val=other("preset", preset="kinetics-i3d-36"))
    with pytest.raises(DatasetError, match="no labels"):
        keys = [f"{CLASSES[i % 3]}/{i:02d}" for i in range(4)]
        run(data=other("unlabelled", classes=None, unlabelled=keys))
    with pytest.raises(UsageError, match="made without flow"):
        run(data=other("rgb", streams=1), stream="flow")
    with pytest.raises(UsageError, match=r"a step takes 4 clips .* there are 3 videos"):
        run(data=write_shards(tmp_path / "three", [9] * 3))
    for name, changes, message in (
        ("stream", {"stream": "flow"}, "network for flow, not for rgb"),
        ("preset", {"preset": "kinetics-i3d"}, "preset kinetics-i3d, and the shards"),
    ):
        init = checkpoint(tmp_path, name, **changes)
        with pytest.raises(CheckpointError, match=message):
            run(init=str(init))
    with pytest.raises(UsageError, match="no such checkpoint"):
        run(init="no/such.npz")
    with pytest.raises(CheckpointError, match="no such file"):
        run(init="inflate:no/such.safetensors")
    with pytest.raises(UsageError, match="fp16 trains on CUDA alone"):
        run(precision="fp16")
    with pytest.raises(UsageError, match="has its own"):
        train(shards, stream="rgb", output=tmp_path / "x", init="y.npz", options=QUICK)
    assert not (tmp_path / "run").exists()


def test_the_command_line(shards, val, tmp_path, capsys):
    arguments = command(shards, tmp_path / "run", "--val", str(val), "--json", epochs=2)[3:]
    with pytest.raises(SystemExit) as done:
        main(arguments)
    output = capsys.readouterr()
    assert done.value.code == 0, output.err
    report = json.loads(output.out)
    assert (report["steps"], report["epochs"], report["clips_per_step"]) == (6, 2, 4)
    assert report["validation"]["videos"] == 9 and report["best"]["epoch"] in (1, 2)
    assert report["last_checkpoint"] == str(tmp_path / "run" / "last.safetensors")
    assert "13 of 13 videos" in output.err and "384 clips, 4 here" in output.err
    with pytest.raises(SystemExit) as done:
        main(arguments)
    output = capsys.readouterr()
    assert done.value.code == 2 and "--resume" in output.err and not output.out
    with pytest.raises(SystemExit) as done:
        main([*(word for word in arguments if word != "--json"), "--resume"])
    assert done.value.code == 0
    assert "6 steps of 4 clips" in capsys.readouterr().out


def test_a_url_for_the_run(shards, val, tmp_path, capsys):
    url = f"memory://{tmp_path.name}/run"
    options = replace(QUICK, steps=4, epochs=None)
    train(shards, stream="rgb", output=url, val=val, options=options, progress=True)
    assert "TensorBoard" in capsys.readouterr().err
    there = set(files.names_in(url))
    kept = ("state.pt", "last.safetensors", "best.safetensors", "log.csv", "validation.csv")
    assert there == set(kept)
    with pytest.raises(I3DError, match="not empty"):
        train(shards, stream="rgb", output=url, val=val, options=options)
    outcome = train(shards, stream="rgb", output=url, val=val, options=options, resume=True)
    assert outcome.steps == 4
