"""The plan of a precompute: its manifest, which depends on the data and the settings alone."""

import os
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from i3d import files
from i3d.data.kinetics import Dataset
from i3d.data.shards import Manifest, PlannedSample, plan_shards
from i3d.data.shards.pictures import encoding_parameters, encoding_versions
from i3d.flow import TVL1, flow_kernel
from i3d.presets import KINETICS_I3D, Stream
from i3d.tasks.precompute.options import Settings
from i3d.version import VERSION


def make_manifest(
    dataset: Dataset, root: files.Location, settings: Settings, *, device: str = "cpu"
) -> Manifest:
    """The manifest of a dataset under settings; it depends on nothing else.

    The GPU's flow can differ from the CPU's, so the manifest names its kernel. It keeps the size of
    every video's file, so that none is replaced between two runs unnoticed.

    Raises:
        StorageError: the server or the disk fails when it is asked for them.
    """
    try:
        states = files.find_states([video.location for video in dataset.videos])
    except OSError as error:
        files.blame_storage(error.filename or root, error)
        raise
    samples = [
        PlannedSample(
            key=video.key,
            location=_relative(video.location, root),
            class_index=video.index,
            start_seconds=video.start_seconds,
            end_seconds=video.end_seconds,
            file_bytes=state.size,
            etag=state.etag,
        )
        for video, state in zip(dataset.videos, states, strict=True)
    ]
    streams: tuple[Stream, ...] = ("rgb", "flow") if settings.flow else ("rgb",)
    parameters: dict[str, Any] = {
        "fps": KINETICS_I3D.fps,
        "short_side": settings.short_side,
        "max_seconds": float(settings.max_seconds),
        "clips_per_shard": settings.clips_per_shard,
        "seed": settings.seed,
        **encoding_parameters(streams, rgb_quality=settings.rgb_quality),
    }
    versions = {"i3d": VERSION, **_library_versions(), **encoding_versions(streams)}
    if settings.flow:
        parameters["flow_bound_pixels"] = KINETICS_I3D.flow_bound_pixels
        parameters["flow_kernel"] = flow_kernel(device)
        parameters |= {f"tvl1_{name}": value for name, value in asdict(TVL1()).items()}
    return Manifest(
        dataset=PurePosixPath(os.fspath(root).rstrip("/")).name or "videos",
        classes=dataset.classes,
        preset=settings.preset.name,
        streams=streams,
        parameters=parameters,
        versions=versions,
        shards=plan_shards(samples, clips_per_shard=settings.clips_per_shard, seed=settings.seed),
    )


def _relative(location: str, root: files.Location) -> str:
    """A video's location below the dataset's folder; of one elsewhere, its name alone."""
    folder = os.fspath(root).rstrip("/")
    if location.startswith(f"{folder}/"):
        return location.removeprefix(f"{folder}/")
    return location.rsplit("/", 1)[-1]


def _library_versions() -> dict[str, str]:
    """Libraries whose arithmetic is in the frames and the flow."""
    import av
    import cv2

    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    swscale = ".".join(map(str, av.library_versions["libswscale"]))
    return {"libavcodec": ffmpeg, "libswscale": swscale, "opencv": cv2.__version__}
