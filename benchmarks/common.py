"""What the benchmarks share: options, clips to work on, times and their medians, and the record."""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from i3d.data.videos import VideoSet
from i3d.presets import KINETICS_I3D
from i3d.tasks.precompute.writing import precompute
from i3d.video import VideoReader

RESULTS = Path(__file__).parent / "results"
SECONDS = KINETICS_I3D.clip_frames / KINETICS_I3D.fps  # of a real clip: the original's test clip
KINETICS_VALIDATION = 19_881  # videos, CVDF's copy
SYNTHETIC_SECONDS = 10
SYNTHETIC_VIDEOS = 3  # of synthetic shards


# --- options --------------------------------------------------------------------------------------


def options(doc: str, *, rounds: int | None = None, gpu: bool = False) -> argparse.ArgumentParser:
    """A benchmark's options, to which it adds its own.

    Args:
        doc: its docstring; the first line is its help.
        rounds: default of --rounds; None if it has no rounds.
        gpu: it has --device.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="a figure is their median")
    parser.set_defaults(device="cpu")
    if gpu:
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    names = f"{program()}.json, {program()}_cuda.json" if gpu else f"{program()}.json"
    parser.add_argument("--output", type=Path, help=f"default: benchmarks/results/{names}")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What the command says; a GPU that is asked for must be there."""
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"benchmarks/{program()}.py: --device cuda, and PyTorch finds no GPU here")
    return args


# --- time -----------------------------------------------------------------------------------------


def timed(work: Callable, *arguments) -> tuple:
    """(seconds, result); a GPU that is in use has finished."""
    wait_for_gpu()
    start = time.perf_counter()
    result = work(*arguments)
    wait_for_gpu()
    return time.perf_counter() - start, result


def wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def medians(turn: Callable[[], dict], rounds: int, *, warm_up: int = 0) -> dict:
    """Median of every row over the rounds.

    Args:
        turn: runs all rows once, one after another, so that a neighbour's load meets all of them;
            name -> seconds.
        rounds: turns that count.
        warm_up: turns before them.
    """
    turns = [turn() for _ in range(warm_up + rounds)][warm_up:]
    return {name: statistics.median(t[name] for t in turns) for name in turns[0]}


def median(seconds: Callable[[], float], rounds: int, *, warm_up: int = 0) -> float:
    """`medians` of one row."""
    return medians(lambda: {"": seconds()}, rounds, warm_up=warm_up)[""]


# --- clips and networks ---------------------------------------------------------------------------


def texture(noise, sizes):
    """Smoothed noise of several grain sizes in pixels, float32 in 0..255."""
    layers = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in sizes)
    return cv2.normalize(layers, None, 0, 255, cv2.NORM_MINMAX)


def synthetic_video(folder: Path) -> Path:
    """Ten seconds of a textured background that pans, 1280x720 h264."""
    noise = np.random.default_rng(0).normal(size=(900, 1800, 3)).astype(np.float32)
    background = texture(noise, (2, 8, 32)).astype(np.uint8)
    path = folder / "synthetic_1280x720.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for i in range(SYNTHETIC_SECONDS * 25):
            view = np.ascontiguousarray(background[i // 2 : i // 2 + 720, 2 * i : 2 * i + 1280])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@contextmanager
def videos_or_synthetic(videos: list[Path]):
    """(those videos, or a synthetic one; a temporary folder)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield videos or [synthetic_video(folder)], folder


def dataset_of(videos: list[Path], folder: Path) -> VideoSet:
    """A dataset of one class, links to those videos; one may come several times."""
    root = folder / "videos"
    (root / "class").mkdir(parents=True)
    for i, video in enumerate(videos):
        (root / "class" / f"{i}{video.suffix}").symlink_to(video.resolve())
    return VideoSet(root, classes="folders")


@contextmanager
def shards_or_synthetic(shards: Path | None):
    """Those shards, or some with both streams, made of a synthetic video."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if shards is None:
            shards = folder / "shards"
            precompute(dataset_of([synthetic_video(folder)] * SYNTHETIC_VIDEOS, folder), shards)
        yield shards


def open_shards(folder: Path) -> tuple:
    """(dataset, its source of videos, indices of those that can be read)."""
    from i3d.data.reading.clips import ShardClips
    from i3d.data.shards import open_dataset
    from i3d.presets import find_preset

    dataset = open_dataset(folder)
    source = ShardClips(dataset, find_preset(dataset.manifest.preset))
    failed = {failure.key for failure in dataset.failures()}
    return dataset, source, [i for i, key in enumerate(source.keys) if key not in failed]


def trained_like(stream="rgb", num_classes=400, **options):
    """The full network with statistics like a trained one's; speed does not depend on them."""
    from i3d.models.i3d import I3D

    torch.manual_seed(0)
    network = I3D(stream, num_classes, **options).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.2, 1.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.2)
    return network


def read_clip(path, fps=25.0, short_side=256, seconds=SECONDS):
    """The first ten seconds of a video, uint8 (T, H, W, 3)."""
    with VideoReader(path, end_seconds=seconds, fps=fps, short_side=short_side) as reader:
        return np.stack(list(reader))


def cut_windows(frames, length, fps=25.0, step_seconds=None):
    """Window number -> its frames; one begins where the one before ends, at 25 fps."""
    step = fps * (step_seconds or length / 25.0)
    starts = {i: round(i * step) for i in range(int(len(frames) / step) + 1)}
    return {i: frames[s : s + length] for i, s in starts.items() if s + length <= len(frames)}


# --- the record -----------------------------------------------------------------------------------


def write(args: argparse.Namespace, result: dict, *packages: str) -> None:
    """The result after its command, machine and those packages' versions.

    To --output, or to results/BENCHMARK.json, BENCHMARK_cuda.json for a GPU's.
    """
    suffix = "" if args.device == "cpu" else f"_{args.device}"
    path = args.output or RESULTS / f"{program()}{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"command": command(), "machine": machine(), "versions": versions(*packages)}
    path.write_text(json.dumps(about | result, indent=2) + "\n")


def program() -> str:
    """Name of the benchmark that runs."""
    return Path(sys.argv[0]).stem


def command() -> str:
    """As it was given, but paths without the folders they lie in."""
    paths = {a for a in sys.argv[1:] if Path(a).exists() or Path(a).is_absolute()}
    arguments = [Path(a).name if a in paths else a for a in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{program()}.py", *arguments])


def machine() -> dict:
    """Processor, cores and GPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
