"""Makes tests/reference/fvd_sources.npz: what the programs of FVD make of small videos.

    python tests/support/make_fvd_goldens.py --cd-fvd DIR --common-metrics DIR --videogpt DIR \
        --stylegan-v DIR --mcvd DIR

The folders are copies of songweige/content-debiased-fvd (a1e037a),
JunyaoHu/common_metrics_on_video_quality (5f75173), wilson1yan/VideoGPT (733d2b1),
universome/stylegan-v (3fecd69) and voletiv/mcvd-pytorch (451da2e). It needs NumPy 2.4, SciPy 1.17
(no later one: the programs use ``sqrtm(disp=False)``), PyTorch 2.13, Pillow 13, einops, tqdm,
requests and h5py, on a CPU. Inputs and weights are those of `fvd_sources.py`.

All numbers are made by the programs' own code, but for this:

* torchvision, moviepy and pytorch_lightning are stand-ins. The code under test passes through two
  functions of them, ``torchvision.transforms.functional.resize`` and ``center_crop`` of a Pillow
  image, by which StyleGAN-V makes frames from videos; they are restated in `resize` and
  `center_crop` from torchvision's source (0.9 and later). StyleGAN-V names torchvision 0.8.2; of
  before 0.9 there is a version whose ``center_crop`` rounds halves up, not to the even number,
  which is `.../halves-up` where it gives another picture. moviepy's reader is an array of frames.
* ``PIL.Image.ANTIALIAS``, which Pillow 10 took away, is what it was an alias of: LANCZOS.
* VideoGPT's package is not run as one, as that would load its generator; its modules ``fvd.fvd``,
  ``fvd.pytorch_i3d`` and ``data`` are.
* The networks' files cannot be had here; ``InceptionI3d`` of each program has the weights of
  `fvd_sources.weights`. StyleGAN-V's TorchScript file, which common_metrics' ``styleganv`` and MCVD
  load, is a program; in its place stands the same class with BatchNorm's epsilon at 1e-3, TF-Hub's,
  and with the keywords that the file takes.
* VideoGPT's script needs a generator and GPUs: its preparation of real frames is one expression,
  repeated here, as is cd-fvd's ``.byte()``, which stands in a loop over a loader.

Names are PROGRAM/STEP/SHAPE:

* ``first``: the resize to a data set's resolution, uint8 (FRAMES, 32, 32, 3).
* ``levels``: what becomes of all 256 levels where no resize is needed, uint8 (1, 16, 16, 3).
* ``second``: frames as the network sees them, float32 (1, 16, 32, 3), the first frame's every
  second row, in [-1, 1].
* ``features`` float32 (2 VIDEOS, 400), real ones first; ``fvd`` the program's distance, of real and
  fake; ``exact`` the same of these features in float64.
* common_metrics: ``fvd`` float64 (2,), for clips of `LENGTHS` frames; features of all frames.
* VideoGPT and MCVD: no features, which would be those of common_metrics' ``videogpt`` and
  ``styleganv``.
"""

import argparse
import importlib
import importlib.util
import math
import sys
import tempfile
import types
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.fvd_sources import (
    LENGTH,
    LENGTHS,
    RESOLUTION,
    SHAPES,
    VIDEOS,
    frames,
    levels,
    save_weights,
    videos,
)
from support.paths import REFERENCE

CPU = torch.device("cpu")


# --- stand-ins ------------------------------------------------------------------------------------


def resize(img, size, interpolation):
    """torchvision's, of a Pillow image and one number: that of the short side."""
    width, height = img.size
    short, long = min(img.size), max(img.size)
    if short == size:
        return img
    new = int(size * long / short)
    return img.resize((size, new) if width <= height else (new, size), interpolation)


def center_crop(img, output_size, *, halves_up=False):
    """torchvision's, of a Pillow image that is not smaller."""
    height, width = output_size

    def start(room):
        return int((room + 1) * 0.5) if halves_up else round(room / 2.0)

    top, left = start(img.height - height), start(img.width - width)
    return img.crop((left, top, left + width, top + height))


class _VideoFileClip:
    """moviepy's, of frames in place of a file."""

    fps = 25

    def __init__(self, pictures):
        self.pictures = pictures

    def iter_frames(self, fps):
        return iter(self.pictures)


def stand_in(name, **attributes):
    """A module of that name, of which importers find these attributes."""
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    module.__path__ = []
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    return module


def add_stand_ins():
    stand_in("torchvision")
    stand_in("torchvision.datasets")
    stand_in("torchvision.datasets.video_utils", VideoClips=None)
    stand_in("torchvision.transforms")
    stand_in("torchvision.transforms.functional", resize=resize, center_crop=center_crop)
    stand_in("pytorch_lightning", LightningDataModule=object)
    stand_in("moviepy")
    stand_in("moviepy.editor", VideoFileClip=_VideoFileClip)
    Image.ANTIALIAS = Image.LANCZOS


