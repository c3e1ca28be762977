"""Named preprocessing settings."""

import pytest

from i3d.errors import UsageError
from i3d.presets import KINETICS_I3D, find_preset, preset_with_short_side


def test_the_original_is_the_papers_protocol():
    p = find_preset("kinetics-i3d")
    assert (p.fps, p.short_side, p.crop, p.clip_frames) == (25, 256, 224, 250)
    assert p.flow_bound_pixels == 20
    assert preset_with_short_side(256) is p is KINETICS_I3D


def test_smaller_ones_keep_the_proportions():
    p = find_preset("kinetics-i3d-128")
    assert (p.name, p.short_side, p.crop, p.clip_frames) == ("kinetics-i3d-128", 128, 112, 250)
    assert preset_with_short_side(128) == p


@pytest.mark.parametrize("height", [256, 341, 455])
def test_the_chainer_programs_centre_is_rounded(height):
    """As chainercv's center_crop: ``int(round((H - 224) / 2.))``."""
    p = find_preset("chainer-i3d")
    assert p.find_corner(height, 256) == (round((height - 224) / 2.0), 16)
    assert find_preset("kinetics-i3d").find_corner(height, 256) == ((height - 224) // 2, 16)


def test_pictures_of_one_size_fit_all_networks_of_it():
    names = "kinetics-i3d", "chainer-i3d", "chainer-i3d-converted"
    presets = [find_preset(name) for name in names]
    assert [p.name for p in presets] == list(names)
    assert all(p.fits(other) and p.of_videos is KINETICS_I3D for p in presets for other in presets)
    assert not find_preset("kinetics-i3d-128").fits(presets[0])


@pytest.mark.parametrize("name", ["", "kinetics", "kinetics-i3d-256", "kinetics-i3d-0128000"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UsageError, match="kinetics-i3d-N"):
        find_preset(name)
