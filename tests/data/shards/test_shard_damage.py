"""Damage and hostile files are found, and named."""

import dataclasses
import json
import tracemalloc

import pytest
from support.shards import check_sample, plan, write_folder

from i3d.data.shards import (
    SUFFIXES,
    Failure,
    ShardIndex,
    complete_shards,
    open_dataset,
    read_manifest,
)
from i3d.data.shards.reader import parse_info
from i3d.errors import DatasetError


def read_everything(folder):
    dataset = open_dataset(folder)
    dataset.failures()
    for sample in dataset.stream():
        check_sample(sample)


@pytest.mark.parametrize("name", ["shard-00000.tar", "shard-00000.json", "manifest.json"])
def test_a_flipped_bit_anywhere_is_found(written, name):
    path = written / name
    data = path.read_bytes()
    step = max(1, len(data) // 150)
    for i, position in enumerate([*range(0, len(data), step), len(data) - 1]):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (i % 8)
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=rf"{name}.*"):
            read_everything(written)
    path.write_bytes(data)
    read_everything(written)


def test_damage_names_shard_key_member_and_remedy(written):
    dataset = open_dataset(written)
    record = dataset.index(0).samples[1]
    path = written / "shard-00000.tar"
    data = path.read_bytes()
    for member in record.members:
        damaged = bytearray(data)
        damaged[member.offset + member.size - 1] ^= 1
        path.write_bytes(damaged)
        streams = [(), ("rgb",), ("flow",)]
        for read in [
            lambda: list(dataset.stream_shard(0)),
            lambda: dataset.read_sample(record.key),
        ]:
            with pytest.raises(DatasetError) as caught:
                read()
            for part in ("shard-00000.tar", repr(record.key), f"member {member.suffix}", "delete"):
                assert part in str(caught.value)
        for chosen in streams[1:]:
            wanted = {"json", SUFFIXES[chosen[0]]}
            if member.suffix in wanted:
                with pytest.raises(DatasetError, match=f"member {member.suffix} is damaged"):
                    dataset.read_sample(record.key, streams=chosen)
            else:
                dataset.read_sample(record.key, streams=chosen)
    damaged = bytearray(data)
    damaged[record.offset] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DatasetError, match="header or padding"):
        dataset.read_sample(record.key)


@pytest.mark.parametrize("member", ["json", "rgb.mjpeg"])
def test_a_sparse_tar_takes_no_memory(written, member):
    """Of 6 GB that are a hole in a file of a few kilobytes nothing is read."""
    dataset = open_dataset(written)
    index = dataset.index(0)
    hole = 6 << 30
    first = index.samples[0]
    members, shift = [], 0
    for m in first.members:
        size = m.size + hole if m.suffix == member else m.size
        members.append(dataclasses.replace(m, offset=m.offset + shift, size=size))
        shift += size - m.size + -(size - m.size) % 512
    record = dataclasses.replace(first, size=first.size + shift, members=tuple(members))
    others = [
        dataclasses.replace(
            r,
            offset=r.offset + shift,
            members=tuple(dataclasses.replace(m, offset=m.offset + shift) for m in r.members),
        )
        for r in index.samples[1:]
    ]
    changed = dataclasses.replace(
        index, tar_bytes=index.tar_bytes + shift, samples=(record, *others)
    )
    (written / "shard-00000.json").write_bytes(changed.to_json())
    with (written / "shard-00000.tar").open("r+b") as file:
        file.truncate(changed.tar_bytes)
    dataset = open_dataset(written)
    tracemalloc.start()
    try:
        for streams in (None, ("rgb",)):
            with pytest.raises(DatasetError, match=r"shard-00000.tar, sample .* member json"):
                dataset.read_sample(first.key, streams=streams)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24  # measured 60 kB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", [1, 1024, 5000])
def test_a_truncated_tar(written, cut):
    path = written / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DatasetError, match=r"shard-00001.tar has .* sidecar says"):
        read_everything(written)
    assert complete_shards(written, plan()) == [0, 2]
    if cut == 5000:
        key = plan().shards[1][-1].key
        with pytest.raises(DatasetError, match=r"shard-00001.tar ends at"):
            open_dataset(written).read_sample(key)


