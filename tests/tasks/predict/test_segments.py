"""What happens when: windows of one class are one segment, and doubt is said."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from support.golden import shared
from support.videos import noise_images, write_video

import i3d
from i3d.tasks.predict.result import Window
from i3d.tasks.predict.segments import SURE, find_cuts, find_segments

CLASSES = ("a", "b", "c", "d")


def window(start, end, *shares):
    """A window whose softmax is ``shares``, the rest the last class's."""
    rest = 1 - sum(shares)
    logits = np.log(np.array([*shares, *[1e-9] * (3 - len(shares)), rest]) + 1e-12)
    frame = np.zeros((2, 2, 3), np.uint8)
    return Window(start, end, (logits + 5).astype(np.float32), frame)


def spans(windows):
    return [(s.start_seconds, s.end_seconds, s.name) for s in find_segments(windows, CLASSES)]


def test_neighbours_of_one_class_are_one_segment():
    windows = [window(0, 1, 0.9), window(1, 2, 0.8), window(2, 3, 0.05, 0.9), window(3, 3.5, 0.95)]
    segments = find_segments(windows, CLASSES)
    assert spans(windows) == [(0, 2, "a"), (2, 3, "b"), (3, 3.5, "a")]
    assert [s.index for s in segments] == [0, 1, 0]
    assert [s.probability for s in segments] == pytest.approx([0.85, 0.9, 0.95], abs=1e-5)


def test_windows_that_are_not_sure_are_one_segment_without_a_class():
    """Whichever of the classes is ahead in them."""
    windows = [window(0, 1, 0.6), window(1, 2, 0.3, 0.5), window(2, 3, 0.71)]
    first, second = find_segments(windows, CLASSES)
    assert (first.start_seconds, first.end_seconds) == (0, 2)
    assert first.name is first.index is first.probability is None
    assert (second.name, second.start_seconds) == ("a", 2)
    assert str(first) == "     0.0 -     2.0 s  uncertain"
    assert str(replace(second, name="100% wool")) == "     2.0 -     3.0 s  100% wool  71 %"
    assert str(second) == "     2.0 -     3.0 s  a  71 %"
    assert 0.6 < SURE < 0.71


def test_what_nobody_looked_at_parts_segments():
    assert spans([window(0, 1, 0.9), window(5, 6, 0.9)]) == [(0, 1, "a"), (5, 6, "a")]


def test_a_window_over_a_cut_is_divided_there():
    """Its own answer counts for nothing where windows beside it saw one shot each."""
    before, after = window(0, 2, 0.9), window(4, 6, 0.05, 0.8)
    over = replace(window(2, 4, 0.0, 0.0, 0.99), cuts=(2.5,))
    assert spans([before, over, after]) == [(0, 2.5, "a"), (2.5, 6, "b")]
    segments = find_segments([before, over, after], CLASSES)
    assert [s.probability for s in segments] == pytest.approx([0.9, 0.8], abs=1e-5)


def test_a_shot_that_begins_with_a_window_is_its_own():
    """Its neighbour in time is of another shot, and says nothing of it."""
    before, after = window(0, 2, 0.9), window(4, 6, 0.05, 0.0, 0.9)
    short = replace(window(2, 4, 0.0, 0.9), cuts=(2.0, 3.0))
    assert spans([before, short, after]) == [(0, 2, "a"), (2, 3, "b"), (3, 6, "c")]
    last = replace(window(4, 6, 0.0, 0.0, 0.9), cuts=(4.0, 5.0))
    assert spans([before, short, last]) == [(0, 2, "a"), (2, 4, "b"), (4, 6, "c")]


def test_a_shot_that_no_window_saw_alone_keeps_the_answers_of_its_windows():
    first = replace(window(0, 2, 0.9), cuts=(1.5,))
    second = replace(window(2, 4, 0.0, 0.9), cuts=(2.5, 3.0))
    assert spans([first, second]) == [(0, 2, "a"), (2, 4, "b")]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_shot_has_no_cuts(count):
    assert find_cuts(noise_images(count, 64, 48)) == ()  # noise is usual in its window


def test_cuts_are_where_the_picture_changes_at_once():
    rng = np.random.default_rng(0)
    scenes = [rng.integers(0, 256, (6, 8, 3), np.uint8) for _ in range(3)]
    frames = []
    for scene, length in zip(scenes, (10, 1, 8), strict=True):
        large = cv2.resize(scene, (64, 48), interpolation=cv2.INTER_CUBIC).astype(int)
        frames += [np.clip(large + 3 * (i % 2), 0, 255).astype(np.uint8) for i in range(length)]
    assert find_cuts(np.stack(frames)) == (10, 11)
    assert find_cuts(np.stack(frames[10:]), before=frames[9]) == (0, 1)
    assert find_cuts(np.stack(frames[11:]), before=frames[11]) == ()
    dissolve = [(i * frames[0].astype(float) + (24 - i) * frames[-1]) / 24 for i in range(25)]
    assert find_cuts(np.stack(dissolve).astype(np.uint8)) == ()


def test_every_window_is_in_one_segment(networks, video):
    prediction = i3d.predict(video, networks["rgb"], every_seconds=0.36)
    ends = [s.end_seconds for s in prediction.segments]
    starts = [s.start_seconds for s in prediction.segments]
    assert starts == [0.0, *ends[:-1]] and ends[-1] == prediction.windows[-1].end_seconds
    document = json.loads(json.dumps(prediction.as_dict()))
    assert "predictions" not in document and len(document["windows"]) == len(prediction.windows)
    keys = {"start_seconds", "end_seconds", "class", "index", "probability"}
    assert all(set(segment) == keys for segment in document["segments"])


JOINED = [  # clip, seconds of it, what it is called
    ("v_GGSY1Qvo990_320x240_19.62fps.mp4", (9.0, 14.0), "clean and jerk"),
    ("arm_wrestling_340x256_28fps.mp4", (0.0, 6.0), "arm wrestling"),
    ("mpeg4_320x240_25fps.avi", (0.0, 6.0), "filling eyebrows"),
]


def test_real_clips_joined_end_to_end(rgb_scratch, tmp_path):
    """Nine tenths of the labelled time are right, and boundaries within a window of the cuts."""
    images, cuts = [], [0.0]
    for clip, (start, end), _ in JOINED:
        found = i3d.read_video(shared("clips", clip), start_seconds=start, end_seconds=end)
        images += list(found[:, :, :340])
        cuts.append(len(images) / 25)
    path = tmp_path / "joined.mp4"
    write_video(path, images, options={"crf": "18"})
    prediction = i3d.predict(path, rgb_scratch, every_seconds=2.56, device="cpu")
    labelled = [s for s in prediction.segments if s.name is not None]
    right = sum(
        max(0.0, min(s.end_seconds, end) - max(s.start_seconds, start))
        for s in labelled
        for (_, _, name), start, end in zip(JOINED, cuts, cuts[1:], strict=False)
        if s.name == name
    )
    total = sum(s.end_seconds - s.start_seconds for s in labelled)
    assert total > 0.6 * cuts[-1] and right > 0.9 * total, prediction
    edges = [edge for s in prediction.segments for edge in (s.start_seconds, s.end_seconds)]
    assert all(min(abs(edge - cut) for edge in edges) < 2.56 for cut in cuts)
    assert cuts[1:-1] == pytest.approx([c for w in prediction.windows for c in w.cuts][-2:])
