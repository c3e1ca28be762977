"""The plan: what may be in it, that it reads back, and how another one is refused."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import CLASSES, KEYS, plan

from i3d import files
from i3d.classes import ClassList
from i3d.data.shards import (
    Manifest,
    PlannedSample,
    open_dataset,
    plan_shards,
    read_manifest,
    write_manifest,
)
from i3d.data.shards import manifest as manifest_file
from i3d.errors import DatasetError, UsageError
from i3d.records import SEAL


def test_the_plan_depends_on_keys_and_seed_alone():
    samples = [PlannedSample(f"{i % 3}/{i}", f"{i}.mp4") for i in range(10)]
    planned = plan_shards(samples, clips_per_shard=4)
    assert planned == plan_shards(samples[::-1], clips_per_shard=4)
    # Frozen: with another order nobody could resume.
    assert [" ".join(s.key for s in shard) for shard in planned] == [
        "0/3 2/8 0/0 0/6",
        "2/2 1/7 2/5 1/1",
        "1/4 0/9",
    ]
    assert plan_shards(samples, clips_per_shard=4, seed=1) != planned
    with pytest.raises(UsageError, match="at least 1"):
        plan_shards(samples, clips_per_shard=0)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("a.b", "without dots"),
        ("", "names between"),
        ("/a", "names between"),
        ("a//b", "names between"),
        ("a\nb", "control"),
        ("a\ud800", "names between"),
        ("x" * 10_000, "names between"),
        ("__a__/b", "WebDataset skips"),
    ],
)
def test_keys_that_a_tar_would_not_give_back(key, message):
    with pytest.raises(DatasetError, match=message):
        PlannedSample(key, "a.mp4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"location": "/data/a.mp4"}, "relative"),
        ({"location": "s3://bucket/a.mp4"}, "relative"),
        ({"start_seconds": float("nan")}, "no time"),
        ({"end_seconds": -1.0}, "no time"),
        ({"file_bytes": -1}, "no size"),
    ],
)
def test_samples_that_make_no_sense(change, message):
    with pytest.raises(DatasetError, match=message):
        PlannedSample(**{"key": "a", "location": "a.mp4", **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": ()}, "at least one sample"),
        ({"shards": ((),)}, "at least one sample"),
        ({"shards": ((PlannedSample("a", "a"),), (PlannedSample("a", "b"),))}, "twice"),
        ({"shards": ((PlannedSample("a", "a", 3),),)}, "index 3, but there are 3"),
        ({"shards": ((PlannedSample("a", "a", -1),),)}, "index -1"),
        ({"classes": None}, "there are 0"),
        ({"streams": ("flow",)}, "must be"),
    ],
)
def test_plans_that_make_no_sense(change, message):
    with pytest.raises(DatasetError, match=message):
        plan(**change)


def test_resuming_with_other_settings_names_the_difference(folder):
    manifest = plan()
    write_manifest(folder, manifest)
    write_manifest(folder, plan())  # the same again
    others = {
        'dataset: "val", now "train"': plan(dataset="train"),
        'classes: "sports", now "sport"': plan(classes=ClassList("sport", CLASSES.names)),
        'class 1: "archery", now "bowling"': plan(
            classes=ClassList("sports", ("abseiling", "bowling", "arm wrestling"))
        ),
        'streams: "rgb+flow", now "rgb"': plan(streams=("rgb",)),
        "parameter quality: 95, now 90": plan(parameters={**manifest.parameters, "quality": 90}),
        "parameter new: absent, now 1": plan(parameters={**manifest.parameters, "new": 1}),
        'version of simplejpeg: "1.9.0", now "2.0"': plan(versions={"simplejpeg": "2.0"}),
        # Equal to Python, and other bytes in the manifest.
        "parameter quality: 95, now 95.0": plan(
            parameters={**manifest.parameters, "quality": 95.0}
        ),
        "parameter trim: false, now 0": plan(parameters={**manifest.parameters, "trim": 0}),
        '"trim": false}': plan(
            parameters={k: v for k, v in manifest.parameters.items() if k != "x"}
        ),
        "samples: 6, now 5; 'unlabelled' is no longer": plan(KEYS[:-1]),
        "samples: 6, now 7; 'new' was not there": plan([*KEYS, "new"]),
        "in shard 1, now in 0": plan(clips_per_shard=3),
        "another order": plan(shards=tuple(shard[::-1] for shard in manifest.shards)),
    }
    for message, other in others.items():
        with pytest.raises(UsageError, match="another output") as caught:
            write_manifest(folder, other)
        assert message in str(caught.value)
    assert read_manifest(folder) == manifest


def with_sizes(sizes, etag=None):
    """The plan, whose first files have these sizes and the first one this ETag."""
    samples = list(plan().samples())
    for i, size in enumerate(sizes):
        samples[i] = replace(samples[i], file_bytes=size, etag=etag if i == 0 else None)
    return plan(shards=plan_shards(samples, clips_per_shard=2))


def test_other_files_are_refused_by_name_and_size(folder):
    manifest = with_sizes([1000, 2000, 3000], etag='"a"')
    first, second = list(manifest.samples())[:2]
    write_manifest(folder, manifest)
    write_manifest(folder, with_sizes([1000, 2000, 3000], etag='"a"'))
    others = {
        f"begun with other files: {second.key!r} ({second.location}): 2,000 bytes, now 2,001 bytes."
        " Use the same files": with_sizes([1000, 2001, 3000], etag='"a"'),
        f'{first.key!r} ({first.location}): 1,000 bytes and ETag "a", now 1,000 bytes and ETag'
        ' "b".': with_sizes([1000, 2000, 3000], etag='"b"'),
        "2,000 bytes, now unknown size.": with_sizes([1000, None, 3000], etag='"a"'),
        'format: "i3d manifest 2", now "i3d manifest 1"': plan(),
        "samples: 6, now 5": replace(
            manifest, shards=plan_shards(list(with_sizes([1, 2]).samples())[1:], clips_per_shard=2)
        ),
    }
    for message, other in others.items():
        with pytest.raises(UsageError, match="another output") as caught:
            write_manifest(folder, other)
        assert message in str(caught.value)
    assert read_manifest(folder) == manifest


def test_a_manifest_from_before_the_sizes_is_read_and_not_gone_on_with(folder):
    write_manifest(folder, plan())
    data = files.read_range(files.join(folder, "manifest.json"), 0, 1 << 20)
    assert b'"i3d manifest 1"' in data and b"file_bytes" not in data
    assert read_manifest(folder) == plan()
    with pytest.raises(UsageError, match='format: "i3d manifest 1", now "i3d manifest 2"'):
        write_manifest(folder, with_sizes([1]))


def test_many_processes_write_the_same_manifest(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_manifest(tmp_path, plan()), range(16)))
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]
    assert read_manifest(tmp_path) == plan()


texts = st.text(max_size=20)
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
seconds = st.none() | st.floats(0, 1e6) | st.integers(0, 1000)
parts = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="./_"), min_size=1, max_size=8
)
samples = st.builds(
    PlannedSample,
    st.lists(parts, min_size=1, max_size=2).map("/".join),
    texts.filter(lambda text: not text.startswith("/") and "://" not in text),
    st.none() | st.integers(0, 2),
    seconds,
    seconds,
    st.none() | st.integers(0, 2**50),
    st.none() | texts,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    texts,
    st.dictionaries(texts, texts | numbers | st.booleans() | st.none(), max_size=5),
    st.lists(samples, min_size=1, max_size=10, unique_by=lambda s: s.key),
    st.integers(1, 4),
)
def test_any_manifest_reads_back(dataset, parameters, planned, clips):
    manifest = plan(
        dataset=dataset,
        parameters=parameters,
        shards=plan_shards(planned, clips_per_shard=clips),
    )
    data = manifest.to_json()
    data.decode("ascii")
    back = Manifest.from_json(data)
    assert back == manifest and back.seal == manifest.seal and back.to_json() == data


def seal(text):
    """Seal any text as a manifest or sidecar, as an attacker would."""
    head = text.encode()
    return head + SEAL.format(hashlib.sha256(head).hexdigest()).encode()


json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.just(float("nan")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hostile_manifests_are_refused(data):
    document = json.loads(plan().to_json())
    del document["sha256"]
    target = document
    while True:  # somewhere in the document, another value
        places = list(target) if isinstance(target, dict) else list(range(len(target)))
        place = data.draw(st.sampled_from(places))
        inner = target[place]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        target = inner
    target[place] = data.draw(json_values)
    text = json.dumps(document, indent=1).removesuffix("\n}") + ",\n"
    with pytest.raises(DatasetError):
        Manifest.from_json(seal(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "{}",
        "[" * 100_000,
        '{"format": ' + "9" * 5000 + ",\n",
        '{"format": 1e999,\n',
    ],
)
def test_text_that_is_no_manifest(text):
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        Manifest.from_json(seal(text))
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        Manifest.from_json(text.encode())


def test_a_file_that_is_too_large_is_not_read(written, monkeypatch):
    monkeypatch.setattr(manifest_file, "_MAX_JSON_BYTES", 100)
    with pytest.raises(DatasetError, match="has more than"):
        open_dataset(written)
