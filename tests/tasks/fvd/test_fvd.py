"""FVD: TensorFlow's pixels, and an independent float64 computation from the printed line alone."""

import hashlib
import io
import json
import math
import os
import re
import shlex
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace

import av
import cv2
import fsspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel
from support.bundles import lively_model, small_model
from support.golden import REFERENCE, shared
from support.videos import write_video

import i3d
from i3d.cli import main
from i3d.data.arrays import open_arrays
from i3d.data.videos import VideoSet
from i3d.errors import CheckpointError, DatasetError, I3DError, UsageError
from i3d.models.checkpoints import fingerprint, read_weights
from i3d.records import SEAL
from i3d.tasks.fvd.options import Beside
from i3d.tasks.fvd.pixels import prepare_frames, resize_bilinear
from i3d.tasks.fvd.protocols import PROTOCOLS, change_protocol
from i3d.tasks.fvd.result import FewVideosWarning
from i3d.tasks.fvd.run import fvd, save_set
from i3d.tasks.options import ComputeOptions
from i3d.tasks.precompute.options import Settings
from i3d.tasks.precompute.writing import precompute

sys.path.insert(0, str(REFERENCE))
from resize_bilinear import OUT, SHAPES, pattern

CLASSES = ("archery", "bowling", "clapping")
FAST = ComputeOptions(workers=0, device="cpu")
# float32 in the network against float64; not measured closer than this
NOISE = 5e-4
# other batches, processes and formats of the same pixels; measured for batches: 1.8e-7
SAME = 1e-5

SMALL = change_protocol("google-2018", {"size": 64})  # a twelfth of the work

pytestmark = pytest.mark.filterwarnings("ignore::i3d.tasks.fvd.result.FewVideosWarning")


def videos(count, seed, *, frames=16, height=40, width=52):
    """uint8 (N, T, H, W, 3): soft patterns of many colours that move."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        step = int(rng.integers(0, 4))
        made.append([np.roll(picture, step * t, axis=1) for t in range(frames)])
    return np.array(made)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A narrow network that keeps signals alive to the end: logits of about 100, apart by 10."""
    model = lively_model(1, classes=CLASSES, num_classes=3)
    with torch.no_grad():
        model.Logits.Conv3d_0c_1x1.weight /= 300
    path = tmp_path_factory.mktemp("checkpoint") / "small net.safetensors"
    i3d.save(model, path)
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two arrays of videos, 18 frames each, and their files."""
    folder = tmp_path_factory.mktemp("sets")
    arrays = {"real": videos(5, 1, frames=18), "fake": videos(4, 2, frames=18)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return arrays, folder


@pytest.fixture(scope="module")
def reference(sets, checkpoint):
    _, folder = sets
    return fvd(
        folder / "real.npy",
        folder / "fake.npy",
        checkpoint=checkpoint,
        protocol=SMALL,
        options=FAST,
    )


# --- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("half_pixel", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_resize_is_tensorflows(shape, half_pixel):
    """TF 2.21's ResizeBilinear, to the bit."""
    with np.load(REFERENCE / "resize_bilinear.npz") as z:
        frames = z["noise"] if shape == SHAPES[0] else pattern(*shape)
        theirs = z[f"{shape[0]}x{shape[1]}_{'half_pixel' if half_pixel else 'tf1'}"]
    whole = slice(0, OUT)
    box = whole, whole
    ours = resize_bilinear(torch.from_numpy(frames), OUT, OUT, half_pixel=half_pixel, box=box)
    np.testing.assert_array_equal(ours[:, ::7, ::5], theirs)


def grid(size, out):
    """TF1's grid as a matrix (out, in): output i is at i * in / out, clamped at the last pixel."""
    matrix = np.zeros((out, size))
    for i in range(out):
        position = i * size / out
        low = min(math.floor(position), size - 1)
        matrix[i, low] += 1 - (position - low)
        matrix[i, min(low + 1, size - 1)] += position - low
    return matrix


def pytorch_resize(frames, height, width):
    """Half-pixel grid, float64 (T, H, W, 3)."""
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2).double()
    resized = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1).numpy()


def independent_clip(frames, resize, fit, size):
    """uint8 (T, H, W, 3) -> float64 (T, size, size, 3) in 0..255, without this package."""
    height, width = frames.shape[1:3]
    tall = wide = size
    if fit == "crop":  # as VideoGPT's preprocess has it, in floats
        scale = size / min(height, width)
        tall, wide = (
            (size, math.ceil(width * scale))
            if height < width
            else (
                math.ceil(height * scale),
                size,
            )
        )
    if resize == "tf1":
        x = frames.astype(np.float64)
        x = np.einsum("ih,thwc->tiwc", grid(height, tall), x)
        x = np.einsum("jw,tiwc->tijc", grid(width, wide), x)
    else:
        x = pytorch_resize(frames, tall, wide)
    top, left = (tall - size) // 2, (wide - size) // 2
    return x[:, top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(40, 52), (52, 40), (49, 49), (256, 340), (181, 640)])
