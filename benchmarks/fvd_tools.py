"""FVD by the programs that others use and by ours, of the same two sets: scores, seconds, memory.

    cd FOLDER_OF_THE_COPIES
    python .../benchmarks/fvd_tools.py REAL FAKE --cd-fvd DIR --common-metrics DIR
    python .../benchmarks/fvd_tools.py --clips CLIP... --cd-fvd DIR --common-metrics DIR

A set is a folder of videos of one size, of which the first --frames frames are taken, or an .npy
of uint8 (N, T, H, W, 3). With --clips both are cut from those videos, --videos of 128x128 each:
windows at random places, from a seed, and the fake ones blurred, so that there is a distance.

The copies are songweige/content-debiased-fvd and JunyaoHu/common_metrics_on_video_quality, whose
code runs as it is, on a CPU with --threads threads. Where a copy has no file of its network, its
own class is given our weights, and the row says so; StyleGAN-V's TorchScript file, which
common_metrics' ``styleganv`` reads, is then common_metrics' class with BatchNorm's epsilon at 1e-3.
torchvision, which they import and these methods do not use, is a stand-in where it is not
installed; einops must be.

Each row is a process of its own, and all rows of a round follow one another. Seconds are from
arrays in memory to the number: resize, network, distance; without imports, the loading of networks
and sets, and one clip through the network, for what is compiled or set up at first use. Memory is
the process's largest resident set, imports, network and sets included; "before" is that without the
work. CPU seconds are all threads' together, which a neighbour disturbs less. Ratios are to our row
of the same network and pictures, theirs over ours: the median of the rounds' own ratios.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np

SIDE = 128  # pixels, of what --clips cuts
SEED = 0
ROW = "--row"  # of a command that is one row's process
MEASURES = ("seconds", "cpu_seconds", "peak_mb")  # of which there are ratios
ROWS = {  # row -> ours that it is compared with
    "ours: cd-fvd": None,
    "cd-fvd": "ours: cd-fvd",
    "ours: videogpt": None,
    "common_metrics: videogpt": "ours: videogpt",
    "ours: styleganv": None,
    "common_metrics: styleganv": "ours: styleganv",
}
OURS = {  # row -> protocol, and what is changed of it: sets are arrays here, as cd-fvd takes them
    "ours: cd-fvd": ("cd-fvd", {"resolution": None, "clips": "first"}),
    "ours: videogpt": ("common-metrics-videogpt", {}),
    "ours: styleganv": ("common-metrics-styleganv", {}),
}


# --- one row, in a process of its own: for the others' nothing of i3d is imported -----------------


def work(row: str, folder: Path, args: argparse.Namespace) -> dict:
    """Run one row and say what it measured."""
    import torch

    args.cd_fvd, args.common_metrics = Path(args.cd_fvd), Path(args.common_metrics)
    torch.set_num_threads(args.threads)
    prepare = prepare_ours if row in OURS else prepare_cd_fvd
    if row.startswith("common_metrics"):
        prepare = prepare_common_metrics
    sets = [np.load(folder / f"{side}.npy") for side in ("real", "fake")]
    with contextlib.redirect_stdout(sys.stderr):
        first_use, score, network = prepare(row, sets, folder / "weights.pt", args)
        before = peak_bytes()
        first_use()
        start, start_cpu = time.perf_counter(), time.process_time()
        value = score()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "fvd": float(value),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": peak_bytes() / 1e6,
        "before_mb": before / 1e6,
        "network": network,
    }


def peak_bytes() -> int:
    """Of this program; getrusage's would be the parent's where that was larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def prepare_ours(row, sets, weights, args):
    import warnings

    import i3d
    from i3d.models.memory import reuse_freed_memory
    from i3d.tasks.fvd import FewVideosWarning
    from i3d.tasks.fvd.protocols import change_protocol

    warnings.simplefilter("ignore", FewVideosWarning)
    reuse_freed_memory()  # as every command of i3d
    protocol, changes = OURS[row]
    protocol = change_protocol(protocol, {"frames": args.frames, **changes})
    metric = i3d.FrechetVideoDistance(args.checkpoint, protocol, device="cpu")

    def score():
        for videos, real in zip(sets, (True, False), strict=True):
            metric.update(videos, real=real)
        return metric.compute()

    return lambda: metric.features(sets[0][:1]), score, "ours"


