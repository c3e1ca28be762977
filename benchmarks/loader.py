"""How many videos a second the loader feeds, and where its time goes.

    python benchmarks/loader.py [SHARDS] [--rounds 7] [--workers 1 2] [--output RESULT.json]

On one core, in turns: reading and verifying a sample (from the page cache), decoding it into the
crop, and moving the pixels into shared memory. Beside it: the limit (simplejpeg and cv2 decoding
the same pictures and nothing else) and WebDataset with cv2 as a user would write it. Then the whole
loader with worker processes, in the steady state. Without shards, some are made of synthetic
videos.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import machine
import numpy as np
import simplejpeg
import torch
import webdataset
from precompute import synthetic_video

from i3d.clips import Views
from i3d.data.reading.clips import ShardSource, load_videos
from i3d.data.shards import open_dataset
from i3d.presets import find_preset
from i3d.tasks.precompute.writing import VideoSet, precompute

VIDEOS = 3  # synthetic ones


def synthetic_shards(folder):
    video = synthetic_video(folder)
    (folder / "videos" / "class").mkdir(parents=True)
    for i in range(VIDEOS):
        (folder / "videos" / "class" / f"{i}.mp4").symlink_to(video)
    precompute(VideoSet(folder / "videos", classes="folders"), folder / "shards")
    return folder / "shards"


def timed(work, *arguments):
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def decode_alone(sample):
    """The libraries' own time: every picture, decoded and dropped."""
    buffer = np.empty((sample.info.height, sample.info.width, 3), np.uint8)
    for jpeg in sample.rgb:
        simplejpeg.decode_jpeg(
            jpeg, colorspace="RGB", fastdct=False, fastupsample=False, buffer=buffer
        )
    for png in sample.flow or ():
        cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def by_webdataset(tars):
    """All samples: whole pictures by cv2, cropped and stacked."""
    count = 0
    for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False):
        info = json.loads(sample["json"])
        for stream, suffix in (("rgb", "rgb.mjpeg"), ("flow", "flow.mpng")):
            if info[stream] is None:
                continue
            ends = np.cumsum(info[stream]["sizes"])[:-1]
            parts = np.split(np.frombuffer(sample[suffix], np.uint8), ends)
            flag = cv2.IMREAD_COLOR_RGB if stream == "rgb" else cv2.IMREAD_UNCHANGED
            np.stack([cv2.imdecode(part, flag)[16:240, 16:240] for part in parts[:250]])
        count += 1
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        measure(args, args.shards or synthetic_shards(Path(name)))


def measure(args, folder):
    dataset = open_dataset(folder)
    source = ShardSource(dataset, find_preset(dataset.manifest.preset))
    failed = {failure.key for failure in dataset.failures()}
    good = [i for i, key in enumerate(source.keys) if key not in failed]
    streams = dataset.manifest.streams
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    rows = {name: [] for name in ("read", "decode", "copy", "limit", "webdataset")}
    for _ in range(args.rounds):
        of_round = dict.fromkeys(rows, 0.0)
        for i in good:
            seconds, sample = timed(dataset.read_sample, source.keys[i])
            of_round["read"] += seconds
            whole, pixels = timed(source.read, i, streams, Views())
            of_round["decode"] += whole - seconds
            tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in pixels.arrays.values()]
            of_round["copy"] += timed(lambda t=tensors: [x.share_memory_() for x in t])[0]
            of_round["limit"] += timed(decode_alone, sample)[0]
        of_round["webdataset"] = timed(by_webdataset, tars)[0]
        for name, seconds in of_round.items():
            rows[name].append(seconds / len(good))
    median = {name: statistics.median(values) for name, values in rows.items()}
    ours = median["read"] + median["decode"] + median["copy"]
    print(f"{len(good)} videos of {folder}, streams: {', '.join(streams)}; ms a video on one core")
    for name in ("read", "decode", "copy"):
        print(f"  {name:12}{1000 * median[name]:8.1f}")
    print(f"  {'ours':12}{1000 * ours:8.1f}   {1 / ours:.2f} videos/s a core")
    for name in ("limit", "webdataset"):
        print(f"  {name:12}{1000 * median[name]:8.1f}   {median[name] / ours:.2f} of ours")
    rates = {}
    for workers in args.workers:
        indices = good * max(1, 24 // len(good))
        videos = load_videos(source, indices, streams=streams, views=Views(), workers=workers)
        for _ in range(2 * workers):  # started and filled
            next(videos)
        seconds, rest = timed(lambda v=videos: sum(1 for _ in v))
        rates[workers] = rest / seconds
        print(f"  {workers} workers   {rates[workers]:8.2f} videos/s")
    result = {
        **machine.record("simplejpeg", "opencv-contrib-python-headless", "torch"),
        "rounds": args.rounds,
        "videos": [source.keys[i] for i in good],
        "streams": list(streams),
        "milliseconds_a_video": {name: 1000 * value for name, value in median.items()},
        "videos_per_second_a_core": 1 / ours,
        "videos_per_second_by_workers": rates,
    }
    machine.write(result, "loader", output=args.output)


if __name__ == "__main__":
    main()
