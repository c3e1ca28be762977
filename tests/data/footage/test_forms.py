"""The same videos in every form give the same frames."""

import pickle

import numpy as np
import pytest

from i3d.data.footage.opening import open_footage

FORMS = ["mp4", "png", "frames.zip", "frames.tar", "frames.tar.gz", "stored.zip", "deflated.zip"]
FORMS += ["videos.tar", "all.npy", "gap.npy", "all.pt", "all.safetensors", "npy", "npz", "pt"]
FORMS += ["safetensors"]


def read_all(footage):
    for i in range(len(footage.keys)):
        with footage.open(i) as video:
            count = video.count_frames()
            yield list(video.read(range(count + 2)))
            assert video.damage is None


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_frames(forms, fake_videos, form):
    """To the bit, also in another process, and frames that are asked for alone or again."""
    assert list(forms) == list(dict.fromkeys([*forms, *FORMS]))
    with open_footage(forms[form]) as opened:
        footage = pickle.loads(pickle.dumps(opened.footage))  # noqa: S301 (our own)
        for ours, theirs in zip(read_all(footage), fake_videos, strict=True):
            assert all(frame.dtype == np.uint8 for frame in ours)
            np.testing.assert_array_equal(ours, theirs)
        with footage.open(2) as video:
            some = list(video.read([3, 3, 9, 17, 18]))
        np.testing.assert_array_equal(some, fake_videos[2, [3, 3, 9, 17]])
