"""The command ``i3d``: one subcommand per job of :mod:`i3d.tasks`, no logic of its own.

Exit codes: 0 when all that was asked was done, 2 for a mistake in the call, 1 for a failed job, 130
after Ctrl-C, 143 after SIGTERM.
A job's options stand beside the job, in its ``options.py``; here is what the command takes besides
them. Libraries are imported inside the commands, so that help appears at once.
"""

import errno
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import gettempdir

import click

from i3d import files
from i3d.command import CONTEXT, Stopped, command
from i3d.console import say, visible
from i3d.data.footage.options import FootageOptions
from i3d.data.videos import VideoSet
from i3d.demo.options import DemoOptions
from i3d.errors import I3DError, UsageError
from i3d.parallel.process import Terminated, end_interrupted, terminated_cleanly
from i3d.tasks.evaluate.options import EvaluateCheckpoints, EvaluateOptions, EvaluateOutputs
from i3d.tasks.features.options import FeatureCheckpoints, FeatureOptions
from i3d.tasks.fvd.options import DEFAULT_CHECKPOINT, Beside, Changes, FvdOutputs, Measure
from i3d.tasks.options import (
    ComputeOptions,
    ConvertOptions,
    ConvertShardsOptions,
    DownloadOptions,
    ExportOptions,
    PrintOptions,
    StrictOptions,
    VerifyOptions,
)
from i3d.tasks.precompute.options import PrecomputeOutputs, Settings, Work
from i3d.tasks.predict.options import PredictOptions
from i3d.tasks.train.options import RunOptions, TrainOptions
from i3d.version import VERSION


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit; ``--debug`` anywhere in it shows tracebacks."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # What follows `--` are names, such as a file's called --debug.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    arguments = [a for a in arguments[:end] if a != "--debug"] + arguments[end:]
    with terminated_cleanly(), _plain_warnings():
        try:
            code = cli.main(arguments, prog_name="i3d", standalone_mode=False)
        except click.ClickException as error:
            text = io.StringIO()
            error.show(text)  # the usage, and what was given
            for line in text.getvalue().splitlines():
                say(line)
            code = error.exit_code
        except (I3DError, OSError, MemoryError, Stopped, click.exceptions.Abort) as error:
            cause = (
                error.__cause__ if isinstance(error, Stopped | click.exceptions.Abort) else error
            )
            if isinstance(cause, KeyboardInterrupt):
                end_interrupted()
                say("i3d: interrupted")
                code = 143 if isinstance(cause, Terminated) else 130  # as shells report signals
            elif debug:
                raise
            else:
                say(f"i3d: {_message(cause or error)}")
                code = 2 if isinstance(cause, UsageError) else 1
    sys.exit(code if isinstance(code, int) else 0)


def _message(error: BaseException) -> str:
    """One line; of errors that do not say so themselves with the file and the remedy."""
    if isinstance(error, I3DError):
        return str(error)
    if isinstance(error, MemoryError):
        text = f"memory ran out ({error})" if str(error) else "memory ran out"
        return f"{text}; use fewer --workers or a smaller --batch-size, or a machine with more"
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    remedy = ""
    if error.errno == errno.EFBIG:
        remedy = "; raise the shell's ulimit -f, or name a disk for larger files, and run again"
    elif error.errno in files.NO_ROOM:
        remedy = "; free some room there and run again, or name another place"
    if error.filename:
        return f"{_path(error.filename)}: {error.strerror}{remedy}"
    # a file without a name: all others are known when they are written (`files.atomic_path`)
    where = f" (temporary files are in {gettempdir()}: TMPDIR)" if remedy else ""
    return f"{error.strerror}{where}{remedy}"


def _path(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, bytes) else str(name)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show Python's warnings, whose texts have names of files in them, as lines of ours."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {visible(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


@click.group(context_settings=CONTEXT)
@click.version_option(VERSION, prog_name="i3d")
def cli() -> None:
    """I3D action recognition with the original model's numbers."""


@command(cli, PredictOptions, example="i3d predict cricket.mp4 --every 2.56")
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...")
def predict(options: PredictOptions, videos: tuple[str, ...]) -> int:
    """Say what happens in each VIDEO.

    A VIDEO is a file, a URL, a folder with all the videos in it, or - for standard input.
    """
    from i3d.tasks.predict.inputs import read_early

    clip_alone = options.window_seconds is None
    with read_early(videos, clip_alone=clip_alone) or nullcontext() as early:
        from i3d.tasks.predict.run import run_predict  # PyTorch takes a second

        return run_predict(options, videos, early)