@pytest.mark.parametrize("resize", ["tf1", "half-pixel"])
@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_clips_are_the_formulas(shape, resize, fit):
    """49 x (224 / 49) is over 224 in floats: VideoGPT resizes to 225 and crops."""
    frames = videos(1, 5, frames=2, height=shape[0], width=shape[1])[0]
    protocol = change_protocol("videogpt", {"resize": resize, "fit": fit})
    ours = prepare_frames(torch.from_numpy(frames), protocol).numpy()
    assert ours.shape == (2, 224, 224, 3) and ours.dtype == np.float32
    theirs = independent_clip(frames, resize, fit, 224)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.01)  # of 255; measured: 1.2e-3


# --- the number -----------------------------------------------------------------------------------


def parse(line):
    """value, name and settings of a printed line."""
    head, value, name, *words = shlex.split(line)
    assert head == "FVD"
    return float(value), name[1:-1], dict(word.split("=", 1) for word in words)


def independent_first(frames, settings):
    """The first resize: Pillow's Lanczos, or PyTorch's antialiased bilinear; uint8."""
    size = int(settings["resolution"])
    height, width = frames.shape[1:3]
    if settings["crop"] == "square":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        box = left, top, left + side, top + side
        pictures = [Image.fromarray(f).crop(box) for f in frames]
        lanczos = {"lanczos": Image.Resampling.LANCZOS}[settings["filter"]]
        rows_first = [p.resize((size, side), lanczos) for p in pictures]  # Pillow 13 may not
        return np.array([p.resize((size, size), lanczos) for p in rows_first])
    assert (settings["filter"], settings["crop"]) == ("antialias", "short-side")
    short = min(height, width)
    shape = math.ceil(height * (size / short)), math.ceil(width * (size / short))
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    resized = F.interpolate(planes, shape, mode="bilinear", align_corners=False, antialias=True)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    resized = resized[:, :, top : top + size, left : left + size].permute(0, 2, 3, 1)
    return (resized * 255).byte().numpy()


def independent_fvd(settings, real, fake):
    """From the settings of a line alone: PyTorch in float64, NumPy's covariance and eigenvalues."""
    weights = read_weights(settings["weights"]).with_config(bn_eps=float(settings["bn_eps"]))
    assert fingerprint(weights) == settings["sha256"]
    model = i3d.load(settings["weights"], trainable=True).double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps = float(settings["bn_eps"])
    assert settings["scale"] == "2x/255-1" and settings["precision"] == "fp32"
    frames, stride = int(settings["frames"]), int(settings["stride"])

    def gaussian(array, count):
        rows = []
        for video in array[: int(count.split(":")[0])]:
            first = int(settings["context"]) * (settings.get("context_frames") == "dropped")
            taken = video[first : first + frames * stride : stride][:frames]
            if "resolution" in settings and settings["resolution"] != "None":
                taken = independent_first(taken, settings)
            clip = independent_clip(
                taken, settings["resize"], settings["fit"], int(settings["size"])
            )
            clip = torch.from_numpy(2 * clip / 255 - 1).permute(3, 0, 1, 2)[None]
            with torch.inference_mode():
                ends = model.endpoints(clip, ["Mixed_5c", "Logits"])
            if settings["endpoint"] == "logits":
                rows.append(ends["Logits"][0].numpy())
            else:  # the released head: windows of two time steps
                x = ends["Mixed_5c"].mean((3, 4))
                rows.append(F.avg_pool1d(x, 2, 1).mean(2)[0].numpy())
        rows = np.array(rows)
        assert rows.shape[1] == int(settings["dimensions"])
        return rows, rows.mean(0), np.cov(rows.T, ddof=settings["divisor"] == "n-1")

    x, mu1, c1 = gaussian(real, settings["real"])
    y, mu2, c2 = gaussian(fake, settings["fake"])
    shared_trace = np.sqrt(np.abs(np.linalg.eigvals(c1 @ c2))).sum()
    value = ((mu1 - mu2) ** 2).sum() + np.trace(c1 + c2) - 2 * shared_trace
    return float(value), x, y


