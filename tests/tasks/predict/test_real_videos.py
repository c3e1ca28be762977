"""From real videos to the logits of the released network: TensorFlow 1.15's numbers.

TensorFlow ran the original i3d.py; its frames were made without this project (PyAV, OpenCV).
"""

import hashlib

import numpy as np
import pytest
import torch
from support.golden import shared

import i3d
from i3d.clips import center_crop, rgb_clip
from i3d.models.i3d import TABLE
from i3d.tasks.predict import Predictor

FRAMES = 250  # 10 s at 25 fps
SNIPPET_FRAMES = 64

# The avi's class is not known: what the original network says.
CLIPS = {
    "arm_wrestling_340x256_28fps.mp4": "arm wrestling",
    "v_GGSY1Qvo990_320x240_19.62fps.mp4": "clean and jerk",
    "mpeg4_320x240_25fps.avi": "filling eyebrows",
}


@pytest.fixture(scope="module")
def predictor(rgb_scratch):
    return Predictor([rgb_scratch], device="cpu")


@pytest.fixture(scope="module")
def frames_of():
    """Function: clip -> what the network sees of it, uint8 (T, 224, 224, 3), read once."""
    read = {}

    def get(clip: str) -> np.ndarray:
        if clip not in read:
            frames = i3d.read_video(shared("clips", clip), end_seconds=FRAMES / 25)
            read[clip] = np.ascontiguousarray(center_crop(frames, 224))
        return read[clip]

    return get


def reference(clip: str) -> dict[str, np.ndarray]:
    """TensorFlow's answers, and the hash of the frames that it saw."""
    with np.load(shared("reference", "real", f"{clip.rpartition('.')[0]}.npz")) as z:
        return dict(z)


@pytest.mark.parametrize("clip", CLIPS)
def test_frames_are_the_originals_to_the_bit(frames_of, clip):
    expected, frames = reference(clip), frames_of(clip)
    assert len(frames) == expected["frames"]
    assert hashlib.sha256(frames).hexdigest() == expected["input_sha256"]


@pytest.mark.parametrize("clip", CLIPS)
def test_prediction_has_the_originals_logits(predictor, clip):
    expected = reference(clip)
    prediction = predictor.predict(shared("clips", clip))
    (window,) = prediction.windows
    # measured 1.1e-5 at most, where logits reach 36; fp32 CPU
    np.testing.assert_allclose(window.logits, expected["logits"][0], rtol=0, atol=1e-4)
    best = np.argsort(-expected["predictions"][0])[:5]
    assert [score.index for score in prediction.predictions] == best.tolist()
    assert prediction.predictions[0].name == CLIPS[clip]
    np.testing.assert_allclose(
        [score.probability for score in prediction.predictions],
        expected["predictions"][0, best],
        rtol=0,
        atol=1e-5,  # measured 2.4e-7 at most
    )


@pytest.mark.parametrize(
    "trainable", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["folded", "unfolded"]
)
@pytest.mark.parametrize("clip", CLIPS)
def test_every_endpoint_of_a_snippet_is_the_originals(
    predictor, rgb_scratch, frames_of, clip, trainable
):
    expected = reference(clip)
    model = predictor.models[0]
    if trainable:
        model = i3d.load(rgb_scratch, trainable=True).eval()
    with torch.inference_mode():
        ends = model.endpoints(rgb_clip(frames_of(clip)[:SNIPPET_FRAMES])[None])
    for name, _ in TABLE:
        ours = ends[name].permute(0, 2, 3, 4, 1).numpy()  # (N, C, T, H, W) -> (N, T, H, W, C)
        assert list(ours.shape) == list(expected[f"{name}/shape"])
        np.testing.assert_allclose(
            ours.reshape(-1)[expected[f"{name}/flat"]],
            expected[f"{name}/values"],
            rtol=0,
            atol=1e-4,  # measured 1.5e-5 folded, 8.5e-6 unfolded
            err_msg=name,
        )
        assert ours.mean(dtype=np.float64) == pytest.approx(expected[f"{name}/mean"], abs=1e-6)
    # measured 3.5e-5 folded, 1.9e-5 unfolded
    np.testing.assert_allclose(ends["Logits"], expected["logits64"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(ends["Predictions"], expected["predictions64"], rtol=0, atol=1e-5)