def prepare_cd_fvd(row, sets, weights, args):
    sys.path.insert(0, str(args.cd_fvd))
    if importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.datasets", "torchvision.datasets.video_utils"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision"].transforms = None
        sys.modules["torchvision.datasets.video_utils"].VideoClips = None
    fvd = importlib.import_module("cdfvd.fvd")
    own = args.cd_fvd / "cdfvd" / "third_party" / "i3d" / "i3d_pretrained_400.pt"
    path, network = (own, "its file") if own.exists() else (weights, "its class, our weights")
    metric = fvd.cdfvd("i3d", "full", "full", str(path), device="cpu")
    return lambda: see_one(metric.model, args), lambda: metric.compute_fvd(*sets), network


def see_one(model, args, **keywords):
    import torch

    with torch.inference_mode():
        model(x=torch.zeros(1, 3, args.frames, 224, 224), **keywords)


def prepare_common_metrics(row, sets, weights, args):
    import torch

    sys.path.insert(0, str(args.common_metrics))
    main = importlib.import_module("calculate_fvd")
    method = row.removeprefix("common_metrics: ")
    module = importlib.import_module(f"fvd.{method}.fvd")
    if method == "videogpt":
        file, keywords = "i3d_pretrained_400.pt", {}
    else:
        file = "i3d_torchscript.pt"
        keywords = {"rescale": False, "resize": False, "return_features": True}
    if (args.common_metrics / "fvd" / method / file).exists():
        model, network = module.load_i3d_pretrained(torch.device("cpu")), "its file"
    else:
        inner = importlib.import_module("fvd.videogpt.pytorch_i3d").InceptionI3d(400, in_channels=3)
        inner.load_state_dict(torch.load(weights, weights_only=True))
        network = "its class, our weights"
        if method == "styleganv":
            for layer in inner.modules():
                if isinstance(layer, torch.nn.BatchNorm3d):
                    layer.eps = 1e-3
            forward = inner.forward
            inner.forward = lambda x, **_: forward(x)
            network = "common_metrics' class with eps 1e-3, our weights"
        model = torch.nn.DataParallel(inner.eval())
    module.load_i3d_pretrained = lambda device: model
    unit = [torch.from_numpy(x).permute(0, 1, 4, 2, 3) / 255 for x in sets]  # (N, T, C, H, W)

    def score():
        cpu = torch.device("cpu")
        return main.calculate_fvd(*unit, cpu, method=method, only_final=True)["value"][-1]

    return lambda: see_one(model, args, **keywords), score, network


# --- the sets -------------------------------------------------------------------------------------


