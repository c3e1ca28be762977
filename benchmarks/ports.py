"""How far the features of other ports are from the original's, one difference at a time.

    python benchmarks/ports.py CLIP... --rgb CHECKPOINT --flow CHECKPOINT [--output RESULT.json]

Of each clip one window of 32 frames from second 1 on, centre crop 224 (features: 1024, mean over
three time steps). Each row changes one thing that a port does otherwise, and nothing else. The size
of a difference is the length of the change over the length of the features, its direction the
cosine; the largest change of a logit stands beside them.
"""

from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import common
import cv2
import numpy as np
import torch
import torch.nn.functional as F

from i3d import rgb_clip
from i3d.clips import center_crop
from i3d.flow import optical_flow
from i3d.models import padding
from i3d.models.checkpoints import build, read_weights
from i3d.models.i3d import MaxPool
from i3d.video import VideoReader

FRAMES = 32
START_SECONDS = 1.0


def read(path, fps=25.0, frames=FRAMES):
    """The first frames from START_SECONDS on, uint8 (T, H, W, 3), short side 256."""
    end = START_SECONDS + frames / fps
    with VideoReader(path, start_seconds=START_SECONDS, end_seconds=end, fps=fps) as reader:
        return np.stack(list(reader))


def load(checkpoint, bn_eps=None):
    weights = read_weights(checkpoint)
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


def outputs(model, clip):
    """(features of the clip, Mixed_5c's plain mean, logits)."""
    with torch.inference_mode():
        x, _ = model._trunk(clip[None], "Mixed_5c")
        features = model._pool(x.mean((3, 4)))
        return features.mean(2)[0], x.mean((2, 3, 4))[0], model.Logits(features)[0]


def compare(one, other):
    (a, _, x), (b, _, y) = one, other
    a, b = a.double(), b.double()
    return {
        "relative": float((b - a).norm() / a.norm()),
        "cosine": float(torch.dot(a, b) / (a.norm() * b.norm())),
        "logit": float((y - x).abs().max()),
    }


def flow_input(flow, *, rounding=np.rint, levels=127.0, offset=0.0):
    """float32 (2, T, 224, 224) of flow quantised in one way or another, read back in [-1, 1]."""
    x = np.clip(center_crop(flow, 224), -20, 20)
    q = rounding(x / 20 * levels + offset)
    return torch.from_numpy(((q - offset) / levels).astype(np.float32)).permute(3, 0, 1, 2)


def chainer(x):
    """As the Chainer program stores and reads it: 255 levels with no motion between two."""
    return torch.from_numpy(
        ((np.rint((x + 20) * 255 / 40) - 128) / 128).astype(np.float32)
    ).permute(3, 0, 1, 2)


def rgb_rows(path, checkpoint):
    frames = read(path)
    model = load(checkpoint)
    clip = rgb_clip(frames)
    base = outputs(model, clip)
    rows = {
        "pooling: plain mean of Mixed_5c": (base[1], None, model.Logits(base[1][None, :, None])[0])
    }
    rows["BatchNorm eps 1e-5"] = outputs(load(checkpoint, 1e-5), clip)
    with symmetric_padding():
        rows["symmetric padding"] = outputs(model, clip)
    squashed = np.stack([cv2.resize(f, (224, 224)) for f in frames])
    rows["squashed to 224 x 224, no crop"] = outputs(model, rgb_clip(squashed))
    with VideoReader(path) as reader:
        fps = reader.source_fps
    if abs(fps - 25) > 0.1:
        rows["the file's own frame rate"] = outputs(model, rgb_clip(read(path, fps)))
    rows["x / 128 - 1"] = outputs(model, (clip + 1) * 127.5 / 128 - 1)
    return {name: compare(base, row) for name, row in rows.items()}


def flow_rows(path, checkpoint):
    flow = optical_flow(read(path, frames=FRAMES + 1))
    model = load(checkpoint)
    clip = flow_input(flow)
    base = outputs(model, clip)
    rows = {
        "pooling: plain mean of Mixed_5c": (base[1], None, model.Logits(base[1][None, :, None])[0])
    }
    rows["BatchNorm eps 1e-5"] = outputs(load(checkpoint, 1e-5), clip)
    with symmetric_padding():
        rows["symmetric padding"] = outputs(model, clip)
    rows["flow not quantised"] = outputs(model, flow_input(flow, rounding=np.array))
    truncated = flow_input(flow, rounding=np.floor, levels=127.5, offset=127.5)
    rows["flow truncated to 8 bits, not rounded"] = outputs(model, truncated)
    cropped = np.clip(center_crop(flow, 224), -20, 20)
    rows["flow as the Chainer program's"] = outputs(model, chainer(cropped))
    return {name: compare(base, row) for name, row in rows.items()}


def main():
    parser = common.options(__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--rgb", required=True)
    parser.add_argument("--flow", required=True)
    args = common.parse(parser)
    result = {"clips": {}}
    for path in args.clips:
        result["clips"][path.name] = {}
        for stream, rows in (("rgb", rgb_rows), ("flow", flow_rows)):
            found = rows(path, getattr(args, stream))
            result["clips"][path.name][stream] = found
            for name, row in found.items():
                print(
                    f"{path.name[:16]:17}{stream:5}{name:40}{row['relative']:9.4f}"
                    f"{row['cosine']:10.6f}{row['logit']:9.3f}",
                    flush=True,
                )
        common.write(args, result, "torch", "numpy", "av")  # after each: it takes long


if __name__ == "__main__":
    main()