def test_shards_that_were_mixed_up(written, tmp_path):
    other = tmp_path / "other"
    write_folder(other, plan(dataset="other"))
    sidecar = (written / "shard-00000.json").read_bytes()

    (written / "shard-00000.json").write_bytes((other / "shard-00000.json").read_bytes())
    with pytest.raises(DatasetError, match=r"shard-00000.json belongs to another manifest"):
        read_everything(written)
    assert complete_shards(written, plan()) == [1, 2]

    (written / "shard-00000.json").write_bytes((written / "shard-00001.json").read_bytes())
    with pytest.raises(DatasetError, match=r"shard-00000.json is the sidecar of shard 1"):
        read_everything(written)

    (written / "shard-00000.json").write_bytes(sidecar)
    (written / "shard-00000.tar").write_bytes((written / "shard-00001.tar").read_bytes())
    with pytest.raises(DatasetError, match=r"shard-00000.tar"):
        read_everything(written)


def hostile_indexes():
    """Changes to a sidecar that would make a careless reader read elsewhere."""

    def member(index, **change):
        record = index.samples[0]
        members = (record.members[0], dataclasses.replace(record.members[1], **change))
        record = dataclasses.replace(record, members=members + record.members[2:])
        return dataclasses.replace(index, samples=(record, *index.samples[1:]))

    def sample(index, **change):
        record = dataclasses.replace(index.samples[0], **change)
        return dataclasses.replace(index, samples=(record, *index.samples[1:]))

    yield lambda index: member(index, size=2**50)
    yield lambda index: member(index, size=-1)
    yield lambda index: member(index, offset=-512)
    yield lambda index: member(index, offset=0)
    yield lambda index: member(index, suffix="exe")
    yield lambda index: sample(index, offset=512)
    yield lambda index: sample(index, size=2**60)
    yield lambda index: sample(index, size=0)
    yield lambda index: sample(index, key="other")
    yield lambda index: sample(index, members=())
    yield lambda index: dataclasses.replace(index, samples=index.samples[::-1])
    yield lambda index: dataclasses.replace(index, samples=index.samples[1:])
    yield lambda index: dataclasses.replace(index, tar_bytes=1024)
    yield lambda index: dataclasses.replace(index, failures=(Failure("other", "x"),))
    yield lambda index: dataclasses.replace(
        index, failures=(Failure(index.samples[0].key, "x"),) * 2
    )


@pytest.mark.parametrize("change", list(hostile_indexes()))
def test_hostile_sidecars_are_refused(written, change):
    manifest = read_manifest(written)
    index = change(open_dataset(written).index(0))
    with pytest.raises(DatasetError, match="sidecar"):
        ShardIndex.from_json(index.to_json(), manifest, 0, "sidecar")


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0},
        {"height": 2**40},
        {"height": 16000, "width": 16000},
        {"height": True},
        {"fps": "25"},
        {"key": "other"},
        {"class_index": 1},
        {"rgb": None},
        {"rgb": {"sizes": [], "crc32c": []}},
        {"rgb": {"sizes": [-1, 2, 3, 4], "crc32c": [0, 0, 0, 0]}},
        {"rgb": {"sizes": [1, 2, 3, 4], "crc32c": [0, 0, 0]}},
        {"rgb": {"sizes": [1, 2, 3, 4], "crc32c": [0, 0, 0, 0]}},
        {"flow": None},
        {"flow": {"sizes": [1, 2], "crc32c": [0, 0]}},
        {"format": "i3d sample 2"},
        {"more": 1},
    ],
)
def test_hostile_metadata_is_refused(written, change):
    dataset = open_dataset(written)
    planned = dataset.manifest.shards[0][0]
    info = dataset.read_sample(planned.key).info
    data = json.dumps({**json.loads(info.to_json()), **change}).encode()
    with pytest.raises(DatasetError, match="tar"):
        parse_info(dataset.index(0).samples[0], data, planned, "tar")