CHANGES = {"stride": 2, "frames": 9, "endpoint": "features", "resize": "tf1", "divisor": "n"}
FEWER = {"size": 64, "videos": 3}
# for the sets here, which have 18 frames, and without our own choice of random clips
FITTING = {
    "stylegan-v-128f": {"frames": 9},
    "stylegan-v-128f-subsample8f": {"frames": 9, "stride": 2},
    "cd-fvd": {"clips": "first"},
    "cd-fvd-frames": {"clips": "first", "resolution": 32},
    "prediction": {"context": 2, "context_frames": "dropped"},
}


@pytest.mark.parametrize(
    ("protocol", "changes"),
    [
        *((name, FITTING.get(name, {})) for name in PROTOCOLS),
        *(("videogpt", CHANGES), ("google-2018", FEWER)),
    ],
)
def test_every_number_follows_from_its_line(sets, checkpoint, protocol, changes):
    arrays, folder = sets
    result = fvd(
        folder / "real.npy",
        folder / "fake.npy",
        checkpoint=checkpoint,
        protocol=protocol,
        changes=changes,
        options=FAST,
    )
    value, name, settings = parse(str(result).splitlines()[0])
    assert name.startswith(protocol)
    theirs, _, _ = independent_fvd(settings, arrays["real"], arrays["fake"])
    assert value == pytest.approx(theirs, rel=NOISE)
    assert result.value == pytest.approx(value, rel=1e-7)


def test_protocols_differ_where_their_sources_do():
    """google-research resizes on TF1's grid; StyleGAN-V divides by N; VideoGPT crops, eps 1e-5."""
    names = "google-2018", "stylegan-v", "videogpt"
    google, stylegan, videogpt = (PROTOCOLS[name].settings for name in names)
    assert {k for k in google if google[k] != stylegan[k]} == {"resize", "divisor", "values"}
    assert {k for k in google if google[k] != videogpt[k]} == {"resize", "fit", "bn_eps", "values"}
    assert (google["resize"], stylegan["divisor"], videogpt["bn_eps"]) == ("tf1", "n", 1e-5)
    assert {p.endpoint for p in PROTOCOLS.values()} == {"logits"}


def test_identical_sets_have_no_distance(sets, checkpoint):
    metric = i3d.FrechetVideoDistance(checkpoint, SMALL, device="cpu", batch_size=4)
    metric.update(sets[0]["real"], real=True)
    metric.update(sets[0]["real"][::-1].copy(), real=False)
    assert 0 <= metric.compute() < 1e-6


def test_kernel_distance_and_curve(sets, checkpoint, reference):
    arrays, folder = sets
    result = fvd(
        folder / "real.npy",
        folder / "fake.npy",
        checkpoint=checkpoint,
        protocol=SMALL,
        options=FAST,
        beside=Beside(kvd=True),
        curve=True,
    )
    _, _, settings = parse(result.line)
    _, x, y = independent_fvd(settings, arrays["real"], arrays["fake"])
    options = {"degree": 3, "gamma": 1 / 3, "coef0": 1}
    within = [polynomial_kernel(z, **options) for z in (x, y)]
    unbiased = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in within)
    theirs = unbiased - 2 * polynomial_kernel(x, y, **options).mean()
    assert result.analysis.kvd == pytest.approx(theirs, rel=NOISE)
    assert result.value == reference.value
    assert [p.count for p in result.analysis.points] == [4]
    assert "KVD" in str(result) and "\nN 4:" in str(result)


# --- what the result says -------------------------------------------------------------------------


def test_the_name_tells_every_departure(reference, checkpoint, monkeypatch):
    weights = read_weights(checkpoint)
    digest = fingerprint(weights)
    assert reference.name == f"google-2018, unverified weights {digest[:12]}, size=64"
    other = replace(
        reference,
        protocol=change_protocol("stylegan-v", {"frames": 32, "endpoint": "features"}),
        precision="bf16",
        fake=replace(reference.fake, origin="shards-kinetics-i3d"),
        weights=replace(reference.weights, source="deepmind/kinetics-i3d@0667e88 rgb_imagenet"),
    )
    assert other.name == (
        "stylegan-v, weights rgb_imagenet of kinetics-i3d, endpoint=features, frames=32, "
        "5+4 videos, bf16, shards-kinetics-i3d"
    )
    known = replace(reference.weights, released="rgb_scratch_kinetics400")
    assert replace(reference, weights=known).name == "google-2018, size=64"
    full = replace(other.real, used=2048), replace(other.fake, used=2048)
    assert "videos" not in replace(other, real=full[0], fake=full[1]).name