def load_file(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- cd-fvd ---------------------------------------------------------------------------------------


def of_cd_fvd(folder, weights):
    sys.path.insert(0, str(folder))
    fvd = importlib.import_module("cdfvd.fvd")
    data = importlib.import_module("cdfvd.utils.data_utils")
    i3d = importlib.import_module("cdfvd.third_party.i3d.utils")

    def rounded(video):  # as compute_real_stats
        return fvd.rearrange(video[None] * 255, "b c t h w -> b t h w c").byte().data.numpy()[0]

    for shape in SHAPES:
        video = frames(*shape)
        tensor = torch.from_numpy(video)
        yield name("first-videos", shape), rounded(data.preprocess(tensor, RESOLUTION)["video"])
        with tempfile.TemporaryDirectory() as root:
            write_pictures(Path(root, "video"), video)
            pictures = data.FrameDataset(root, -1, resolution=RESOLUTION)
            yield name("first-frames", shape), rounded(pictures.getTensor(0))
        seen = i3d.preprocess_i3d(video[None], (RESOLUTION, RESOLUTION))
        yield name("second", shape), part(seen)
    with tempfile.TemporaryDirectory() as root:
        np.save(Path(root, "levels.npy"), levels()[None])
        (batch,) = fvd.cdfvd.load_videos(None, str(Path(root, "levels.npy")))
        yield "levels", rounded(batch["video"][0])

    metric = fvd.cdfvd("i3d", "full", "full", str(weights), compute_feats=True, device="cpu")
    yield "fvd", metric.compute_fvd(videos(True), videos(False))
    features = [s.get_all() for s in (metric.real_stats, metric.fake_stats)]
    yield "features", np.concatenate(features)
    yield "exact", exact(*features, ddof=0)


def write_pictures(folder, video):
    folder.mkdir()
    for i, picture in enumerate(video):
        Image.fromarray(picture).save(folder / f"{i}.png")


# --- common_metrics_on_video_quality --------------------------------------------------------------


class _Keywords(torch.nn.Module):
    """A network that takes the TorchScript file's keywords, whose values are the only ones used."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, *, rescale, resize, return_features):
        assert (rescale, resize, return_features) == (False, False, True)
        return self.network(x)


def of_common_metrics(folder, weights):
    sys.path.insert(0, str(folder))
    main = importlib.import_module("calculate_fvd")
    videogpt = importlib.import_module("fvd.videogpt.fvd")
    styleganv = importlib.import_module("fvd.styleganv.fvd")
    network = importlib.import_module("fvd.videogpt.pytorch_i3d").InceptionI3d

    def open_network(eps, wrap):
        model = network(400, in_channels=3)
        model.load_state_dict(torch.load(weights))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.eps = eps(module.eps)
        return torch.nn.DataParallel(wrap(model).eval())

    openers = {
        "videogpt": lambda device: open_network(lambda own: own, lambda model: model),
        "styleganv": lambda device: open_network(lambda own: 1e-3, _Keywords),
    }

    for shape in SHAPES:
        unit = torch.from_numpy(frames(*shape)).permute(3, 0, 1, 2) / 255  # (C, T, H, W)
        yield name("videogpt-second", shape), part(videogpt.preprocess(unit[None], RESOLUTION))
        yield name("styleganv-second", shape), part(styleganv.preprocess_single(unit, RESOLUTION))
    flat = torch.from_numpy(levels()).permute(3, 0, 1, 2)[None] / 255
    seen = videogpt.preprocess(flat, flat.shape[-1])[0].permute(1, 2, 3, 0)
    yield "videogpt-levels", ((seen + 1) * 127.5).round().byte().numpy()

    sets = [torch.from_numpy(videos(real)).permute(0, 1, 4, 2, 3) / 255 for real in (True, False)]
    for method, module in (("videogpt", videogpt), ("styleganv", styleganv)):
        module.load_i3d_pretrained = openers[method]
        kept = []
        inner = module.frechet_distance

        def keep(one, other, kept=kept, inner=inner):
            kept[:] = [np.array(x) for x in (one, other)]  # before: one of them is changed in place
            return inner(one, other)

        module.frechet_distance = keep
        distances = main.calculate_fvd(*sets, CPU, method)["value"]
        yield f"{method}-fvd", np.array([distances[n - 10] for n in LENGTHS])
        yield f"{method}-features", np.concatenate(kept).astype(np.float32)
        yield f"{method}-exact", exact(*kept, ddof=1)
        assert len(distances) == LENGTH - 9


# --- VideoGPT -------------------------------------------------------------------------------------


def of_videogpt(folder, weights):
    package = stand_in("videogpt")
    package.__path__ = [str(folder / "videogpt")]
    fvd = importlib.import_module("videogpt.fvd.fvd")
    data = importlib.import_module("videogpt.data")
    network = importlib.import_module("videogpt.fvd.pytorch_i3d").InceptionI3d

    def rounded(video):  # as scripts/compute_fvd.py's eval_fvd prepares real ones
        real = video[None] + 0.5
        return (real.permute(0, 2, 3, 4, 1).numpy() * 255).astype("uint8")[0]

    for shape in SHAPES:
        video = frames(*shape)
        yield name("first", shape), rounded(data.preprocess(torch.from_numpy(video), RESOLUTION))
        yield name("second", shape), part(fvd.preprocess(video[None], RESOLUTION))
    flat = torch.from_numpy(levels())
    yield "levels", rounded(data.preprocess(flat, flat.shape[1]))

    model = network(400, in_channels=3)
    model.load_state_dict(torch.load(weights))
    both = np.concatenate([videos(True), videos(False)])
    features = fvd.get_fvd_logits(both, model.eval(), CPU)
    one, other = features[:VIDEOS].clone(), features[VIDEOS:].clone()
    yield "exact", exact(one.numpy(), other.numpy(), ddof=1)
    yield "fvd", fvd.frechet_distance(one, other).item()


# --- MCVD -----------------------------------------------------------------------------------------


class _OnCpu:
    """PyTorch's names, but every device is the CPU: it compares devices by identity."""

    def __getattr__(self, key):
        return getattr(torch, key)

    @staticmethod
    def device(_):
        return CPU


def of_mcvd(folder, weights):
    fvd = load_file("mcvd_fvd", folder / "models" / "fvd" / "fvd.py")
    network = load_file("mcvd_i3d", folder / "models" / "fvd" / "pytorch_i3d.py").InceptionI3d
    fvd.torch = _OnCpu()
    model = network(400, in_channels=3)
    model.load_state_dict(torch.load(weights))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps = 1e-3
    for shape in SHAPES:
        unit = torch.from_numpy(frames(*shape)).permute(3, 0, 1, 2) / 255  # (C, T, H, W)
        yield name("second", shape), part(fvd.preprocess_single(unit, RESOLUTION))
    sets = [torch.from_numpy(videos(real)).permute(0, 4, 1, 2, 3) / 255 for real in (True, False)]
    detector = _Keywords(model).eval()
    features = [fvd.get_fvd_feats(given, detector, CPU) for given in sets]
    yield "fvd", fvd.frechet_distance(*features)
    yield "exact", exact(*features, ddof=1)


# --- StyleGAN-V -----------------------------------------------------------------------------------


def of_stylegan_v(folder, weights):
    script = load_file("stylegan_v", folder / "src" / "scripts" / "convert_videos_to_frames.py")

    def convert(video, **how):
        kept = []

        def crop(img, output_size):
            kept.append(np.asarray(center_crop(img, output_size, **how)))
            return Image.fromarray(kept[-1])

        with tempfile.TemporaryDirectory() as root:
            functional = sys.modules["torchvision.transforms.functional"]
            functional.center_crop = crop
            script.VideoFileClip = lambda path: _VideoFileClip(video)
            script.process_video("video.mp4", root, target_size=RESOLUTION)
        return np.stack(kept)

    for shape in SHAPES:
        made, other = convert(frames(*shape)), convert(frames(*shape), halves_up=True)
        yield name("first", shape), made
        if not np.array_equal(made, other):
            yield name("first", shape) + "/halves-up", other


# --- all ------------------------------------------------------------------------------------------


def name(step, shape):
    return f"{step}/{shape[0]}x{shape[1]}"


def part(seen):
    """A network's input -> what is kept of it: ``second`` above."""
    clip = seen[0] if seen.ndim == 5 else seen  # (C, T, H, W)
    return clip[:, :1, ::2].permute(1, 2, 3, 0).contiguous().numpy()


def exact(one, other, *, ddof):
    """The distance in float64 by singular values, whose small ones carry no error into it."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - ddof) for x in (one, other))  # C1 = A'A, C2 = B'B
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()  # the trace of (C1 C2)^(1/2)
    means = np.square(one.mean(0) - other.mean(0)).sum()
    return float(means + np.square(a).sum() + np.square(b).sum() - 2 * root)


PROGRAMS = {
    "cd-fvd": of_cd_fvd,
    "common-metrics": of_common_metrics,
    "videogpt": of_videogpt,
    "mcvd": of_mcvd,
    "stylegan-v": of_stylegan_v,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for program in PROGRAMS:
        parser.add_argument(f"--{program}", type=Path, required=True, metavar="DIR")
    folders = vars(parser.parse_args())
    warnings.simplefilter("ignore", DeprecationWarning)
    add_stand_ins()
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.pt")
        save_weights(weights)
        for program, make in PROGRAMS.items():
            source = folders[program.replace("-", "_")].resolve()
            for key, array in make(source, weights):
                array = np.asarray(array)
                assert math.isfinite(array.sum()), key
                arrays[f"{program}/{key}"] = array
                print(program, key, array.dtype, array.shape, array if array.size < 3 else "")
    np.savez_compressed(REFERENCE / "fvd_sources.npz", **arrays)


if __name__ == "__main__":
    main()
