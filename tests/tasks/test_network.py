"""Networks of one job, and the frames that they were made for."""

import pytest
from support.bundles import small_model

from i3d.errors import CheckpointError
from i3d.tasks.network import common_preset, load_network


def networks(rgb, flow):
    presets = {"rgb": rgb, "flow": flow}
    return {s: load_network(small_model(stream=s, preset=p)) for s, p in presets.items()}


def test_the_preset_is_that_of_all_networks_and_of_the_shards():
    pair = networks("kinetics-i3d-48", "kinetics-i3d-48")
    assert common_preset(pair, None) == common_preset(pair, "kinetics-i3d-48") == "kinetics-i3d-48"


@pytest.mark.parametrize(
    ("presets", "shards", "words"),
    [
        (
            ("kinetics-i3d", "kinetics-i3d-48"),
            None,
            "the flow network was made for preset kinetics-i3d-48, and the other checkpoint for "
            "kinetics-i3d",
        ),
        (
            ("kinetics-i3d", "kinetics-i3d"),
            "kinetics-i3d-48",
            "the rgb network was made for preset kinetics-i3d, and the shards for kinetics-i3d-48",
        ),
    ],
)
def test_networks_that_need_other_frames_are_refused(presets, shards, words):
    with pytest.raises(CheckpointError, match=f"^{words}$"):
        common_preset(networks(*presets), shards)
