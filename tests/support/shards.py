"""A small plan, and shards whose pictures depend on their keys alone."""

import io

import numpy as np
import simplejpeg

from i3d.classes import ClassList
from i3d.data.shards import (
    Manifest,
    PictureWriter,
    PlannedSample,
    finish_folder,
    plan_shards,
    write_manifest,
    write_shard,
)
from i3d.data.shards.pictures import encode_flow, encode_rgb

CLASSES = ClassList("sports", ("abseiling", "archery", "arm wrestling"))
KEYS = [
    "abseiling/a b_000001_000011",
    "archery/日本 (1)",
    "archery/%E6%97%A5%2Emp4",
    "arm wrestling/" + "x" * 200,  # a pax header
    "arm wrestling/'quoted' ~",
    "unlabelled",
]
HEIGHT, WIDTH = 12, 16


def plan(keys=KEYS, *, clips_per_shard=2, **changes):
    samples = [
        PlannedSample(key, f"{key}.mp4", None if key == "unlabelled" else i % 3)
        for i, key in enumerate(keys)
    ]
    settings = {
        "dataset": "val",
        "classes": CLASSES,
        "preset": "kinetics-i3d",
        "streams": ("rgb", "flow"),
        "parameters": {
            "rgb_coding": "jpeg",
            "quality": 95,
            "bound": 20.0,
            "trim": False,
            "x": None,
        },
        "versions": {"simplejpeg": "1.9.0"},
        "shards": plan_shards(samples, clips_per_shard=clips_per_shard),
    }
    return Manifest(**{**settings, **changes})


def video(key, *, frames=4):
    """Frames and stored flow that depend on the key alone."""
    random = np.random.default_rng(list(key.encode()))
    rgb = random.integers(0, 256, (frames, HEIGHT, WIDTH, 3), np.uint8)
    flow = random.integers(1, 256, (frames - 1, HEIGHT, WIDTH, 2), np.uint8)
    return rgb, flow


def spool(pictures):
    writer = PictureWriter(io.BytesIO())
    for picture in pictures:
        writer.add(picture)
    return writer.pictures, writer.file


def add(writer, key):
    rgb, flow = (spool(pictures) for pictures in encoded(key))
    return writer.add(key, rgb=rgb, flow=flow, height=HEIGHT, width=WIDTH)


def encoded(key):
    rgb, flow = video(key)
    return [encode_rgb(x) for x in rgb], [encode_flow(x) for x in flow]


def write_folder(folder, manifest=None, *, failed=()):
    manifest = manifest or plan()
    write_manifest(folder, manifest)
    for shard, samples in enumerate(manifest.shards):
        with write_shard(folder, manifest, shard) as writer:
            for sample in samples:
                if sample.key in failed:
                    writer.fail(sample.key, "no\nvideo stream")
                else:
                    add(writer, sample.key)
    assert finish_folder(folder, manifest)
    return manifest


def read_all(folder):
    """What the files of a local folder hold."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_sample(sample):
    rgb, flow = video(sample.key)
    assert np.array_equal(sample.stored_flow(), flow)
    jpegs = [encode_rgb(frame) for frame in rgb]
    assert list(sample.rgb) == jpegs
    assert np.array_equal(
        sample.frames(), [simplejpeg.decode_jpeg(jpeg, fastupsample=False) for jpeg in jpegs]
    )
