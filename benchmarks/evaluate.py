"""Two-stream evaluation from shards, end to end, and what limits it.

    python benchmarks/evaluate.py [SHARDS] [--videos 4] [--frames 250] [--device cuda]

Runs what `i3d evaluate` runs, on SHARDS over and over until so many videos are done, with two full
networks (their weights are drawn, which speed does not depend on). Beside it, in the same run: the
loader alone with the same workers, and the networks alone on clips that lie ready. The lesser of
the two is the limit of any overlap. The time of the 19,881 videos of Kinetics-400's validation set
is scaled from the measured rate. Without shards, some are made of synthetic videos.
"""

from functools import partial
from pathlib import Path

import common
import torch

from i3d.parallel.ahead import read_items
from i3d.presets import STREAM_CHANNELS, STREAMS, find_preset
from i3d.tasks.evaluate.logits import evaluate
from i3d.tasks.evaluate.options import EvaluateOptions
from i3d.tasks.network import compute


def measure(args, folder):
    dataset, source, good = common.open_shards(folder)
    preset = find_preset(dataset.manifest.preset)
    classes = len(dataset.manifest.classes.names)
    models = {
        stream: common.trained_like(stream, classes, preset=preset.name).fold()
        for stream in STREAMS
    }
    options = EvaluateOptions(
        frames=args.frames,
        precision=args.precision,
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
    )
    done = evaluate(folder, models, options=options)
    repeats = -(-args.videos // done.evaluation.cost.videos)
    costs = [evaluate(folder, models, options=options).evaluation.cost for _ in range(repeats)]
    rate = sum(c.videos for c in costs) / sum(c.seconds for c in costs)

    indices, workers = good * max(2, 2 * repeats), max(1, costs[0].workers)
    read = partial(source.read, streams=STREAMS, views=options.views)
    videos = read_items(read, indices, workers=workers)
    next(videos)
    seconds, rest = common.timed(lambda: sum(1 for _ in videos))
    loaded = rest / seconds

    crop = preset.crop
    clips = {
        stream: torch.rand(costs[0].batch_size, STREAM_CHANNELS[stream], args.frames, crop, crop)
        for stream in STREAMS
    }
    clips = {stream: (2 * clip - 1).to(args.device) for stream, clip in clips.items()}
    models = {stream: model.to(args.device) for stream, model in models.items()}

    def both():
        for stream, model in models.items():
            compute(model, clips[stream], precision=args.precision)

    both()
    seconds = sum(common.timed(both)[0] for _ in range(args.rounds))
    computed = args.rounds * costs[0].batch_size / seconds
    return {
        "videos": sum(c.videos for c in costs),
        "frames": args.frames,
        "precision": args.precision,
        "workers": costs[0].workers,
        "batch_size": costs[0].batch_size,
        "videos_per_second": rate,
        "loader_videos_per_second": loaded,
        "networks_videos_per_second": computed,
        "share_of_the_limit": rate / min(loaded, computed),
        "kinetics_400_validation_hours_scaled": common.KINETICS_VALIDATION / rate / 3600,
    }


def main():
    parser = common.options(__doc__, rounds=3, gpu=True)
    parser.add_argument("shards", nargs="?", type=Path)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--frames", type=int, default=250)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    args = common.parse(parser)
    with common.shards_or_synthetic(args.shards) as folder:
        result = measure(args, folder)
    for name, value in result.items():
        print(f"  {name:40}{value:.3g}" if isinstance(value, float) else f"  {name:40}{value}")
    common.write(args, result, "torch", "simplejpeg", "opencv-contrib-python-headless")


if __name__ == "__main__":
    main()