def test_few_videos_are_warned_of(sets, checkpoint):
    metric = i3d.FrechetVideoDistance(checkpoint, SMALL, device="cpu")
    rng = np.random.default_rng(0)
    metric.update_features(rng.normal(size=(256, 3)), real=True)
    metric.update_features(rng.normal(size=(255, 3)) + 1, real=False)
    with pytest.warns(FewVideosWarning, match="256 real and 255 fake.*bootstrap interval"):
        value = metric.compute()
    low, high = metric.result().as_dict()["interval"]
    assert low < value < high
    metric.update_features(rng.normal(size=(1, 3)) + 1, real=False)
    assert metric.result().analysis.interval is None


def test_everything_is_in_the_json(reference):
    report = json.loads(json.dumps(reference.as_dict()))
    assert report["fvd"] == reference.value and report["line"] == reference.line
    assert (report["protocol"]["name"], report["protocol"]["changes"]) == (
        "google-2018",
        {"size": 64},
    )
    assert report["weights"]["sha256"] == reference.weights.sha256
    assert report["real"] == {
        "used": 5,
        "origin": "array",
        "found": 5,
        "skipped": 0,
        "left_out": 0,
        "damaged": 0,
        "reasons": [],
        "damages": [],
        "clips": 5,
        "sizes": [{"height": 40, "width": 52}],
    }
    assert report["versions"]["torch"] == torch.__version__


# --- in Python ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4])
def test_any_batches_and_merges_give_the_same(sets, checkpoint, reference, batch_size):
    arrays, _ = sets
    whole = i3d.FrechetVideoDistance(checkpoint, SMALL, device="cpu", batch_size=batch_size)
    other = i3d.FrechetVideoDistance(checkpoint, SMALL, device="cpu")
    whole.update(torch.from_numpy(arrays["real"][:3]), real=True)
    whole.update(arrays["fake"][:1], real=False)
    other.update(arrays["real"][3:], real=True)
    other.update(arrays["fake"][1:], real=False)
    whole.merge(other.state())
    assert whole.compute() == pytest.approx(reference.value, rel=SAME)
    whole.reset()
    whole.merge(other)
    assert whole.compute() == other.compute()
    changed_one = i3d.FrechetVideoDistance(checkpoint, change_protocol(SMALL, {"frames": 10}))
    with pytest.raises(UsageError, match="frames: 16 and 10"):
        whole.merge(changed_one)


def test_a_network_in_memory(sets, checkpoint, reference):
    arrays, _ = sets
    model = i3d.load(checkpoint, trainable=True)
    metric = i3d.FrechetVideoDistance(model, SMALL, device="cpu")
    metric.update(arrays["real"])
    metric.update(arrays["fake"], real=False)
    result = metric.result()
    assert result.value == pytest.approx(reference.value, rel=SAME)
    assert result.weights.sha256 == reference.weights.sha256
    assert not model.folded and model.training
    with pytest.raises(CheckpointError, match="trainable=True"):
        i3d.FrechetVideoDistance(i3d.load(checkpoint))


def test_memory_does_not_grow(checkpoint):
    metric = i3d.FrechetVideoDistance(checkpoint, SMALL, device="cpu")
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(4):
        metric.update_features(rng.normal(size=(300, 3)))
        sizes.append(len(metric.state()))
    assert max(sizes) - min(sizes) < 16 * 3 * 8 + 2048  # less than a block of rows and a few sums
    with pytest.raises(UsageError, match="keep_features=True"):
        metric.update_features(rng.normal(size=(300, 3)), real=False)
        metric.result(kvd=True)


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros((2, 16, 8, 8, 3), np.float32), UsageError, r"value_range= \"0\.\.1\" or"),
        (np.zeros((2, 16, 8, 8, 3), np.int16), UsageError, "must be uint8 or floats"),
        (np.zeros((2, 3, 16, 8, 8), np.uint8), UsageError, r"8 channels.*with layout="),
        (np.zeros((16, 8, 8, 3), np.uint8), UsageError, "layout NTHWC has 5 axes"),
        (np.zeros((2, 0, 8, 8, 3), np.uint8), UsageError, "no frames"),
        (np.zeros((2, 15, 8, 8, 3), np.uint8), DatasetError, r"videos\[0\]: 15 frames; 16 frames"),
    ],
)
def test_what_are_no_videos_is_refused(checkpoint, array, error, message):
    metric = i3d.FrechetVideoDistance(checkpoint, SMALL, device="cpu")
    with pytest.raises(error, match=message):
        metric.update(array)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 8}, "at least 9"),
        ({"frames": 10**6}, "at most 4096"),
        ({"stride": 0}, "stride 0"),
        ({"endpoint": "Mixed_5c"}, "logits or features"),
        ({"bn_eps": 0.0}, "bn_eps"),
        ({"videos": 1}, "at least 2"),
        ({"size": 5000}, "32 to 1024"),
    ],
)
def test_settings_without_meaning_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        change_protocol("google-2018", changes)


