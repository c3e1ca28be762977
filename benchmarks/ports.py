"""How far the answers of other ports are from the original's, one difference at a time.

    python benchmarks/ports.py CLIP... [--rgb CHECKPOINT] [--flow CHECKPOINT] [--frames 64]

Each clip's first ten seconds are cut into windows of 64 frames (features: 1024, their mean over
time), centre crop 224. Each row changes one thing that a port does otherwise, and nothing else,
and is compared with the same window as the original sees it: the largest change of a logit; how
the probability of the original's best class changes, and whether another class is the best; the
length of the features' change over the features' length, and its direction, the cosine.

Flow is measured where --flow names a checkpoint.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import common
import cv2
import numpy as np
import torch
import torch.nn.functional as F

from i3d import rgb_clip
from i3d.clips import center_crop, loop_frames
from i3d.data.shards.pictures import decode_rgb, encode_rgb
from i3d.flow import optical_flow
from i3d.models import padding
from i3d.models.checkpoints import build, read_weights, resolve
from i3d.models.i3d import MaxPool
from i3d.models.memory import reuse_freed_memory
from i3d.presets import KINETICS_I3D
from i3d.video import VideoReader

CROP = KINETICS_I3D.crop


@dataclass
class Row:
    """What the network said of one clip's windows: a row for each."""

    features: torch.Tensor  # (N, 1024)
    logits: torch.Tensor  # (N, 400)
    windows: list[int]  # which ones, where a row has not all


# --- pixels ---------------------------------------------------------------------------------------


def resized(frames, interpolation):
    """To a short side of 256, as `i3d.video` does it but for the interpolation."""
    height, width = frames.shape[1:3]
    scale = 256 / min(height, width)
    size = (round(width * scale), round(height * scale))
    return np.stack([cv2.resize(f, size, interpolation=interpolation) for f in frames])


def stored(frames):
    """As the shards give it back."""
    jpegs = [encode_rgb(frame) for frame in frames]
    return decode_rgb(jpegs, height=frames.shape[1], width=frames.shape[2])


def flow_input(flow, *, rounding=np.rint, levels=127.0, offset=0.0):
    """float32 (2, T, 224, 224) of flow quantised in one way or another, read back in [-1, 1]."""
    x = np.clip(center_crop(flow, CROP), -20, 20)
    q = rounding(x / 20 * levels + offset)
    return torch.from_numpy(((q - offset) / levels).astype(np.float32)).permute(3, 0, 1, 2)


def chainer_flow(flow):
    """As the Chainer program stores and reads it: 255 levels with no motion between two."""
    x = np.clip(center_crop(flow, CROP), -20, 20)
    x = ((np.rint((x + 20) * 255 / 40) - 128) / 128).astype(np.float32)
    return torch.from_numpy(x).permute(3, 0, 1, 2)


# --- networks -------------------------------------------------------------------------------------


def load(checkpoint, bn_eps=None):
    weights = read_weights(resolve(checkpoint))
    if bn_eps is not None:
        weights = weights.with_config(bn_eps=bn_eps)
    return build(weights).fold()


