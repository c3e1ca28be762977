"""A key is unique, portable, and gives the name back."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from i3d.data.kinetics import VIDEO_SUFFIXES, read_dataset
from i3d.data.kinetics.dataset import make_keys


def test_keys_keep_the_suffix_only_where_needed(tree):
    root = tree(
        ["digging/a.mp4", "digging/a.mkv", "digging/a.mp4.mp4", "digging/b.v2.mp4", "vault/a.mp4"]
    )
    assert [(v.key, unquote(v.key)) for v in read_dataset(root).videos] == [
        ("digging/a%2Emkv", "digging/a.mkv"),
        ("digging/a%2Emp4", "digging/a.mp4"),
        ("digging/a%2Emp4%2Emp4", "digging/a.mp4.mp4"),
        ("digging/b%2Ev2", "digging/b.v2"),
        ("vault/a", "vault/a"),
    ]


def test_names_that_are_no_utf8(tree):
    root = tree(["digging/a.mp4"])
    Path(os.fsdecode(os.fsencode(root) + b"/digging/\xff\n.mp4")).touch()
    dataset = read_dataset(root)
    assert [v.key for v in dataset.videos] == ["digging/%FF%0A", "digging/a"]
    assert Path(dataset.videos[0].location).exists()


names = st.binary(min_size=1, max_size=6).map(os.fsdecode).filter(lambda n: not set("/\0") & set(n))
paths = st.builds(
    "{}/{}{}".format,
    st.sampled_from(["digging", "a.b", ".."]),
    st.one_of(names, st.sampled_from(["a", "a.mp4", "a%2Emp4", "a.mkv", "."])),
    st.sampled_from(["", ".mp4", ".MP4", ".mkv"]),
).map(lambda name: name + ".mp4")


@given(st.sets(paths, max_size=12).map(sorted))
def test_keys_are_unique_portable_and_reversible(paths):
    keys = make_keys(paths)
    assert len(set(keys)) == len(paths)
    for key, path in zip(keys, paths, strict=True):
        assert re.fullmatch(r"[A-Za-z0-9 /_~'()%-]+", key)
        name = unquote(key, errors="surrogateescape")
        assert path == name or path == name + Path(path).suffix


def test_video_suffixes_are_lower_case():
    assert all(re.fullmatch(r"\.[a-z0-9]+", suffix) for suffix in VIDEO_SUFFIXES)