def test_epsilon_is_the_protocols(checkpoint, tmp_path, capsys):
    """A state dict has none of its own; of one that differs a word is said."""
    state = i3d.load(checkpoint, trainable=True).state_dict()
    torch.save(state, tmp_path / "net.pt")
    ours = i3d.FrechetVideoDistance(checkpoint, "videogpt", device="cpu")
    bare = i3d.FrechetVideoDistance(tmp_path / "net.pt", "videogpt", device="cpu")
    assert ours.network.weights.sha256 == bare.network.weights.sha256
    google = i3d.FrechetVideoDistance(tmp_path / "net.pt", device="cpu")
    assert google.network.weights.sha256 == fingerprint(read_weights(checkpoint))


def test_a_flow_network_is_refused(tmp_path):
    i3d.save(small_model(stream="flow"), tmp_path / "flow.safetensors")
    with pytest.raises(CheckpointError, match="network for flow"):
        i3d.FrechetVideoDistance(tmp_path / "flow.safetensors")


# --- folders and shards ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(sets, tmp_path_factory):
    """The videos of the sets as files, at 10 frames a second; two more are damaged and short."""
    root = tmp_path_factory.mktemp("folders")
    for name, array in sets[0].items():
        for i, video in enumerate(array):
            write_video(root / name / f"{i}.mp4", video, rate=10)
    (root / "fake" / "broken.mp4").write_bytes(b"not a video")
    write_video(root / "fake" / "short.mp4", sets[0]["fake"][0][:12])
    return root