def cut_sets(clips: list[Path], count: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of windows of those videos, uint8 (count, frames, SIDE, SIDE, 3)."""
    import common
    import cv2

    from i3d.video import VideoReader

    pictures = []
    for clip in clips:
        with VideoReader(clip) as reader:
            rate = reader.source_fps
        pictures.append(common.read_clip(clip, fps=rate, short_side=None))
    rng = np.random.default_rng(SEED)

    def window(blur):
        video = pictures[rng.integers(len(pictures))]
        start = rng.integers(len(video) - frames + 1)
        side = rng.integers(SIDE, min(video.shape[1:3]) + 1)
        top, left = (rng.integers(size - side + 1) for size in video.shape[1:3])
        part = video[start : start + frames, top : top + side, left : left + side]
        made = [cv2.resize(x, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for x in part]
        return [cv2.GaussianBlur(x, (0, 0), 2) for x in made] if blur else made

    real, fake = (np.array([window(blur) for _ in range(count)]) for blur in (False, True))
    return real, fake


def read_set(path: Path, frames: int) -> np.ndarray:
    """uint8 (N, frames, H, W, 3)."""
    from itertools import islice

    from i3d.video import VideoReader

    if path.suffix == ".npy":
        return np.load(path)[:, :frames]
    videos = []
    for file in sorted(x for x in path.iterdir() if x.is_file()):
        with VideoReader(file) as reader:
            videos.append(np.stack(list(islice(reader, frames))))
    if len({video.shape for video in videos}) != 1:
        shapes = sorted({video.shape for video in videos})
        raise SystemExit(f"{path}: videos of one size and length are needed; here are {shapes}")
    return np.stack(videos)


def write_weights(checkpoint: str, path: Path) -> None:
    """Those weights as a state dict in pytorch-i3d's naming."""
    import torch

    from i3d.models.checkpoints import read_weights, resolve
    from i3d.models.foreign.names import PYTORCH_I3D

    state = {PYTORCH_I3D.key(n): t for n, t in read_weights(resolve(checkpoint)).tensors.items()}
    for name in [n for n in state if n.endswith(".bn.running_var")]:
        unit = name.removesuffix("running_var")
        state.setdefault(f"{unit}weight", torch.ones_like(state[name]))
        state.setdefault(f"{unit}num_batches_tracked", torch.tensor(0))
    torch.save(state, path)


# --- all rows -------------------------------------------------------------------------------------


def run(row: str, folder: Path, args: argparse.Namespace) -> dict:
    """One row in a fresh process."""
    options = {name: getattr(args, name) for name in ("checkpoint", "frames", "threads")}
    options |= {name: str(getattr(args, name)) for name in ("cd_fvd", "common_metrics")}
    command = [sys.executable, __file__, ROW, row, str(folder), json.dumps(options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"benchmarks/fvd_tools.py: {row} failed, as said above")
    return json.loads(done.stdout)


def summary(turns: list[dict[str, dict]]) -> dict[str, dict]:
    """Row -> its medians over the rounds, and their ratio to ours."""
    rows = {}
    for row, base in ROWS.items():
        if row not in turns[0]:
            continue
        made = {
            key: statistics.median(turn[row][key] for turn in turns)
            for key in ("fvd", *MEASURES, "before_mb")
        }
        if base is not None:
            for key in MEASURES:
                ratios = [turn[row][key] / turn[base][key] for turn in turns]
                made[f"{key}_to_ours"] = statistics.median(ratios)
            made["relative_difference"] = made["fvd"] / rows[base]["fvd"] - 1
        rows[row] = made | {"network": turns[0][row]["network"]}
    return rows


def show(rows: dict[str, dict]) -> None:
    heads = ("FVD", "s", "CPU s", "MB", "before", "s/ours", "CPU/ours", "MB/ours")
    print(" " * 26 + "".join(f"{head:>10}" for head in heads) + "  network")
    for name, row in rows.items():
        values = f"{row['fvd']:10.4f}{row['seconds']:10.2f}{row['cpu_seconds']:10.2f}"
        values += f"{row['peak_mb']:10.0f}{row['before_mb']:10.0f}"
        ratios = (row.get(f"{key}_to_ours") for key in MEASURES)
        values += "".join(" " * 10 if r is None else f"{r:10.2f}" for r in ratios)
        print(f"{name:26}{values}  {row['network']}", flush=True)


def main() -> None:
    import common

    parser = common.options(__doc__, rounds=3)
    parser.add_argument("real", nargs="?", type=Path, help="folder of videos, or .npy")
    parser.add_argument("fake", nargs="?", type=Path)
    parser.add_argument("--clips", nargs="+", type=Path, help="cut both sets from these videos")
    parser.add_argument("--videos", type=int, default=48, help="of each set that is cut")
    parser.add_argument("--frames", type=int, default=16, help="of a video")
    parser.add_argument("--cd-fvd", type=Path, metavar="DIR", help="a copy; default: no such row")
    parser.add_argument("--common-metrics", type=Path, metavar="DIR", help="likewise")
    parser.add_argument("--checkpoint", default="rgb_scratch_kinetics400")
    parser.add_argument("--threads", type=int, default=2)
    args = common.parse(parser)
    if bool(args.clips) == bool(args.fake):
        parser.error("REAL and FAKE, or --clips")
    rows = [
        row
        for row in ROWS
        if row in OURS or (args.cd_fvd if row == "cd-fvd" else args.common_metrics)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.clips:
            sets = cut_sets(args.clips, args.videos, args.frames)
        else:
            sets = tuple(read_set(path, args.frames) for path in (args.real, args.fake))
        for side, videos in zip(("real", "fake"), sets, strict=True):
            np.save(folder / f"{side}.npy", videos)
        write_weights(args.checkpoint, folder / "weights.pt")
        turns = []
        for _ in range(args.rounds):
            turns.append({row: run(row, folder, args) for row in rows})
            show(summary(turns))
            found = {"sets": [list(videos.shape) for videos in sets], "threads": args.threads}
            result = {**found, "rounds": len(turns), "rows": summary(turns), "turns": turns}
            common.write(args, result, "torch", "numpy", "scipy", "einops")


if __name__ == "__main__":
    if sys.argv[1:2] == [ROW]:
        row, folder, options = sys.argv[2:]
        print(json.dumps(work(row, Path(folder), argparse.Namespace(**json.loads(options)))))
    else:
        main()
