"""Which frames are looked at, told by hand, and by the distribution of random clips."""

import numpy as np
import pytest
from scipy.stats import chisquare

from i3d.errors import DatasetError
from i3d.tasks.fvd.cutting import cut_every, cut_one
from i3d.tasks.fvd.protocols import change_protocol


def protocol(**changes):
    return change_protocol("google-2018", {"frames": 9, **changes})


def never():
    raise AssertionError("the video's length was asked for, which decodes all of it")


def test_the_first_clip_needs_no_length():
    assert cut_one("a", never, protocol()) == list(range(9))
    assert cut_one("a", never, protocol(stride=3)) == list(range(0, 25, 3))


def test_given_frames_are_counted_or_dropped():
    assert cut_one("a", never, protocol(context=4)) == list(range(9))
    assert cut_one("a", never, protocol(context=4, context_frames="dropped")) == list(range(4, 13))


def test_every_clip_without_overlap():
    assert list(cut_every(29, protocol())) == [[*range(9)], [*range(9, 18)], [*range(18, 27)]]
    dropped = protocol(context=3, context_frames="dropped")
    assert [cut[0] for cut in cut_every(29, dropped)] == [3, 12]


def test_random_clips_are_uniform_and_the_videos_own():
    """30 places for a clip; each video's depends on its name and the seed alone."""
    some = protocol(clips="random", seed=7)
    starts = [cut_one(f"video {i}", lambda: 38, some)[0] for i in range(6000)]
    assert chisquare(np.bincount(starts, minlength=30)).pvalue > 1e-3 and max(starts) == 29
    assert starts[:50] == [cut_one(f"video {i}", lambda: 38, some)[0] for i in range(50)]
    other = [cut_one(f"video {i}", lambda: 38, protocol(clips="random"))[0] for i in range(50)]
    assert starts[:50] != other


def test_short_videos_loop_or_stretch():
    assert cut_one("a", lambda: 4, protocol(short="loop")) == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert cut_one("a", lambda: 4, protocol(short="stretch")) == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    dropped = protocol(short="loop", context=2, context_frames="dropped")
    assert cut_one("a", lambda: 5, dropped) == [2, 3, 4, 2, 3, 4, 2, 3, 4]
    assert list(cut_every(4, protocol(short="loop"))) == [[0, 1, 2, 3, 0, 1, 2, 3, 0]]


@pytest.mark.parametrize("rule", [{"clips": "random"}, {"clips": "every"}, {"short": "loop"}])
def test_too_short_is_refused_with_the_remedy(rule):
    some = protocol(context=9, context_frames="dropped", **rule)
    with pytest.raises(DatasetError, match=r"9 frames; 9 frames after the 9 given ones need 18"):
        list(cut_every(9, some))


def test_styleganv_wants_whole_strides():
    """It leaves out videos of fewer than 128 frames, of which it looks at the first 121."""
    eighths = change_protocol("stylegan-v-128f-subsample8f", {})
    assert eighths.frames_needed == 128
    assert cut_one("a", never, eighths) == list(range(0, 121, 8))
    with pytest.raises(DatasetError, match="127 frames; 16 frames at stride 8 need 128"):
        list(cut_every(127, eighths))