def decoded(folder):
    """PyAV's own conversion of every frame."""
    found = []
    for path in sorted(folder.glob("?.mp4")):
        with av.open(str(path)) as container:
            found.append([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    return np.array(found)


@pytest.fixture(scope="module")
def from_folders(folders, checkpoint):
    return fvd(
        folders / "real", folders / "fake", checkpoint=checkpoint, protocol=SMALL, options=FAST
    )


def test_files_give_every_frame_as_it_is(folders, checkpoint, from_folders):
    """No 25 fps, no short side of 256: as the sources, which are given arrays of frames."""
    metric = i3d.FrechetVideoDistance(checkpoint, SMALL, device="cpu")
    metric.update(decoded(folders / "real"))
    metric.update(decoded(folders / "fake"), real=False)
    assert from_folders.value == pytest.approx(metric.compute(), rel=SAME)
    assert "real=5:files fake=4:files" in from_folders.line


def test_every_video_is_accounted_for(from_folders):
    fake = from_folders.fake
    assert (fake.found, fake.used, fake.skipped, fake.left_out) == (6, 4, 2, 0)
    reasons = {r.key: r.reason for r in fake.reasons}
    assert "not a video" in reasons["broken"]
    assert "12 frames; 16 frames need 16" in reasons["short"]
    assert "fake: 6 found = 4 used + 2 skipped + 0 beyond" in str(from_folders)


def test_a_number_of_videos_leaves_the_rest(folders, checkpoint):
    result = fvd(
        folders / "real",
        folders / "fake",
        checkpoint=checkpoint,
        protocol=SMALL,
        changes={"videos": 3},
        options=FAST,
    )
    assert [(v.found, v.used, v.left_out) for v in (result.real, result.fake)] == [
        (5, 3, 2),
        (6, 3, 3),
    ]


def test_shards_are_named(folders, checkpoint, tmp_path):
    """Frames at 25 fps, short side 256, JPEG: another number, and another name."""
    videos_of = VideoSet(folders / "real", layout="flat")
    precompute(videos_of, tmp_path / "shards", settings=Settings(flow=False, short_side=48))
    result = fvd(
        tmp_path / "shards", folders / "fake", checkpoint=checkpoint, protocol=SMALL, options=FAST
    )
    assert result.name.endswith(", shards-kinetics-i3d-48")
    assert "real=5:shards-kinetics-i3d-48" in result.line
    assert result.value > 0


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def test_two_processes_give_the_same(folders, checkpoint):
    sets = folders / "real", folders / "fake"
    one = fvd(*sets, checkpoint=checkpoint, changes={"frames": 9}, options=FAST)
    command = [
        *(sys.executable, "-m", "i3d", "fvd", *map(str, sets), "--frames", "9"),
        *("--checkpoint", str(checkpoint), "--workers", "1", "--device", "cpu", "--json"),
    ]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": free_port()}
    running = [
        subprocess.Popen(
            command,
            env=os.environ | world | {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    report = json.loads(outputs[0][0])
    assert outputs[1][0] == ""
    assert report["fvd"] == pytest.approx(one.value, rel=SAME)
    assert report["fake"] == one.fake.as_dict()


# --- saved statistics, features, and files from elsewhere -----------------------------------------


@pytest.fixture(scope="module")
def statistics(sets, checkpoint, tmp_path_factory):
    """The real set's, as the command writes it."""
    path = tmp_path_factory.mktemp("statistics") / "real.npz"
    saved = save_set(
        sets[1] / "real.npy", path, checkpoint=checkpoint, protocol=SMALL, options=FAST
    )
    assert "5 videos, google-2018" in str(saved)
    return path


def test_statistics_stand_for_their_set(sets, checkpoint, reference, statistics):
    fake = sets[1] / "fake.npy"
    again = fvd(statistics, fake, checkpoint=checkpoint, protocol=SMALL, options=FAST)
    assert again.line == reference.line
    assert again.value == reference.value and again.analysis == reference.analysis
    with np.load(statistics, allow_pickle=False) as z:
        assert {"mu", "sigma", "n", "metadata", "features"} == set(z.files)
        np.testing.assert_allclose(z["sigma"], np.cov(z["features"].T), rtol=1e-12)


def test_statistics_of_two_sets_need_no_network(sets, checkpoint, reference, statistics, tmp_path):
    metric = i3d.FrechetVideoDistance(checkpoint, SMALL, device="cpu")
    metric.update(sets[0]["fake"], real=False)
    metric.save_statistics(tmp_path / "fake.npz", real=False)
    result = fvd(statistics, tmp_path / "fake.npz", checkpoint="nothing", options=FAST)
    assert result.value == pytest.approx(reference.value, rel=SAME)
    assert result.name == reference.name


def test_statistics_of_many_videos_are_sums(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    metric = i3d.FrechetVideoDistance(checkpoint, "stylegan-v", device="cpu")
    metric.update_features(rng.normal(size=(1000, 3)) + 100)
    metric.update_features(rng.normal(size=(900, 3)) + 101, real=False)
    for real in (True, False):
        metric.save_statistics(tmp_path / f"{real}.npz", real=real)
    with np.load(tmp_path / "True.npz") as z:
        assert set(z.files) == {"mu", "sigma", "n", "metadata"}
    result = fvd(tmp_path / "True.npz", tmp_path / "False.npz", options=FAST)
    assert result.value == pytest.approx(metric.compute(), rel=1e-9)
    assert result.protocol == PROTOCOLS["stylegan-v"]
    with pytest.raises(UsageError, match="need the features of every video"):
        fvd(tmp_path / "True.npz", tmp_path / "False.npz", options=FAST, beside=Beside(kvd=True))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"protocol": "stylegan-v"},
            'size: 224 and 64; resize: "half-pixel" and "tf1"; divisor: "n" and "n-1"; protocol',
        ),
        ({"changes": {"frames": 9}}, "frames: 9 and 16"),
        ({"options": replace(FAST, precision="bf16")}, 'precision: "bf16" and "fp32"'),
        ({"checkpoint": "other"}, r'weights: "[0-9a-f]{12}\.\.\." and "[0-9a-f]{12}'),
    ],
)
def test_statistics_made_otherwise_are_refused(
    sets, checkpoint, statistics, asked, message, tmp_path
):
    how = {"checkpoint": checkpoint, "protocol": SMALL, "options": FAST} | asked
    if how["checkpoint"] == "other":
        how["checkpoint"] = tmp_path / "other.safetensors"
        i3d.save(small_model(2, classes=CLASSES, num_classes=3, width=1 / 16), how["checkpoint"])
    with pytest.raises(UsageError, match=message):
        fvd(statistics, sets[1] / "fake.npy", **how)


def members(path):
    with np.load(path) as z:
        return dict(z)


def test_damaged_or_edited_statistics_are_refused(sets, checkpoint, statistics, tmp_path):
    def read(**changed_arrays):
        arrays = members(statistics) | changed_arrays
        np.savez(tmp_path / "x.npz", **{k: a for k, a in arrays.items() if a is not None})
        fvd(tmp_path / "x.npz", statistics, options=FAST)

    arrays = members(statistics)
    read()
    for name in ("mu", "sigma", "features"):
        with pytest.raises(DatasetError, match="do not match its seal"):
            read(**{name: arrays[name] + 1e-12})
    with pytest.raises(DatasetError, match="its seal does not match"):
        read(metadata=np.frombuffer(arrays["metadata"].tobytes().replace(b"fp32", b"bf16"), "u1"))
    for wrong in (
        {"n": None},
        {"extra": np.zeros(1)},
        {"mu": arrays["mu"].astype(np.float32)},
        {"sigma": arrays["sigma"][:2]},
        {"n": np.array(-1)},
        {"features": arrays["features"][:3]},
        {"metadata": np.zeros(1 << 20, np.uint8)},
        {"metadata": np.zeros(10)},
    ):
        with pytest.raises(DatasetError):
            read(**wrong)
    # a seal that matches a protocol that does not exist
    text = arrays["metadata"].tobytes().decode()
    head = text[: text.index(' "sha256": "', text.index("arrays_sha256"))]
    head = head.replace('"google-2018"', '"google-2088"')
    sealed = head + SEAL.format(hashlib.sha256(head.encode()).hexdigest())
    with pytest.raises(DatasetError, match="protocol 'google-2088'"):
        read(metadata=np.frombuffer(sealed.encode(), np.uint8))


def test_given_features(tmp_path):
    """Of any network: no protocol's name, and NumPy's and SciPy's number."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 12)), (rng.normal(size=(280, 12)) + 0.3).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez_compressed(tmp_path / "y.npz", features=y, other=np.zeros(3))
    result = fvd(tmp_path / "x.npy", tmp_path / "y.npz", options=FAST, beside=Beside(kvd=True))
    c1, c2 = np.cov(x.T), np.cov(y.astype(float).T)
    apart = x.mean(0) - y.mean(0, dtype=float)
    theirs = apart @ apart + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert result.value == pytest.approx(theirs, rel=1e-9)
    assert result.name == "given features, divisor=n-1"
    assert result.line.endswith(
        f"divisor=n-1 dimensions=12 real=300:features fake=280:features i3d={i3d.__version__}"
    )


def test_features_do_not_compare_with_videos(sets, checkpoint, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((5, 3)))
    with pytest.raises(UsageError, match="unknown network"):
        fvd(
            tmp_path / "x.npy",
            sets[1] / "fake.npy",
            checkpoint=checkpoint,
            protocol=SMALL,
            options=FAST,
        )


def test_arrays_in_an_npz_or_behind_a_url(sets, checkpoint, reference, tmp_path):
    np.savez_compressed(tmp_path / "real.npz", videos=sets[0]["real"], labels=np.zeros(5))
    with fsspec.open("memory://fvd/fake.npy", "wb") as f:
        np.save(f, sets[0]["fake"])
    result = fvd(
        tmp_path / "real.npz",
        "memory://fvd/fake.npy",
        checkpoint=checkpoint,
        protocol=SMALL,
        options=FAST,
    )
    assert result.value == reference.value


def header(descr, shape):
    """A .npy file that claims a shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable array"),
        (b"not an array", "not a readable array"),
        (header("|u1", (10**6, 10**6, 16, 64, 64, 3)), "not a readable array"),
        (header("|u1", (0, 16, 64, 64, 3)), "not a readable array|empty"),
        (header("|O", (3,)) + b"\0" * 24, "pickle, which is never loaded"),
        (header("<f8", (2, 3)) + b"\0" * 8, "not a readable array"),
    ],
)
def test_hostile_arrays_are_refused(data, message, tmp_path):
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(DatasetError, match=message):
        fvd(tmp_path / "x.npy", tmp_path / "x.npy", options=FAST)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", data)
    with pytest.raises(DatasetError, match=message):
        fvd(tmp_path / "x.npz", tmp_path / "x.npz", options=FAST)


