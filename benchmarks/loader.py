"""How many videos a second the loader feeds, and where its time goes.

    python benchmarks/loader.py [SHARDS] [--rounds 7] [--workers 1 2] [--output RESULT.json]

On one core, in turns: reading and verifying a sample (from the page cache), decoding it into the
crop, and moving the pixels into shared memory. Beside it: the limit (simplejpeg and cv2 decoding
the same pictures and nothing else) and WebDataset with cv2 as a user would write it. Then the whole
loader with worker processes, in the steady state. Without shards, some are made of synthetic
videos.
"""

import json
from functools import partial
from pathlib import Path

import common
import cv2
import numpy as np
import simplejpeg
import torch
import webdataset

from i3d.clips import Views
from i3d.parallel.ahead import read_items

CROP = slice(16, 240)


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
            np.stack([cv2.imdecode(part, flag)[CROP, CROP] for part in parts[:250]])
        count += 1
    return count


def turn(dataset, source, indices, tars):
    """Seconds a video of every row."""
    streams = dataset.manifest.streams
    seconds = dict.fromkeys(("read", "decode", "copy", "limit"), 0.0)
    read = partial(source.read, streams=streams, views=Views())
    for i in indices:
        read_seconds, sample = common.timed(dataset.read_sample, source.keys[i])
        whole_seconds, (arrays, _) = common.timed(read, i)
        tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays.values()]
        seconds["read"] += read_seconds
        seconds["decode"] += whole_seconds - read_seconds
        seconds["copy"] += common.timed(lambda t=tensors: [x.share_memory_() for x in t])[0]
        seconds["limit"] += common.timed(decode_alone, sample)[0]
    seconds["webdataset"] = common.timed(by_webdataset, tars)[0]
    return {name: value / len(indices) for name, value in seconds.items()}


def loader_rate(source, indices, streams, workers):
    """Videos a second of the loader in the steady state."""
    indices = indices * max(1, 24 // len(indices))
    read = partial(source.read, streams=streams, views=Views())
    videos = read_items(read, indices, workers=workers)
    for _ in range(2 * workers):  # started and filled
        next(videos)
    seconds, rest = common.timed(lambda: sum(1 for _ in videos))
    return rest / seconds


def measure(args, folder):
    dataset, source, good = common.open_shards(folder)
    streams = dataset.manifest.streams
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    median = common.medians(lambda: turn(dataset, source, good, tars), args.rounds)
    ours = median["read"] + median["decode"] + median["copy"]
    print(f"{len(good)} videos of {folder}, streams: {', '.join(streams)}; ms a video on one core")
    for name in ("read", "decode", "copy"):
        print(f"  {name:12}{1000 * median[name]:8.1f}")
    print(f"  {'ours':12}{1000 * ours:8.1f}   {1 / ours:.2f} videos/s a core")
    for name in ("limit", "webdataset"):
        print(f"  {name:12}{1000 * median[name]:8.1f}   {median[name] / ours:.2f} of ours")
    rates = {}
    for workers in args.workers:
        rates[workers] = loader_rate(source, good, streams, workers)
        print(f"  {workers} workers   {rates[workers]:8.2f} videos/s")
    return {
        "rounds": args.rounds,
        "videos": [source.keys[i] for i in good],
        "streams": list(streams),
        "milliseconds_a_video": {name: 1000 * value for name, value in median.items()},
        "videos_per_second_a_core": 1 / ours,
        "videos_per_second_by_workers": rates,
    }


def main():
    parser = common.options(__doc__, rounds=7)
    parser.add_argument("shards", nargs="?", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    args = common.parse(parser)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with common.shards_or_synthetic(args.shards) as folder:
        result = measure(args, folder)
    common.write(args, result, "simplejpeg", "opencv-contrib-python-headless", "torch")


if __name__ == "__main__":
    main()
