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


@pytest.mark.parametrize("name", ["", "kinetics", "kinetics-i3d-256", "kinetics-i3d-0128000"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UsageError, match="kinetics-i3d-N"):
        find_preset(name)
