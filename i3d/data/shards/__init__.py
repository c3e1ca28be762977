"""Precomputed videos: a folder of tar files, each with its index beside it."""

from i3d.data.shards.folder import complete_shards, finish_folder, shard_failures
from i3d.data.shards.format import (
    FAILURES_FILE,
    SUFFIXES,
    Failure,
    Pictures,
    SampleInfo,
    ShardIndex,
    VideoInfo,
)
from i3d.data.shards.manifest import (
    MANIFEST_FILE,
    Manifest,
    PlannedSample,
    plan_shards,
    read_manifest,
    write_manifest,
)
from i3d.data.shards.reader import Sample, ShardDataset, StoredSample, open_dataset
from i3d.data.shards.writer import PictureWriter, ShardWriter, write_shard

__all__ = [
    "FAILURES_FILE",
    "Failure",
    "MANIFEST_FILE",
    "Manifest",
    "PictureWriter",
    "Pictures",
    "PlannedSample",
    "SUFFIXES",
    "Sample",
    "SampleInfo",
    "ShardDataset",
    "ShardIndex",
    "ShardWriter",
    "StoredSample",
    "VideoInfo",
    "complete_shards",
    "finish_folder",
    "open_dataset",
    "plan_shards",
    "read_manifest",
    "shard_failures",
    "write_manifest",
    "write_shard",
]
