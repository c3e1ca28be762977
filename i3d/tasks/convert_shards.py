"""The Chainer program's zips -> shards of ours, without decoding a frame or computing flow again.

    sample_{k}/rgb/{t}.jpg ---------------the same bytes-------------> KEY.rgb.mjpeg
    sample_{k}/flow_{x,y}/{t}.jpg --decode, a table of 256 values--> KEY.flow.mpng

Frames were chosen and are scaled as they were, which the preset's name says
(`i3d.presets.CHAINER_I3D_CONVERTED`); flow is stored as ours is, and no motion reads as exactly 0.
"""

import os
from dataclasses import replace
from functools import partial

import numpy as np

from i3d import files
from i3d.clips import dequantize_flow, quantize_flow
from i3d.console import choose_teller, show
from i3d.data.chainer import ChainerDataset, is_chainer_folder, open_chainer_folder
from i3d.data.shards import Manifest, PictureWriter, PlannedSample, plan_shards
from i3d.data.shards.pictures import encode_flow, encoding_parameters, encoding_versions
from i3d.errors import DatasetError, UsageError
from i3d.parallel.pool import Result, WorkerPool, temporary_file
from i3d.parallel.process import count_cores
from i3d.parallel.world import World, world_from_environment
from i3d.presets import CHAINER_I3D, CHAINER_I3D_CONVERTED, CLIPS_PER_SHARD
from i3d.tasks.options import ConvertShardsOptions
from i3d.tasks.precompute.encode import WORKER_ENVIRONMENT, EncodedVideo
from i3d.tasks.precompute.writing import Encoder, Precomputed, make_shards
from i3d.version import VERSION

READ_FRAMES = 256  # pictures of a video in memory at a time


def flow_table() -> np.ndarray:
    """Their stored value -> ours, uint8 (256,): ``round(f * 127 / 20) + 128``.

    ``f = (q - 127.5) * 20 / 127.5`` in pixels, but 0 for 128, which is how no motion was stored.
    """
    theirs = np.repeat(np.arange(256, dtype=np.uint8), 2).reshape(256, 1, 1, 2)
    flow = dequantize_flow(theirs, storage=CHAINER_I3D.flow_storage)
    flow[round(CHAINER_I3D.flow_storage.zero)] = 0  # 127.5 was rounded to even
    return quantize_flow(flow)[:, 0, 0, 0]


def convert_shards(
    old: files.Location,
    new: files.Location,
    *,
    options: ConvertShardsOptions = ConvertShardsOptions(),
    world: World | None = None,
    progress: bool = False,
) -> Precomputed:
    """Turn a folder of the Chainer program into shards; what is there is not made again.

    Args:
        old: folder of zips; path or URL.
        new: folder of the shards; path or URL.
        options: names of the labels, and processes.
        world: this process's part of the shards; default: from the launcher's environment.
        progress: draw a progress bar on process 0.

    Raises:
        DatasetError: no such folder, or a damaged zip.
        UsageError: the output was begun with other settings, or is the folder itself.
        I3DError: the output or the temporary folder is full or cannot be written.
    """
    world = world_from_environment() if world is None else world
    tell = choose_teller(progress, first=world.first)
    if os.fspath(old).rstrip("/") == os.fspath(new).rstrip("/"):
        raise UsageError(f"{new}: the shards need a folder of their own; name another one")
    if not is_chainer_folder(old):
        raise DatasetError(
            f"{old} holds no zips of the Chainer program: neither shard_*.zip nor "
            "rgb/class_*/sample_*.zip"
        )
    dataset = open_chainer_folder(old, classes=options.classes, say=tell)
    encoder = Encoder(
        title="convert-shards",
        make_task=lambda sample: sample.key,
        locate=lambda sample: files.join(old, sample.location),
        open_pool=lambda workers: WorkerPool(
            partial(encode_sample, dataset=dataset),
            workers=workers,
            environment=WORKER_ENVIRONMENT,
        ),
    )
    return make_shards(
        new,
        make_manifest(dataset, clips_per_shard=options.clips_per_shard),
        encoder,
        workers=options.workers or count_cores(world),
        world=world,
        progress=progress and world.first,
    )


