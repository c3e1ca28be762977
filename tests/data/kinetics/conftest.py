"""Folders of files without content, which is never looked at."""

import pytest
from support.kinetics import HEADER


@pytest.fixture
def tree(tmp_path):
    """Writes files given as {path: text} under a folder, and returns the folder."""

    def make(files, top="data"):
        for name, text in files.items() if isinstance(files, dict) else ((n, "") for n in files):
            path = tmp_path / top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / top

    return make


@pytest.fixture
def k400(tree):
    """The layout of CVDF's mirror, three classes of it."""
    rows = [
        ("digging", "-_a-b_c-d_e", 5, 15, "val"),
        ('"arm wrestling"', "abcdefghijk", 0, 10, "val"),
        ('"passing American football (in game)"', "0_-0_-0_-00", "30.0", "40.0", "val"),
        ("zumba", "gone-_-gone", 1, 11, "val"),
        ("zumba", "replaced000", 2, 12, "val"),
        ("zumba", "replaced111", 3, 13, "val"),
    ]
    text = HEADER + "".join(",".join(map(str, row)) + ",0\n" for row in rows)
    good = "replacement/replacement_for_corrupted_k400"
    return tree(
        {
            "annotations/val.csv": text,
            "annotations/train.csv": HEADER,
            "val/-_a-b_c-d_e_000005_000015.mp4": "",
            "val/abcdefghijk_000000_000010.mkv": "",
            "val/0_-0_-0_-00_000030_000040.webm": "",
            "val/replaced000_000002_000012.mp4": "",
            "val/unlisted000_000000_000010.mp4": "",
            f"{good}/replaced000_000002_000012.mp4": "",
            f"{good}/replaced111_000003_000013.mp4": "",
            f"{good}/elsewhere00_000003_000013.mp4": "",
        },
        "k400",
    )