@command(cli, ConvertOptions, example="i3d convert model.ckpt rgb.safetensors")
@click.argument("checkpoint")
@click.argument("output")
def convert(options: ConvertOptions, checkpoint: str, output: str) -> None:
    """Convert a checkpoint of any program.

    CHECKPOINT is TensorFlow's, .npz, PyTorch's or .safetensors; OUTPUT ends in .safetensors, or in
    .npz for the Chainer program's layout, unless --format says which it is.
    """
    from i3d.console import show
    from i3d.tasks.convert import convert as convert_checkpoint

    converted = convert_checkpoint(
        checkpoint,
        output,
        bn_eps=options.bn_eps,
        classes=options.classes,
        form=options.format,
    )
    show(converted, as_json=options.as_json)


@command(
    cli,
    ConvertShardsOptions,
    name="convert-shards",
    example="i3d convert-shards old-val shards/val --classes kinetics400",
)
@click.argument("old")
@click.argument("new")
def convert_shards(options: ConvertShardsOptions, old: str, new: str) -> int:
    """Turn the Chainer program's precomputed zips into shards.

    OLD is its folder, NEW the folder of the shards. No frame is decoded and no flow computed again.
    Run it again to go on after an interruption; run it under torchrun, mpiexec or srun to share the
    work between processes.
    """
    from i3d.tasks.convert_shards import run_convert_shards

    return run_convert_shards(options, old, new)


@command(cli, ExportOptions, example="i3d export rgb_imagenet_kinetics400 model.onnx")
@click.argument("checkpoint")
@click.argument("output")
def export(options: ExportOptions, checkpoint: str, output: str) -> None:
    """Export a network for other runtimes, checked against PyTorch.

    CHECKPOINT is a name or file; OUTPUT ends in .onnx, or in .pt2 for torch.export.
    """
    from i3d.console import show
    from i3d.tasks.export import export as export_network

    show(export_network(checkpoint, output, precision=options.precision), as_json=options.as_json)


@cli.group()
def checkpoints() -> None:
    """List, download and locate the released checkpoints."""


@command(checkpoints, PrintOptions, name="list")
def checkpoints_list(options: PrintOptions) -> None:
    """Show every named checkpoint, its published accuracy, and where it is on disk."""
    from i3d.console import show
    from i3d.tasks.checkpoints import list_checkpoints

    show(list_checkpoints(), as_json=options.as_json)


@command(checkpoints, DownloadOptions, name="download")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def checkpoints_download(options: DownloadOptions, names: tuple[str, ...]) -> None:
    """Fetch, verify and convert checkpoints into the cache folder."""
    from i3d.console import show_line
    from i3d.tasks.checkpoints import download_checkpoints

    for path in download_checkpoints(names, url=options.url, progress=True, force=options.force):
        show_line(str(path))


@command(checkpoints, name="path")
@click.argument("name")
def checkpoints_path(name: str) -> None:
    """Print where a checkpoint is on disk; exit 1 if it is not there."""
    from i3d.console import show_line
    from i3d.tasks.checkpoints import local_checkpoint

    show_line(str(local_checkpoint(name)))


@command(cli, VerifyOptions, example="i3d verify rgb_scratch_kinetics400")
@click.argument("name", default=DEFAULT_CHECKPOINT)
def verify(options: VerifyOptions, name: str) -> int:
    """Check a released network against published figures.

    NAME (default: rgb_scratch_kinetics400) is fetched where it is not on disk. Of that one two
    Fréchet Video Distances are computed that TensorFlow's users published; run it once before a
    number of yours is to be trusted. Exit 1 if a figure is off by more than its tolerance.
    """
    from i3d.tasks.verify import run_verify

    return run_verify(name, options)


@command(
    cli,
    VideoSet,
    Settings,
    Work,
    PrecomputeOutputs,
    omit=["partial"],
    example="i3d precompute k400/val shards/val --classes kinetics400",
)
@click.argument("videos")
@click.argument("output", required=False)
def precompute(
    video_set: partial[VideoSet],
    settings: Settings,
    work: Work,
    outputs: PrecomputeOutputs,
    videos: str,
    output: str | None,
) -> int:
    """Turn videos into shards of RGB frames and TV-L1 flow.

    VIDEOS is a dataset, OUTPUT the folder of its shards. Run it again to go on after an
    interruption; run it under torchrun, mpiexec or srun to share the work between processes.
    """
    from i3d.tasks.precompute.writing import run_precompute

    return run_precompute(video_set(videos), settings, work, outputs, output)