def make_manifest(dataset: ChainerDataset, *, clips_per_shard: int = CLIPS_PER_SHARD) -> Manifest:
    """The plan of the new shards; it depends on the old folder and the settings alone.

    Raises:
        OSError: the server or the disk fails when it is asked for the zips' sizes.
    """
    old = dataset.manifest
    parameters = {
        "fps": CHAINER_I3D_CONVERTED.fps,
        "short_side": CHAINER_I3D_CONVERTED.short_side,
        "clips_per_shard": clips_per_shard,
        "converted_from": CHAINER_I3D.name,
        **encoding_parameters(old.streams),
        "rgb_coding": "jpeg as it was",
    }
    if "flow" in old.streams:
        parameters["flow_bound_pixels"] = CHAINER_I3D_CONVERTED.flow_bound_pixels
    return Manifest(
        dataset=old.dataset,
        classes=old.classes,
        preset=CHAINER_I3D_CONVERTED.name,
        streams=old.streams,
        parameters={**old.parameters, **parameters},
        versions={"i3d": VERSION, **encoding_versions(old.streams)},
        shards=plan_shards(_with_sizes(dataset), clips_per_shard=clips_per_shard),
    )


def _with_sizes(dataset: ChainerDataset) -> list[PlannedSample]:
    """The samples with the sizes of their zips, and the ETag of those in one."""
    zips = {sample.key: dataset.find_zips(sample.key) for sample in dataset.manifest.samples()}
    every = list(dict.fromkeys(name for names in zips.values() for name in names))
    found = dict(zip(every, files.find_states(every), strict=True))
    samples = []
    for sample in dataset.manifest.samples():
        states = [found[name] for name in zips[sample.key]]
        sizes = [state.size for state in states if state.size is not None]
        etag = states[0].etag if len(states) == 1 else None
        samples.append(replace(sample, file_bytes=sum(sizes), etag=etag))
    return samples


def encode_sample(key: str, *, dataset: ChainerDataset) -> Result:
    """Convert one sample, in a worker process."""
    if (reason := dataset.failure(key)) is not None:
        return Result(EncodedVideo(error=_without_folder(reason, dataset)))
    streams, table = dataset.manifest.streams, flow_table()
    rgb = PictureWriter(temporary_file())
    flow = PictureWriter(temporary_file()) if "flow" in streams else None
    try:
        stored = dataset.find_sample(key)
        for start in range(0, stored.info.length("rgb"), READ_FRAMES):
            sample = stored.read(start, start + READ_FRAMES)
            for jpeg in sample.rgb or ():
                rgb.add(jpeg)
            if flow is not None:
                for picture in table[sample.decode("flow")]:
                    flow.add(encode_flow(picture))
    except DatasetError as error:
        for writer in (rgb, flow):
            if writer is not None:
                writer.file.close()
        return Result(EncodedVideo(error=_without_folder(str(error), dataset)))
    height, width = stored.info.height, stored.info.width
    written = [writer for writer in (rgb, flow) if writer is not None]
    video = EncodedVideo(height, width, rgb.pictures, None if flow is None else flow.pictures)
    return Result(video, tuple(writer.file for writer in written))


def _without_folder(text: str, dataset: ChainerDataset) -> str:
    """No absolute path in a message, which is stored."""
    return text.replace(os.fspath(dataset.folder).rstrip("/") + "/", "")


def run_convert_shards(options: ConvertShardsOptions, old: str, new: str) -> int:
    """``i3d convert-shards``: the exit code, 1 if shards were lost or, with strict, samples."""
    world = world_from_environment()
    result = convert_shards(old, new, options=options, world=world, progress=True)
    if world.first:
        show(result, as_json=options.as_json)
    return 1 if result.lost or options.exit_code(result.failed) else 0