def test_hostile_archives_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"PK but no archive")
    with pytest.raises(DatasetError, match="not a readable"), open_arrays(path):
        pass
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(100):
            archive.writestr(f"{i}.npy", b"")
    with pytest.raises(DatasetError, match="100 arrays"), open_arrays(path):
        pass
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escape.npy", header("<f4", (4, 2)) + bytes(32))
    with open_arrays(path) as contents:
        assert not list(tmp_path.parent.rglob("escape*"))
        assert contents.only()[1].shape == (4, 2)
    data = bytearray(path.read_bytes())
    data[data.index(b"\x93NUMPY"[1:]) if b"NUMPY" in data else 60] ^= 255
    path.write_bytes(data)
    with pytest.raises(DatasetError), open_arrays(path):
        pass


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((2, 2)), "b": np.zeros((2, 2))}, "name one of them"),
        ({"mu": np.zeros(2), "sigma": np.eye(2)}, "name one of them 'videos' or 'features'"),
        ({"a": np.zeros((4, 4), int)}, "features are float"),
        ({"a": np.zeros((2, 3, 4))}, "can be none of NTHWC, NTCHW, NCTHW"),
    ],
)
def test_other_arrays_are_refused(arrays, message, checkpoint, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        fvd(
            tmp_path / "x.npz",
            tmp_path / "x.npz",
            checkpoint=checkpoint,
            protocol=SMALL,
            options=FAST,
        )


def test_too_few_videos_say_why(folders, checkpoint, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(DatasetError, match=r"0 of 1 fake videos.*broken"):
        fvd(folders / "real", tmp_path, checkpoint=checkpoint, protocol=SMALL, options=FAST)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def run(capsys):
    """Function: arguments -> (exit code, standard output, standard error)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["fvd", *map(str, arguments)])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return call


def test_the_command(run, sets, checkpoint, tmp_path):
    real, fake = sets[1] / "real.npy", sets[1] / "fake.npy"
    reference = fvd(real, fake, checkpoint=checkpoint, changes={"frames": 9}, options=FAST)
    common = ("--checkpoint", checkpoint, "--workers", 0, "--device", "cpu", "--frames", 9)
    code, out, err = run(
        *(real, fake, *common, "--kvd", "--save-statistics", tmp_path / "s.npz"),
        *("--plot", tmp_path / "p.png", "--output", tmp_path / "o.json"),
    )
    assert code == 0
    assert out.startswith(reference.line + "\nKVD ")
    assert "warning: 5 real and 4 fake videos" in out
    assert [f"wrote {tmp_path / name}" in err for name in ("o.json", "p.png", "s.npz")] == [
        True
    ] * 3
    assert cv2.imread(str(tmp_path / "p.png")).std() > 5
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["fvd"] == reference.value and report["kvd"] is not None
    code, out, _ = run(tmp_path / "s.npz", fake, *common, "--json")
    assert (code, json.loads(out)["line"]) == (0, reference.line)
    code, out, _ = run(real, *common, "--save-statistics", tmp_path / "t.npz")
    assert (code, out[: out.index(":")]) == (0, str(tmp_path / "t.npz"))
    assert (tmp_path / "t.npz").read_bytes() == (tmp_path / "s.npz").read_bytes()


def test_strict_counts_skipped_videos(run, folders, checkpoint):
    arguments = ("--checkpoint", checkpoint, "--workers", 0, "--device", "cpu", "--strict")
    arguments += ("--frames", 9, "--videos", 6)
    assert run(folders / "real", folders / "fake", *arguments)[0] == 1
    assert run(folders / "real", folders / "real", *arguments)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("FAKE", "--frames", 8), "at least 9"),
        (("FAKE", "--protocol", "fid"), "is not one of"),
        (("FAKE", "--plot", "curve.pdf"), "a plot is a .png file"),
        (("FAKE", "--save-statistics", "real.pt"), "an .npz file"),
        ((), "FAKE is missing"),
        (("--save-statistics", "x.npz", "--kvd"), "FAKE is missing"),
        (("one.mp4",), "is one video"),
    ],
)
def test_mistakes_in_the_call(run, sets, checkpoint, arguments, message):
    fake = sets[1] / "fake.npy"
    given = [fake if a == "FAKE" else a for a in arguments]
    code, out, err = run(sets[1] / "real.npy", *given, "--checkpoint", checkpoint)
    assert (code, out) == (2, "")
    assert message in err


# --- real clips and the original's network --------------------------------------------------------


@pytest.mark.slow
def test_real_clips_in_float64(bundle_folder, tmp_path):
    """Windows of three real videos through the network that TensorFlow made, for each protocol."""
    checkpoint = bundle_folder("rgb400")
    cut = []
    for path in sorted(shared("clips").iterdir()):
        frames = i3d.read_video(path, fps=None, short_side=None)
        cut += [frames[i : i + 16, :240, :320] for i in (0, 40, 80)]
    sets = np.array(cut[::2]), np.array(cut[1::2])
    for name, array in zip(("real", "fake"), sets, strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    for protocol in PROTOCOLS.values():
        if protocol.frames_needed > 16:  # as the windows have
            continue
        result = fvd(
            tmp_path / "real.npy",
            tmp_path / "fake.npy",
            checkpoint=checkpoint,
            protocol=protocol.name,
            changes={"context": 2} if protocol.name == "prediction" else {},
            options=FAST,
        )
        value, _, settings = parse(result.line)
        theirs, _, _ = independent_fvd(settings, *sets)
        assert value == pytest.approx(theirs, rel=1e-4)


def test_names_in_messages_are_the_users(checkpoint):
    with pytest.raises(I3DError, match=re.escape("/no/such/folder")):
        fvd(
            "/no/such/folder",
            "/no/such/folder",
            checkpoint=checkpoint,
            protocol=SMALL,
            options=FAST,
        )
    with pytest.raises(DatasetError, match=re.escape("/no/such.npy: no such file")):
        fvd("/no/such.npy", "/no/such.npy", checkpoint=checkpoint, protocol=SMALL, options=FAST)