@command(
    cli,
    VideoSet,
    EvaluateOptions,
    EvaluateCheckpoints,
    EvaluateOutputs,
    example="i3d evaluate shards/val --rgb-checkpoint rgb_imagenet_kinetics400 --report page.html",
)
@click.argument("sources", nargs=-1, required=True, metavar="SHARDS|VIDEOS")
def evaluate(
    video_set: partial[VideoSet],
    options: EvaluateOptions,
    checkpoints: EvaluateCheckpoints,
    outputs: EvaluateOutputs,
    sources: tuple[str, ...],
) -> int:
    """Measure accuracy: of an RGB network, a flow one, or both.

    SHARDS is a folder that precompute wrote; VIDEOS is a dataset as precompute takes it. Run it
    under torchrun, mpiexec or srun to share the work between processes.
    """
    from i3d.tasks.evaluate.logits import run_evaluate

    return run_evaluate(video_set, options, checkpoints, outputs, sources)


@command(
    cli,
    FeatureCheckpoints,
    FeatureOptions,
    VideoSet,
    StrictOptions,
    omit=["classes"],
    example="i3d features videos features --checkpoint rgb_imagenet_kinetics400 --step 16",
)
@click.argument("source", metavar="VIDEOS|SHARDS")
@click.argument("output")
def features(
    networks: FeatureCheckpoints,
    options: FeatureOptions,
    video_set: partial[VideoSet],
    outputs: StrictOptions,
    source: str,
    output: str,
) -> int:
    """Compute features of videos of any length.

    OUTPUT is a folder or one file. Run it again to go on after an interruption; run it under
    torchrun, mpiexec or srun to share the work between processes.
    """
    from i3d.tasks.features.extraction import run_features

    return run_features(video_set(source), output, networks, options, outputs)


@command(
    cli,
    Measure,
    Changes,
    Beside,
    FvdOutputs,
    FootageOptions,
    ComputeOptions,
    example="i3d fvd real fake --protocol stylegan-v",
)
@click.argument("real", required=False)
@click.argument("fake", required=False)
def fvd(
    measure: Measure,
    changes: Changes,
    beside: Beside,
    outputs: FvdOutputs,
    footage: FootageOptions,
    options: ComputeOptions,
    real: str | None,
    fake: str | None,
) -> int:
    """Measure the Fréchet Video Distance of two sets of videos.

    REAL and FAKE are folders, zips or tars of videos or of frames; arrays, for each video or for
    all; shards, features, or saved statistics. A protocol's settings can be changed; the result's
    name then says so. Run it under torchrun, mpiexec or srun to share the work between processes
    and nodes.
    """
    from i3d.tasks.fvd.run import run_fvd

    return run_fvd(real, fake, measure, changes, footage, beside, options, outputs)


@command(
    cli,
    RunOptions,
    TrainOptions,
    PrintOptions,
    example="i3d train shards --stream rgb --val val-shards --recipe finetune --output run",
)
@click.argument("shards")
def train(
    run_options: RunOptions,
    options: TrainOptions,
    outputs: PrintOptions,
    shards: str,
) -> int:
    """Train a network on shards.

    SHARDS is a folder that precompute wrote. Run it under torchrun, mpiexec or srun for several
    processes and nodes.
    """
    from i3d.tasks.train.run import run_train

    return run_train(shards, run_options, options, as_json=outputs.as_json)


@command(cli, DemoOptions, example="i3d demo demo-output")
@click.argument("output", default="i3d-demo", type=click.Path(file_okay=False, path_type=Path))
def demo(options: DemoOptions, output: Path) -> None:
    """Run the whole system on videos that it renders itself.

    All that is made goes into the folder OUTPUT (default: i3d-demo).

    The videos are synthetic: figures that do one of twelve actions. They are precomputed, evaluated
    with two small networks that come with the package, and shown in OUTPUT/index.html, in
    two minutes on two cores. Last, a released network for videos of your own is fetched; without a
    connection all else works. Run it again to go on after an interruption.
    """
    from i3d.demo.pipeline import render_videos, run_demo

    if options.videos_only:
        render_videos(
            output,
            actions=options.actions or None,
            seed=options.seed,
            per_class=options.per_class,
            workers=options.workers,
        )
    else:
        run_demo(output, seed=options.seed, per_class=options.per_class, workers=options.workers)
