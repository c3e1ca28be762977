"""Two-stream evaluation from shards, end to end, and what limits it.

    python benchmarks/evaluate.py [SHARDS] [--videos 4] [--frames 250] [--device cuda]

Runs what `i3d evaluate` runs, on SHARDS over and over until so many videos are done, with two full
networks (their weights are drawn, which speed does not depend on). Beside it, in the same run: the
loader alone with the same workers, and the networks alone on clips that lie ready. The lesser of
the two is the limit of any overlap. The time of the 19,881 videos of Kinetics-400's validation set
is scaled from the measured rate. Without shards, some are made of synthetic videos.
"""

import argparse
import tempfile
import time
from pathlib import Path

import machine
import torch
from forward import trained_like
from loader import synthetic_shards

from i3d.clips import Views
from i3d.data.reading.clips import ShardSource, load_videos
from i3d.data.shards import open_dataset
from i3d.presets import STREAM_CHANNELS, STREAMS, find_preset
from i3d.tasks.evaluate.logits import Options, evaluate
from i3d.tasks.network import forward

KINETICS_VALIDATION = 19_881  # videos, CVDF's copy


def networks(classes):
    found = {}
    for stream in STREAMS:
        network = trained_like(stream=stream, num_classes=classes)
        found[stream] = network.fold()
    return found


def measure(args, folder):
    dataset = open_dataset(folder)
    preset = find_preset(dataset.manifest.preset)
    views = Views(args.frames)
    models = networks(len(dataset.manifest.classes.names))
    options = Options(
        views, args.precision, args.batch_size, workers=args.workers, device=args.device
    )
    done = evaluate(folder, models, options=options)
    repeats = -(-args.videos // done.evaluation.cost.videos)
    costs = [evaluate(folder, models, options=options).evaluation.cost for _ in range(repeats)]
    rate = sum(c.videos for c in costs) / sum(c.seconds for c in costs)

    source = ShardSource(dataset, preset)
    failed = {failure.key for failure in dataset.failures()}
    good = [i for i, key in enumerate(source.keys) if key not in failed] * max(2, 2 * repeats)
    videos = load_videos(
        source, good, streams=STREAMS, views=views, workers=max(1, costs[0].workers)
    )
    next(videos)
    start = time.perf_counter()
    loaded = sum(1 for _ in videos) / (time.perf_counter() - start)

    device = "cuda" if args.device == "cuda" else "cpu"
    crop = preset.crop
    clips = {
        stream: torch.rand(costs[0].batch_size, STREAM_CHANNELS[stream], args.frames, crop, crop)
        for stream in STREAMS
    }
    clips = {stream: (2 * clip - 1).to(device) for stream, clip in clips.items()}
    models = {stream: model.to(device) for stream, model in models.items()}

    def both():
        for stream, model in models.items():
            forward(model, clips[stream], args.precision)
        if device == "cuda":
            torch.cuda.synchronize()

    both()
    start = time.perf_counter()
    for _ in range(args.rounds):
        both()
    computed = args.rounds * costs[0].batch_size / (time.perf_counter() - start)
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
        "kinetics_400_validation_hours_scaled": KINETICS_VALIDATION / rate / 3600,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="?", type=Path)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--frames", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks/evaluate.py: --device cuda, and PyTorch finds no GPU here")
    with tempfile.TemporaryDirectory() as name:
        measured = measure(args, args.shards or synthetic_shards(Path(name)))
    for name, value in measured.items():
        print(f"  {name:40}{value:.3g}" if isinstance(value, float) else f"  {name:40}{value}")
    result = {
        **machine.record("torch", "simplejpeg", "opencv-contrib-python-headless"),
        **measured,
    }
    machine.write(result, "evaluate", args.device, args.output)


if __name__ == "__main__":
    main()
