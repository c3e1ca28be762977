"""FVD against the programs that it comes from: what their own code made of small videos.

`tests/support/make_fvd_goldens.py` says which programs, and how.
"""

import numpy as np
import pytest
import torch
from support import fvd_sources
from support.golden import REFERENCE

import i3d
from i3d.tasks.fvd.pixels import prepare_frames, quantize, resize_first
from i3d.tasks.fvd.protocols import PROTOCOLS, change_protocol

FIRST = {  # the resize to a data set's resolution -> protocol
    "cd-fvd/first-videos": "cd-fvd",
    "cd-fvd/first-frames": "cd-fvd-frames",
    "videogpt/first": "videogpt",
    "stylegan-v/first": "stylegan-v",
}
SECOND = {  # what the network sees -> protocol
    "cd-fvd/second": "cd-fvd",
    "common-metrics/videogpt-second": "common-metrics-videogpt",
    "common-metrics/styleganv-second": "common-metrics-styleganv",
    "videogpt/second": "videogpt",
    "mcvd/second": "prediction",
}
SCORES = {  # program -> protocol; cd-fvd resizes and cuts no arrays
    "cd-fvd/": ("cd-fvd", {"resolution": None, "clips": "first"}),
    "common-metrics/videogpt-": ("common-metrics-videogpt", {}),
    "common-metrics/styleganv-": ("common-metrics-styleganv", {}),
}
ARITHMETIC = {  # relative error of the program's own distance of its features
    "cd-fvd/": 2e-6,  # measured 4.5e-7: sqrtm of a singular matrix
    "common-metrics/videogpt-": 1e-3,  # measured 1.8e-4: roots of covariances in float32
    "common-metrics/styleganv-": 2e-6,  # measured 6.1e-7: sqrtm
}
SOME = 2  # videos of a set; all of them take minutes

pytestmark = pytest.mark.filterwarnings("ignore::i3d.tasks.fvd.result.FewVideosWarning")


@pytest.fixture(scope="module")
def golden():
    with np.load(REFERENCE / "fvd_sources.npz") as z:
        return dict(z)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "i3d_pretrained_400.pt"
    fvd_sources.save_weights(path)
    return path


@pytest.mark.parametrize("shape", fvd_sources.SHAPES)
@pytest.mark.parametrize("step", FIRST)
def test_the_first_resize_is_theirs(step, shape, golden):
    """To the bit: filter, sizes, the crop's place, and what becomes of fractions of a level."""
    protocol = change_protocol(FIRST[step], {"resolution": fvd_sources.RESOLUTION})
    frames = torch.from_numpy(fvd_sources.frames(*shape))
    ours = quantize(resize_first(frames, protocol), protocol)
    theirs = golden[f"{step}/{shape[0]}x{shape[1]}"]
    np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("cd-fvd", "cd-fvd"),
        ("common-metrics/videogpt", "common-metrics-videogpt"),
    ],
)
def test_all_levels_stay_what_they_are(program, name, golden):
    """Divided by 255, times 255, and cut to 8 bits: float32 gives every level back."""
    path = f"{program}/levels" if "/" not in program else f"{program}-levels"
    protocol = change_protocol(name, {"resolution": 16})
    ours = quantize(resize_first(torch.from_numpy(fvd_sources.levels()), protocol), protocol)
    np.testing.assert_array_equal(ours.numpy(), golden[path])


def test_videogpt_darkens_real_videos_that_need_no_resize(golden):
    """Its data set takes 0.5 off and its script adds it: in float32 levels 1 to 63 lose one.

    Generated ones do not go that way, so it is no property of the protocol: nothing is done here
    to a frame that has its resolution.
    """
    levels = fvd_sources.levels()
    lost = (levels >= 1) & (levels <= 63)
    np.testing.assert_array_equal(golden["videogpt/levels"], levels - lost)
    protocol = change_protocol("videogpt", {"resolution": 16})
    ours = quantize(resize_first(torch.from_numpy(levels), protocol), protocol)
    np.testing.assert_array_equal(ours.numpy(), levels)


