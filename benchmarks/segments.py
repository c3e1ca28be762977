"""How well rules for segments find the scenes of real clips that are joined end to end.

    python benchmarks/segments.py CLIP=CLASS CLIP=CLASS ... --checkpoint rgb_scratch_kinetics400

Each of several videos has every clip twice, whole and in part, in an order and with cuts that
depend on the seed alone. The network looks at each once; then the rules are compared on its
windows: which share of the time is labelled, which share of that rightly, and how far the ends of
scenes, where the next one is of another class, are from the nearest end of a segment.
"""

import random
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
from common import options, parse, write

from i3d.metrics import probabilities
from i3d.tasks.predict import Predictor, Segment, segments
from i3d.video import read_video
from i3d.video.writer import Mp4Writer

HEIGHT, WIDTH = 256, 340
PART_SECONDS = 4.0, 9.0  # of a clip that is not shown whole


def join_clips(clips, path, generator):
    """Write a video of scenes; gives [(start, end, class), ...] in seconds."""
    scenes, position = [], 0
    order = [(*clip, whole) for clip in clips.items() for whole in (True, False)]
    generator.shuffle(order)
    with Mp4Writer(path, width=WIDTH, height=HEIGHT, fps=25) as video:
        for clip, name, whole in order:
            frames = read_video(clip)
            if not whole:
                length = round(25 * generator.uniform(*PART_SECONDS))
                start = generator.randrange(max(1, len(frames) - length))
                frames = frames[start : start + length]
            for frame in frames:
                video.write(cv2.resize(frame, (WIDTH, HEIGHT)))
            scenes.append((position / 25, (position + len(frames)) / 25, name))
            position += len(frames)
    return scenes


def find_segments(windows, classes, *, sure, cuts):
    """By the project's rule, with another bound, or as if no window had a cut."""
    if not cuts:
        windows = [replace(window, cuts=()) for window in windows]
    with patch.object(segments, "SURE", sure):
        return segments.find_segments(windows, classes)


def smooth(windows, classes, *, sure):
    """By the mean of each window's and its neighbours' probabilities."""
    shares = np.stack([probabilities(window.logits) for window in windows])
    means = [shares[max(0, i - 1) : i + 2].mean(0) for i in range(len(shares))]
    blurred = [
        replace(window, logits=np.log(mean + 1e-12), cuts=())
        for window, mean in zip(windows, means, strict=True)
    ]
    return find_segments(blurred, classes, sure=sure, cuts=False)


RULES = {
    "each window alone, 50 %": lambda w, c: find_segments(w, c, sure=0.5, cuts=False),
    "each window alone, 70 %": lambda w, c: find_segments(w, c, sure=0.7, cuts=False),
    "mean of three windows, 50 %": lambda w, c: smooth(w, c, sure=0.5),
    "divided at cuts, 50 %": lambda w, c: find_segments(w, c, sure=0.5, cuts=True),
    "divided at cuts, 70 %": lambda w, c: find_segments(w, c, sure=0.7, cuts=True),
}


def measure(found: list[tuple[list, tuple[Segment, ...]]]) -> dict[str, float]:
    """What a rule comes to over all videos."""
    total = labelled = right = 0.0
    errors = []
    for scenes, parts in found:
        total += scenes[-1][1]
        for part in parts:
            if part.name is not None:
                labelled += part.end_seconds - part.start_seconds
                right += sum(
                    max(0.0, min(part.end_seconds, end) - max(part.start_seconds, start))
                    for start, end, name in scenes
                    if name == part.name
                )
        edges = [edge for part in parts for edge in (part.start_seconds, part.end_seconds)]
        ends = [end for (_, end, name), (_, _, after) in pairwise(scenes) if name != after]
        errors += [min(abs(edge - end) for edge in edges) for end in ends]
    return {
        "labelled": labelled / total,
        "right": right / labelled,
        "mean boundary error": float(np.mean(errors)),
        "largest boundary error": max(errors),
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("clips", nargs="+", metavar="CLIP=CLASS")
    parser.add_argument("--checkpoint", default="rgb_scratch_kinetics400")
    parser.add_argument("--every", type=float, default=2.56)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parse(parser)
    clips = dict(clip.rsplit("=", 1) for clip in args.clips)
    predictor = Predictor(args.checkpoint, device="cpu")
    if unknown := set(clips.values()) - set(predictor.classes):
        raise SystemExit(f"benchmarks/segments.py: no class {unknown.pop()!r}")
    generator, looked = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as name:
        for number in range(args.videos):
            path = Path(name) / f"{number}.mp4"
            scenes = join_clips(clips, path, generator)
            looked.append((scenes, predictor(path, every_seconds=args.every).windows))
    seconds, count = sum(s[-1][1] for s, _ in looked), sum(len(s) for s, _ in looked)
    print(f"{seconds:.0f} s, {count} scenes")
    results = {}
    for rule, find in RULES.items():
        results[rule] = measure([(s, find(w, predictor.classes)) for s, w in looked])
        print(f"{rule:30}", "  ".join(f"{k} {v:.3f}" for k, v in results[rule].items()))
    write(args, {"seconds": seconds, "scenes": count, "every": args.every, "rules": results})


if __name__ == "__main__":
    main()
