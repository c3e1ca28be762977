"""Small shards to train on, `i3d train` as a launcher starts it, and what a run left."""

import csv
import os
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from support.bundles import small_model
from support.shards import spool

import i3d
from i3d.classes import ClassList
from i3d.data.shards import (
    Manifest,
    PlannedSample,
    finish_folder,
    plan_shards,
    write_manifest,
    write_shard,
)
from i3d.data.shards.pictures import encode_flow, encode_rgb
from i3d.tasks.train import TrainOptions
from i3d.tasks.train.state import read_state

PRESET = "kinetics-i3d-48"
CROP = 42
HEIGHT, WIDTH = 48, 60
CLASSES = ("archery", "bowling", "clapping")

QUICK = TrainOptions(
    width=0.125,
    frames=16,
    batch_size=4,
    epochs=2,
    learning_rate=0.002,
    log_steps=1,
    workers=0,
    device="cpu",
)


def video(key, label, frames):
    """A class is a colour for RGB and a direction for flow, under a texture of the video's own."""
    rng = np.random.default_rng(list(key.encode()))
    texture = cv2.GaussianBlur(rng.integers(0, 160, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 1.5)
    texture[..., label] += 90
    rgb = np.stack([np.roll(texture, i, axis=1) for i in range(frames)])
    flow = rng.integers(118, 139, (max(frames - 1, 0), HEIGHT, WIDTH, 2), np.uint8)
    flow[..., 1] += np.uint8([0, 60, 196][label])  # still, down, up (196 is -60)
    return rgb, flow


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


def assert_same_run(one, other):
    names = "log.csv", "validation.csv", "last.safetensors", "best.safetensors", "state.pt"
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    mine, theirs = read_state(one), read_state(other)
    assert mine["position"] == theirs["position"]
    equal(mine["network"], theirs["network"])
    for mine_of, theirs_of in zip(
        mine["optimizer"]["state"].values(), theirs["optimizer"]["state"].values(), strict=True
    ):
        assert torch.equal(mine_of["momentum_buffer"], theirs_of["momentum_buffer"])


def checkpoint(folder, name="start", **changes):
    """A network with the statistics of a trained one."""
    options = {"num_classes": 3, "classes": CLASSES, "preset": PRESET} | changes
    path = folder / f"{name}.safetensors"
    i3d.save(small_model(1, **options), path)
    return path


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