@contextmanager
def symmetric_padding():
    """Half a kernel on both sides, as PyTorch's ``padding=k // 2``."""

    def pool(self, x):
        return F.max_pool3d(x, self.kernel, self.stride, [(k - 1) // 2 for k in self.kernel])

    with (
        mock.patch.object(padding, "same_padding", lambda n, k, s: ((k - 1) // 2,) * 2),
        mock.patch.object(MaxPool, "forward", pool),
    ):
        yield


def ask(model, clips, *, plain_mean=False):
    """The row of clips (C, T, H, W) by their windows' numbers."""
    features, logits = [], []
    for clip in clips.values():
        with torch.inference_mode():
            x, _ = model._trunk(clip[None], "Mixed_5c")
            steps = x.mean((3, 4))  # (1, 1024, T')
            steps = steps.mean(2, keepdim=True) if plain_mean else model._pool(steps)
            features.append(steps.mean(2)[0].double())
            logits.append(model.Logits(steps)[0].double())
    return Row(torch.stack(features), torch.stack(logits), list(clips))


# --- rows -----------------------------------------------------------------------------------------


def network_rows(checkpoint, model, clips):
    """Rows that both streams have: the network's own differences."""
    yield "pooling: plain mean of Mixed_5c", ask(model, clips, plain_mean=True)
    yield "BatchNorm eps 1e-5", ask(load(checkpoint, 1e-5), clips)
    with symmetric_padding():
        yield "symmetric padding", ask(model, clips)


def rgb_rows(path, checkpoint, length):
    model = load(checkpoint)
    frames = common.read_clip(path)
    windows = common.cut_windows(frames, length)
    clips = {i: rgb_clip(window) for i, window in windows.items()}
    yield "original", ask(model, clips)
    yield from network_rows(checkpoint, model, clips)

    def of(pictures, change=None):
        made = {i: rgb_clip(x) for i, x in pictures.items()}
        return ask(model, {i: change(x) if change else x for i, x in made.items()})

    yield "x / 128 - 1", of(windows, lambda x: (x + 1) * 127.5 / 128 - 1)
    yield "x / 255", of(windows, lambda x: (x + 1) / 2)
    yield "blue before red", of(windows, lambda x: x.flip(0))
    squash = {
        i: np.stack([cv2.resize(f, (CROP, CROP)) for f in window]) for i, window in windows.items()
    }
    yield "squashed to 224 x 224, no crop", of(squash)
    own = common.read_clip(path, short_side=None)
    if own.shape != frames.shape:
        yield "no resize: crop of the file's own size", of(common.cut_windows(own, length))
        yield "resize: area", of(common.cut_windows(resized(own, cv2.INTER_AREA), length))
        yield "resize: bicubic", of(common.cut_windows(resized(own, cv2.INTER_CUBIC), length))
    with VideoReader(path) as reader:
        fps = reader.source_fps
    if abs(fps - 25) > 0.1:
        at_own_rate = common.cut_windows(common.read_clip(path, fps), length, fps)
        seen = {i: x for i, x in at_own_rate.items() if i in windows}
        yield "the file's own frame rate", of(seen)
    yield "JPEG of the shards (quality 95)", of(common.cut_windows(stored(frames), length))
    test_clip = loop_frames(frames, KINETICS_I3D.clip_frames)
    yield "250 frames instead of the window", of(dict.fromkeys(windows, test_clip))


def flow_rows(path, checkpoint, length):
    model = load(checkpoint)
    flow = {
        i: optical_flow(window)
        for i, window in common.cut_windows(
            common.read_clip(path), length + 1, step_seconds=length / 25
        ).items()
    }
    clips = {i: flow_input(x) for i, x in flow.items()}
    yield "original", ask(model, clips)
    yield from network_rows(checkpoint, model, clips)

    def of(change, **options):
        return ask(model, {i: change(x, **options) for i, x in flow.items()})

    yield "flow not quantised", of(flow_input, rounding=np.array)
    yield (
        "flow truncated to 8 bits, not rounded",
        of(flow_input, rounding=np.floor, levels=127.5, offset=127.5),
    )
    yield "flow as the Chainer program's", of(chainer_flow)


# --- comparison -----------------------------------------------------------------------------------


def compare(original, row):
    """A window's differences, for every window that the row has."""
    for k, i in enumerate(row.windows):
        j = original.windows.index(i)
        a, b = original.features[j], row.features[k]
        x, y = original.logits[j], row.logits[k]
        best = int(x.argmax())
        yield {
            "logit": float((y - x).abs().max()),
            "probability": float(y.softmax(0)[best] - x.softmax(0)[best]),
            "top1_changed": int(y.argmax()) != best,
            "relative": float((b - a).norm() / a.norm()),
            "cosine": float(torch.dot(a, b) / (a.norm() * b.norm())),
        }


def summary(differences):
    """Of windows: the extremes."""
    relative = [d["relative"] for d in differences]
    return {
        "windows": len(differences),
        "largest_logit_change": max(d["logit"] for d in differences),
        "probability_change": max((d["probability"] for d in differences), key=abs),
        "top1_changed": sum(d["top1_changed"] for d in differences),
        "relative": [min(relative), max(relative)],
        "smallest_cosine": min(d["cosine"] for d in differences),
    }


def show(clip, stream, name, row):
    print(
        f"{clip[:16]:17}{stream:5}{name:40}{row['windows']:3}{row['largest_logit_change']:9.3f}"
        f"{100 * row['probability_change']:9.3f} %{row['top1_changed']:4}"
        f"{row['relative'][0]:9.4f}{row['relative'][1]:9.4f}{row['smallest_cosine']:10.6f}",
        flush=True,
    )


def answers(row, classes):
    """What the original says of each window."""
    best = row.logits.argmax(1).tolist()
    return {
        "classes": [classes[i] for i in best],
        "probabilities": [float(x.softmax(0)[i]) for x, i in zip(row.logits, best, strict=True)],
        "largest_logit": float(row.logits.abs().max()),
    }


def main():
    parser = common.options(__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--rgb", default="rgb_scratch_kinetics400")
    parser.add_argument("--flow", help="a checkpoint; default: no flow")
    parser.add_argument("--frames", type=int, default=64, help="of a window")
    args = common.parse(parser)
    reuse_freed_memory()
    result = {"frames": args.frames, "original": {}, "clips": {}, "all": {}}
    for stream, make in (("rgb", rgb_rows), ("flow", flow_rows)):
        checkpoint = getattr(args, stream)
        if checkpoint is None:
            continue
        classes = load(checkpoint).classes
        found = {}  # row -> the differences of all windows
        for path in args.clips:
            rows = make(path, checkpoint, args.frames)
            _, original = next(rows)
            result["original"].setdefault(path.name, {})[stream] = answers(original, classes)
            of_clip = result["clips"].setdefault(path.name, {}).setdefault(stream, {})
            for name, row in rows:
                differences = list(compare(original, row))
                if not differences:
                    continue
                of_clip[name] = summary(differences)
                found.setdefault(name, []).extend(differences)
                show(path.name, stream, name, of_clip[name])
            common.write(args, result, "torch", "numpy", "av")  # after each: it takes long
        result["all"][stream] = {name: summary(rows) for name, rows in found.items()}
        for name, row in result["all"][stream].items():
            show("all", stream, name, row)
    common.write(args, result, "torch", "numpy", "av", "opencv-contrib-python-headless")


if __name__ == "__main__":
    main()
