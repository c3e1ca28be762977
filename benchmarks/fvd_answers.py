"""How FVD, the kernel distance, precision and recall answer to distortions of real videos.

    python benchmarks/fvd_answers.py CLIP CLIP ...

Every clip is cut into videos of 16 frames that do not overlap, and each of those into its left and
its right half, 128x128. Even cuts are the real set. The fake set is the odd cuts, distorted in one
way; it is compared with the real set, as generated videos are, and with the odd cuts as they were,
which leaves the distortion alone. Features are by google-2018; sets this small have a large bias,
so what tells is a row beside the first.
"""

import argparse
import time
import warnings

import cv2
import numpy as np
import simplejpeg
from common import options, parse, write

import i3d
from i3d.metrics.manifold import precision_recall
from i3d.tasks.fvd import FewVideosWarning
from i3d.video import read_video

FRAMES, SIZE = 16, 128  # of a video
SIDES = ("other cuts", "same cuts")  # that a distorted set is compared with


# --- videos ---------------------------------------------------------------------------------------


def cut(clips, *, shift=0):
    """Even and odd cuts: uint8 (N, T, H, W, 3) each; the window on them is `shift` pixels lower."""
    sets = [], []
    for clip in clips:
        frames = read_video(clip, fps=None, short_side=None)
        height = round(frames[0].shape[0] * 2 * SIZE / frames[0].shape[1])
        top = (height - SIZE) // 2 + shift
        if top + SIZE > height:
            raise SystemExit(f"benchmarks/fvd_answers.py: {clip} is too wide for a shift")
        for number in range(len(frames) // FRAMES):
            part = frames[number * FRAMES : (number + 1) * FRAMES]
            part = np.stack(
                [cv2.resize(f, (2 * SIZE, height), interpolation=cv2.INTER_AREA) for f in part]
            )[:, top : top + SIZE]
            sets[number % 2].extend([part[:, :, :SIZE], part[:, :, SIZE:]])
    return tuple(np.array(videos) for videos in sets)


def each_frame(change):
    return lambda videos: np.array([[change(frame) for frame in video] for video in videos])


def noise(sigma):
    rng = np.random.default_rng(0)
    return each_frame(
        lambda f: np.clip(f + rng.normal(0, sigma, f.shape), 0, 255).round().astype(np.uint8)
    )


def blur(sigma):
    return each_frame(lambda f: cv2.GaussianBlur(f, (0, 0), sigma))


def jpeg(quality):
    def change(frame):
        data = simplejpeg.encode_jpeg(frame.copy(), quality=quality, colorsubsampling="420")
        return simplejpeg.decode_jpeg(data)

    return each_frame(change)


def shuffled(videos):
    rng = np.random.default_rng(0)
    return np.array([video[rng.permutation(FRAMES)] for video in videos])


# Sigmas are levels of 255 for noise, and pixels of 128 for blur.
DISTORTIONS = {
    "none": lambda v: v,
    "noise, sigma 10": noise(10),
    "noise, sigma 40": noise(40),
    "blur, sigma 1": blur(1),
    "blur, sigma 3": blur(3),
    "JPEG, quality 50": jpeg(50),
    "JPEG, quality 10": jpeg(10),
    "first frame only": lambda v: np.repeat(v[:, :1], FRAMES, axis=1),
    "frames shuffled": shuffled,
    "frames reversed": lambda v: v[:, ::-1],
    "every other frame twice": lambda v: np.repeat(v[:, ::2], 2, axis=1),
}
SHIFT = 8  # pixels


# --- numbers --------------------------------------------------------------------------------------


def compare(metric, real, fake):
    """All numbers of two sets of features."""
    metric.reset()
    metric.update_features(real, real=True)
    metric.update_features(fake, real=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewVideosWarning)
        result = metric.result(kvd=True)
    precision, recall, _ = precision_recall(real, fake)
    return {
        "fvd": result.value,
        "interval": result.as_dict()["interval"],
        "kvd": result.as_dict()["kvd"],
        "precision": precision,
        "recall": recall,
    }, result.line


def distorted(args: argparse.Namespace, metric):
    """The real set's features, and (distortion, features) of every fake set."""
    even, odd, moved = (
        videos[np.linspace(0, len(videos) - 1, min(args.videos, len(videos))).round().astype(int)]
        for videos in (*cut(args.clips), cut(args.clips, shift=SHIFT)[1])
    )
    print(f"{len(even)} real, {len(odd)} fake videos")
    yield "real", metric.features(even)
    for name, distort in DISTORTIONS.items():
        yield name, metric.features(np.ascontiguousarray(distort(odd)))
    yield f"window {SHIFT} pixels lower", metric.features(moved)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("clips", nargs="+", metavar="CLIP")
    parser.add_argument("--videos", type=int, default=100, help="of each set, at most")
    parser.add_argument("--checkpoint", default="rgb_scratch_kinetics400")
    args = parse(parser)
    metric = i3d.FrechetVideoDistance(args.checkpoint, device="cpu", keep_features=True)
    start = time.perf_counter()
    features = {}
    for name, rows in distorted(args, metric):
        features[name] = rows
        print(f"{time.perf_counter() - start:5.0f} s  {name}", flush=True)
    real, fake = features.pop("real"), features["none"]
    # What generators do beside distortion: they repeat themselves.
    features["a quarter of the videos, four times"] = np.repeat(fake[::4], 4, axis=0)[: len(fake)]
    rows = {}
    for name, found in features.items():
        both = [compare(metric, real, found)]
        if name != "none":
            both.append(compare(metric, fake, found))
        rows[name] = {side: numbers for side, (numbers, _) in zip(SIDES, both, strict=False)}
        texts = [
            f"FVD {n['fvd']:7.1f}  KVD {n['kvd']:8.4f}  P {n['precision']:.2f}  R {n['recall']:.2f}"
            for n, _ in both
        ]
        print(f"{name:36}", "  |  ".join(texts), flush=True)
    line = compare(metric, real, fake)[1]
    write(
        args,
        {"line": line, "videos": {"real": len(real), "fake": len(fake)}, "distortions": rows},
        "i3d",
        "torch",
        "numpy",
    )


if __name__ == "__main__":
    main()