@pytest.mark.parametrize("shape", fvd_sources.SHAPES)
@pytest.mark.parametrize("step", SECOND)
def test_the_network_sees_what_theirs_sees(step, shape, golden):
    changes = {"size": fvd_sources.RESOLUTION, "resolution": None, "context": 1}
    protocol = change_protocol(SECOND[step], changes)
    frames = torch.from_numpy(fvd_sources.frames(*shape))
    ours = prepare_frames(frames, protocol).numpy() * 2 / 255 - 1
    theirs = golden[f"{step}/{shape[0]}x{shape[1]}"]
    # measured 8.3e-7, where they divide by 255 before the resize; 0 with cd-fvd, which does after
    np.testing.assert_allclose(ours[:1, ::2], theirs, rtol=0, atol=2e-6)


def open_metric(program, checkpoint, **changes):
    name, own = SCORES[program]
    return i3d.FrechetVideoDistance(checkpoint, change_protocol(name, own | changes), device="cpu")


@pytest.mark.parametrize("program", SCORES)
def test_features_are_theirs(program, golden, checkpoint):
    """From frames to features, of the same weights in their own file's format."""
    metric = open_metric(program, checkpoint)
    some = [fvd_sources.videos(real)[:SOME] for real in (True, False)]
    theirs = golden[f"{program}features"].reshape(2, fvd_sources.VIDEOS, -1)[:, :SOME]
    ours = metric.features(np.concatenate(some))
    # measured 6.7e-6 where they reach 13, fp32 CPU
    np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=0, atol=1e-4)


@pytest.mark.parametrize("program", SCORES)
def test_the_distance_of_their_features_is_theirs(program, golden, checkpoint):
    metric = open_metric(program, checkpoint)
    sets = np.split(golden[f"{program}features"], 2)
    for real, features in zip((True, False), sets, strict=True):
        metric.update_features(features, real)
    assert metric.compute() == pytest.approx(golden[f"{program}exact"], rel=1e-10)
    theirs = np.atleast_1d(golden[f"{program}fvd"])[-1]
    assert metric.compute() == pytest.approx(theirs, rel=ARITHMETIC[program])


def test_the_distance_of_videogpts_program_is_common_metrics(golden):
    """Both carry the same code, and feed it the same bytes."""
    assert golden["videogpt/exact"] == golden["common-metrics/videogpt-exact"]
    theirs = golden["common-metrics/videogpt-fvd"][-1]
    assert golden["videogpt/fvd"] == pytest.approx(theirs, rel=1e-5)


def test_the_distance_of_mcvds_program_is_common_metrics(golden):
    """Its network, its pictures and its formula are those of the method ``styleganv``."""
    assert golden["mcvd/exact"] == golden["common-metrics/styleganv-exact"]
    prediction, other = PROTOCOLS["prediction"].settings, PROTOCOLS["common-metrics-styleganv"]
    assert prediction == other.settings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "frames"),
    [
        ("cd-fvd/", fvd_sources.LENGTH),  # it takes all frames
        *(("common-metrics/videogpt-", n) for n in fvd_sources.LENGTHS),
        *(("common-metrics/styleganv-", n) for n in fvd_sources.LENGTHS),
    ],
)
def test_the_distance_of_their_videos_is_theirs(program, frames, golden, checkpoint):
    """End to end: common_metrics gives a distance for every length from 10 frames on."""
    theirs = golden[f"{program}fvd"]
    if theirs.ndim:
        theirs = theirs[fvd_sources.LENGTHS.index(frames)]
    metric = open_metric(program, checkpoint, frames=frames)
    for real in (True, False):
        metric.update(fvd_sources.videos(real), real=real)
    # measured 1.2e-6 beside the program's own arithmetic
    assert metric.compute() == pytest.approx(theirs, rel=ARITHMETIC[program] + 1e-5)
