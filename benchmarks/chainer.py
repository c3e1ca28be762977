"""What the Chainer program's preprocessing and its evaluation change in the answers.

    python benchmarks/chainer.py CLIP CLIP... [--rgb CHECKPOINT]

Of every clip's first ten seconds an RGB network's logits for the preset kinetics-i3d are the
reference; each row changes one thing as the Chainer program does it, then all of them, and last
its evaluation's training mode: BatchNorm then normalises by the two clips of its default batch.
Flow is not in it: no flow network can be had where only a package index can.
"""

import common
import numpy as np
import torch

from i3d.clips import loop_frames, scale_clip
from i3d.data.shards.pictures import decode_rgb, encode_rgb
from i3d.models.checkpoints import build, read_weights, resolve
from i3d.presets import CHAINER_I3D, KINETICS_I3D
from i3d.tasks.network import compute
from i3d.video import VideoReader


def read_by_linspace(path):
    """Frames as the program chose them, uint8 (T, H, W, 3), at its size."""
    with VideoReader(path, fps=None, short_side=KINETICS_I3D.short_side) as reader:
        frames, rate = np.stack(list(reader)), reader.source_fps
    count = int(max(1, len(frames) / rate * CHAINER_I3D.fps))
    return frames[np.linspace(0, len(frames) - 1, count).astype(np.int64)]


def through_jpeg(frames):
    height, width = frames.shape[1:3]
    return decode_rgb([encode_rgb(frame) for frame in frames], height=height, width=width)


def make_clip(frames, preset, *, count):
    """The network's input, float32 (3, count, 224, 224)."""
    frames = loop_frames(frames[:count], count)
    top, left = preset.find_corner(*frames.shape[1:3])
    cut = frames[:, top : top + preset.crop, left : left + preset.crop]
    return scale_clip(torch.from_numpy(np.ascontiguousarray(cut)), "rgb", preset)


def clips_of(path):
    """Row -> clip."""
    ours, theirs = common.read_clip(path), read_by_linspace(path)
    stored = through_jpeg(theirs[: CHAINER_I3D.clip_frames])
    return {
        "kinetics-i3d": make_clip(ours, KINETICS_I3D, count=250),
        "JPEG of quality 95, as in all shards": make_clip(
            through_jpeg(ours), KINETICS_I3D, count=250
        ),
        "frames by linspace over the file": make_clip(theirs, KINETICS_I3D, count=250),
        "(x - 128) / 128": make_clip(ours, CHAINER_I3D, count=250),
        "251 frames": make_clip(common.read_clip(path, seconds=11), KINETICS_I3D, count=251),
        "all of it: chainer-i3d": make_clip(stored, CHAINER_I3D, count=251),
    }


def compare(logits, reference):
    """How an answer, float32 (400,), differs from another."""
    best = int(reference.argmax())
    shares, before = logits.softmax(0), reference.softmax(0)
    return {
        "largest_change_of_a_logit": float((logits - reference).abs().max()),
        "change_of_the_best_probability": float((shares - before)[best].abs()),
        "same_class": int(logits.argmax()) == best,
    }


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--rgb", default="rgb_scratch_kinetics400")
    args = common.parse(parser)
    weights = read_weights(resolve(args.rgb))
    folded = build(weights).fold()
    clips = {path: clips_of(path) for path in args.clips}
    rows: dict[str, dict] = {}
    answers = {}
    for path, by_row in clips.items():
        answers[path] = {row: compute(folded, c[None])[0] for row, c in by_row.items()}
        for row, logits in answers[path].items():
            found = compare(logits, answers[path]["kinetics-i3d"])
            rows.setdefault(row, {})[path.rpartition("/")[2]] = found
            print(f"{row:40} {path.rpartition('/')[2]:36} {found}", flush=True)
    # As in Chainer, where config.train was never set to False.
    network, last = build(weights).train(), list(clips[args.clips[0]])[-1]
    for one, other in zip(args.clips, args.clips[1:] + args.clips[:1], strict=True):
        batch = torch.stack([clips[one][last], clips[other][last]])
        with torch.no_grad():
            logits = network(batch)[0]
        found = compare(logits, answers[one][last])
        row = "BatchNorm in training mode, batch of 2, beside chainer-i3d"
        rows.setdefault(row, {})[one.rpartition("/")[2]] = found
        print(f"{row:40} {one.rpartition('/')[2]:36} {found}", flush=True)
    common.write(args, {"rows": rows}, "torch", "numpy", "simplejpeg")


if __name__ == "__main__":
    main()
