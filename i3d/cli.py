"""The command ``i3d``: one subcommand per job of :mod:`i3d.tasks`, no logic of its own.

Exit codes: 0 when all that was asked was done, 2 for a mistake in the call, 1 for a failed job.
Libraries are imported inside the commands, so that help appears at once.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

import i3d
from i3d.demo.defaults import PER_CLASS, SEED
from i3d.errors import I3DError, UsageError

CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),  # --top_k is --top-k
    "max_content_width": 100,
}
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where to compute."
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the network's arithmetic.",
)


class _BatchSize(click.ParamType):
    name = "N|auto"

    def convert(self, value: Any, param: Any, context: Any) -> int | None:
        return None if value in (None, "auto") else click.INT.convert(value, param, context)


batch_size_option = click.option(
    "--batch-size", type=_BatchSize(), default="auto", show_default=True, help="Clips at a time."
)


def workers_option(default: str) -> Callable[[Any], Any]:
    """``--workers``, None where it is not given; ``default`` says what that means."""
    text = f"Processes that read and decode.  [default: {default}]"
    return click.option("--workers", type=int, help=text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit; ``--debug`` anywhere in it shows tracebacks."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        code = cli.main(arguments, prog_name="i3d", standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (I3DError, OSError) as error:
        if debug:
            raise
        click.echo(f"i3d: {_message(error)}", err=True)
        code = 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        click.echo("i3d: interrupted", err=True)
        code = 130  # as shells report SIGINT
    sys.exit(code if isinstance(code, int) else 0)


def _message(error: Exception) -> str:
    if isinstance(error, I3DError) or not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@click.group(context_settings=CONTEXT)
@click.version_option(i3d.__version__, prog_name="i3d")
def cli() -> None:
    """I3D action recognition with the original model's numbers."""


@cli.command()
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    metavar="NAME|PATH",
    help="Network to use; repeat it to add logits.  [default: rgb_imagenet_kinetics400]",
)
@click.option("--top-k", default=5, show_default=True, help="How many classes to show.")
@click.option(
    "--every",
    "every_seconds",
    type=float,
    metavar="SECONDS",
    help="Look along the whole video, one prediction per window of so many seconds. "
    "Default: the first 10 s.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="IMAGE",
    help="Draw the probabilities over time (of one video; with --every, default 2.56 s).",
)
@device_option
@click.option(
    "--runtime",
    type=click.Choice(["torch", "onnx", "openvino"]),
    help="What runs the network: PyTorch, or for .onnx files ONNX Runtime or OpenVINO.  "
    "[default: onnx for .onnx files, else torch]",
)
@json_option
def predict(
    videos: tuple[str, ...],
    checkpoints: tuple[str, ...],
    top_k: int,
    every_seconds: float | None,
    plot: Path | None,
    device: str,
    runtime: str | None,
    as_json: bool,
) -> int:
    """Say what happens in each VIDEO (a path or URL)."""
    from i3d.tasks.predict.predictor import run

    return run(
        videos,
        checkpoints=checkpoints,
        top_k=top_k,
        every_seconds=every_seconds,
        plot=plot,
        device=device,
        runtime=runtime,
        as_json=as_json,
    )


@cli.command()
@click.argument("checkpoint")
@click.argument("output")
@click.option(
    "--bn-eps",
    type=float,
    help="BatchNorm's epsilon of a PyTorch state dict: 1e-3 (default), or 1e-5 in several ports.",
)
@click.option(
    "--classes",
    metavar="NAME|FILE",
    help="Class list to keep: kinetics400, kinetics600 or a file of names.",
)
@json_option
def convert(
    checkpoint: str, output: str, bn_eps: float | None, classes: str | None, as_json: bool
) -> None:
    """Convert CHECKPOINT (TensorFlow, .npz, PyTorch, .safetensors) to OUTPUT.

    OUTPUT ends in .safetensors, or in .npz for the Chainer program's layout.
    """
    from i3d.console import show
    from i3d.tasks.convert import convert as run

    show(run(checkpoint, output, bn_eps=bn_eps, classes=classes), as_json=as_json)


@cli.command()
@click.argument("checkpoint")
@click.argument("output")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of weights and arithmetic; input and outputs are float32.",
)
@json_option
def export(checkpoint: str, output: str, precision: str, as_json: bool) -> None:
    """Export CHECKPOINT (a name or file) for other runtimes, and check it against PyTorch.

    OUTPUT ends in .onnx, or in .pt2 for torch.export.
    """
    from i3d.console import show
    from i3d.tasks.export import export as run

    show(run(checkpoint, output, precision=precision), as_json=as_json)


@cli.group()
def checkpoints() -> None:
    """List, download and locate the released checkpoints."""


@checkpoints.command("list")
@json_option
def checkpoints_list(as_json: bool) -> None:
    """Show every named checkpoint, its published accuracy, and where it is on disk."""
    from i3d.tasks.checkpoints import format_checkpoints, list_checkpoints

    rows = list_checkpoints()
    if as_json:
        _print_json({"checkpoints": rows})
    else:
        click.echo(format_checkpoints(rows))


@checkpoints.command("download")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--url", help="Folder of the checkpoints elsewhere: a URL or a local path.")
@click.option("--force", is_flag=True, help="Fetch again what is on disk.")
def checkpoints_download(names: tuple[str, ...], url: str | None, force: bool) -> None:
    """Fetch, verify and convert checkpoints into the cache folder."""
    from i3d.tasks.checkpoints import download_checkpoints

    for path in download_checkpoints(names, url=url, progress=True, force=force):
        click.echo(str(path))


@checkpoints.command("path")
@click.argument("name")
def checkpoints_path(name: str) -> None:
    """Print where a checkpoint is on disk; exit 1 if it is not there."""
    from i3d.tasks.checkpoints import local_checkpoint

    click.echo(str(local_checkpoint(name)))


@cli.command()
@click.argument("videos")
@click.argument("output", required=False)
@click.option("--no-flow", is_flag=True, help="RGB frames alone.")
@click.option("--workers", type=int, help="Processes.  [default: the cores]")
@click.option("--clips-per-shard", default=128, show_default=True, help="Videos in one shard.")
@click.option(
    "--classes",
    metavar="LIST",
    help="kinetics400, kinetics600, folders (the sorted folder names) or a file of names.",
)
@click.option("--annotations", metavar="CSV", help="Annotations of a flat folder of videos.")
@click.option(
    "--layout",
    type=click.Choice(["folders", "cvdf", "list", "flat"]),
    help="How the videos lie on disk.  [default: found out]",
)
@click.option("--split", help="Of a dataset that has several: train, val or test.")
@click.option("--trim", is_flag=True, help="Cut untrimmed videos by the CSV's times.")
@click.option(
    "--max-seconds", default=10.0, show_default=True, help="Of each video; 0 for all of it."
)
@click.option("--short-side", default=256, show_default=True, help="Pixels.")
@click.option("--quality", default=95, show_default=True, help="JPEG quality of the frames.")
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda", help="Of the flow.")
@click.option("--dry-run", is_flag=True, help="Print the plan and an estimate; write nothing.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any video failed.")
@json_option
def precompute(
    videos: str,
    output: str | None,
    no_flow: bool,
    clips_per_shard: int,
    max_seconds: float,
    short_side: int,
    quality: int,
    dry_run: bool,
    strict: bool,
    as_json: bool,
    **dataset: Any,
) -> int:
    """Turn the dataset VIDEOS into shards of RGB frames and TV-L1 flow in the folder OUTPUT.

    Run it again to go on after an interruption; run it under torchrun, mpiexec or srun to share the
    work between processes and nodes.
    """
    from i3d.tasks.precompute.writing import Settings, run

    settings = Settings(
        flow=not no_flow,
        short_side=short_side,
        max_seconds=max_seconds,
        rgb_quality=quality,
        clips_per_shard=clips_per_shard,
    )
    return run(
        videos,
        output,
        settings=settings,
        estimate=dry_run,
        strict=strict,
        as_json=as_json,
        **dataset,
    )


@cli.command()
@click.argument("sources", nargs=-1, required=True, metavar="SHARDS|VIDEOS")
@click.option("--rgb-checkpoint", metavar="NAME|PATH", help="RGB network.")
@click.option("--flow-checkpoint", metavar="NAME|PATH", help="Flow network.")
@click.option("--frames", default=250, show_default=True, help="Of each clip.")
@click.option("--clips", default=1, show_default=True, help="Of each video, spaced evenly.")
@click.option("--crops", default=1, show_default=True, help="Of each clip: 1 (centre) or 3.")
@precision_option
@batch_size_option
@workers_option("the cores; on a CPU at most 2 for shards")
@device_option
@click.option("--partial", is_flag=True, help="Take shards of which some are missing.")
@click.option("--classes", metavar="LIST", help="Of a folder of videos, as for precompute.")
@click.option("--annotations", metavar="CSV", help="Likewise.")
@click.option("--layout", type=click.Choice(["folders", "cvdf", "list", "flat"]), help="Likewise.")
@click.option("--split", help="Likewise.")
@click.option("--trim", is_flag=True, help="Likewise.")
@click.option("--output", metavar="JSON", help="Write the result for machines.")
@click.option("--report", metavar="HTML", help="Write the result as a page.")
@click.option(
    "--predictions", metavar="PARQUET|CSV", help="Write every video's logits, and resume from them."
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run's --predictions.")
@click.option(
    "--fuse", "fused", is_flag=True, help="Join streams: the arguments are predictions files."
)
@click.option("--strict", is_flag=True, help="Exit with 1 if any video was skipped.")
@json_option
def evaluate(
    sources: tuple[str, ...],
    frames: int,
    clips: int,
    crops: int,
    precision: Any,
    batch_size: int | None,
    workers: int | None,
    device: str,
    partial: bool,
    **rest: Any,
) -> int:
    """Measure the accuracy of an RGB network, a flow network, or both together.

    SHARDS is a folder that precompute wrote; VIDEOS is a dataset as precompute takes it. Run it
    under torchrun, mpiexec or srun to share the work between processes and nodes.
    """
    from i3d.clips import Views
    from i3d.tasks.evaluate.logits import Options, run

    options = Options(Views(frames, clips, crops), precision, batch_size, workers, device, partial)
    return run(sources, options=options, **rest)


@cli.command()
@click.argument("source", metavar="VIDEOS|SHARDS")
@click.argument("output")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    required=True,
    metavar="NAME|PATH",
    help="RGB or flow network; give it twice for both.",
)
@click.option(
    "--endpoint",
    metavar="clip|steps|LAYER",
    help="clip: features averaged over the window; steps: a row for every time step; or a layer, "
    "Logits among them.  [default: clip]",
)
@click.option("--window", metavar="FRAMES|SECONDSs", help="Length: 64 or 2.5s.  [default: 64]")
@click.option("--step", metavar="FRAMES|SECONDSs", help="Start to start.  [default: the window]")
@click.option(
    "--rest",
    type=click.Choice(["drop", "keep"]),
    help="Frames after the last whole window: left out, or in a window that ends with the video.  "
    "[default: drop]",
)
@click.option(
    "--short",
    type=click.Choice(["loop", "error"]),
    help="A video shorter than a window: repeated, or refused.  [default: loop]",
)
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["localization", "anomaly"]),
    help="What these fields' programs read: .npy of 16 frames every 4, T x 2048; of 16 every 16.",
)
@click.option(
    "--format",
    type=click.Choice(["npz", "npy", "parquet", "hdf5"]),
    help="A file a video, or one for all where OUTPUT ends in .parquet, .h5 or .hdf5.  "
    "[default: npz]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Of the network's arithmetic.  [default: fp32]",
)
@click.option("--batch-size", type=_BatchSize(), help="Windows at a time.  [default: auto]")
@workers_option("the cores; at most 2 where they need few")
@device_option
@click.option("--partial", is_flag=True, help="Take shards of which some are missing.")
@click.option("--annotations", metavar="CSV", help="Of a folder of videos, as for precompute.")
@click.option("--layout", type=click.Choice(["folders", "cvdf", "list", "flat"]), help="Likewise.")
@click.option("--split", help="Likewise.")
@click.option("--trim", is_flag=True, help="Likewise.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any video was skipped.")
@json_option
def features(
    source: str,
    output: str,
    checkpoints: tuple[str, ...],
    purpose: str | None,
    annotations: str | None,
    layout: Any,
    split: str | None,
    trim: bool,
    strict: bool,
    as_json: bool,
    **chosen: Any,
) -> int:
    """Compute features of videos of any length into OUTPUT, a folder or one file.

    Run it again to go on after an interruption; run it under torchrun, mpiexec or srun to share the
    work between processes and nodes.
    """
    from i3d.tasks.features.extraction import run

    return run(
        source,
        output,
        checkpoints=checkpoints,
        purpose=purpose,
        chosen=chosen,
        strict=strict,
        as_json=as_json,
        annotations=annotations,
        layout=layout,
        split=split,
        trim=trim,
    )


@cli.command()
@click.argument("real")
@click.argument("fake", required=False)
@click.option(
    "--protocol",
    type=click.Choice(["google-2018", "stylegan-v", "videogpt"]),
    help="Whose FVD.  [default: google-2018, or that of saved statistics]",
)
@click.option(
    "--checkpoint",
    default="rgb_imagenet_kinetics400",
    show_default=True,
    metavar="NAME|PATH",
    help="RGB network; the protocols' own is TF-Hub's SavedModel folder.",
)
@click.option("--frames", type=int, help="Of each clip.  [default: the protocol's, 16]")
@click.option("--stride", type=int, help="Take every so many frames.  [default: 1]")
@click.option("--videos", type=int, help="Of each set.  [default: the protocol's]")
@click.option("--endpoint", type=click.Choice(["logits", "features"]), help="[default: logits]")
@click.option("--resize", type=click.Choice(["tf1", "half-pixel"]), help="Grid of the resize.")
@click.option("--fit", type=click.Choice(["squash", "crop"]), help="Of a picture to a square.")
@click.option("--divisor", type=click.Choice(["n-1", "n"]), help="Of the covariance.")
@click.option("--bn-eps", type=float, help="BatchNorm's epsilon.")
@click.option("--kvd", is_flag=True, help="The kernel distance too, which is unbiased.")
@click.option("--plot", metavar="PNG", help="Draw how FVD falls with the number of videos.")
@click.option(
    "--save-statistics",
    metavar="NPZ",
    help="Write REAL's mean and covariance, to be given in its place; FAKE may be left out.",
)
@precision_option
@batch_size_option
@workers_option("the cores; on a CPU 2, of two cores none")
@device_option
@click.option("--output", metavar="JSON", help="Write the result for machines.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any video was skipped.")
@json_option
def fvd(
    real: str,
    fake: str | None,
    precision: Any,
    batch_size: int | None,
    workers: int | None,
    device: str,
    protocol: str | None,
    checkpoint: str,
    kvd: bool,
    plot: str | None,
    save_statistics: str | None,
    output: str | None,
    strict: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Measure the Fréchet Video Distance between two sets of videos.

    REAL and FAKE are folders of videos, shards, .npy or .npz arrays of videos or of features, or
    saved statistics. A protocol's settings can be changed; the result's name then says so. Run it
    under torchrun, mpiexec or srun to share the work between processes and nodes.
    """
    from i3d.tasks.fvd.metric import Options, run

    return run(
        real,
        fake,
        checkpoint=checkpoint,
        protocol=protocol,
        changes={name: value for name, value in settings.items() if value is not None},
        options=Options(precision, batch_size, workers, device),
        kvd=kvd,
        plot=plot,
        save_statistics=save_statistics,
        output=output,
        strict=strict,
        as_json=as_json,
    )


@cli.command()
@click.argument("shards")
@click.option("--stream", type=click.Choice(["rgb", "flow"]), required=True, help="Of the network.")
@click.option("--output", required=True, metavar="DIR", help="Folder of the run.")
@click.option(
    "--init",
    default="scratch",
    show_default=True,
    metavar="scratch|CHECKPOINT|inflate:FILE",
    help="What to begin with; FILE is a 2D googlenet's .safetensors.",
)
@click.option("--val", metavar="SHARDS", help="Validate on these, of the same classes.")
@click.option("--resume", is_flag=True, help="Go on with the run in --output, if there is one.")
@click.option(
    "--recipe",
    type=click.Choice(["original", "finetune"]),
    default="original",
    show_default=True,
    help="SGD by the authors' steps, or AdamW with warm-up and cosine.",
)
@click.option("--epochs", type=int, help="Length of the run.  [default: 30 with finetune]")
@click.option("--steps", type=int, help="Likewise.  [default: the authors' with original]")
@click.option("--learning-rate", type=float, help="The peak.  [default: 0.1; finetune: 1e-4]")
@click.option("--weight-decay", type=float, help="[default: 1e-7; finetune: 0.05]")
@click.option("--momentum", type=float, help="Of SGD.  [default: 0.9]")
@click.option("--warmup-steps", type=int, help="[default: 0; finetune: 5 % of all]")
@click.option("--batch-size", type=int, help="Clips at a time, of each process.  [default: 6]")
@click.option(
    "--accumulate", default=1, show_default=True, help="Batches whose gradients make one step."
)
@click.option("--frames", default=64, show_default=True, help="Of each clip.")
@click.option("--flip/--no-flip", default=True, help="Mirror half of the clips.  [default: flip]")
@click.option("--dropout", default=0.5, show_default=True, help="Before the classifier.")
@click.option("--label-smoothing", default=0.0, show_default=True, help="Share of the target.")
@click.option("--clip-gradients", type=float, metavar="NORM", help="Bound of the gradients' norm.")
@click.option("--ema", type=float, metavar="DECAY", help="Keep a moving average of the weights.")
@click.option("--freeze", metavar="ENDPOINT", help="Leave the layers up to this one as they are.")
@click.option("--width", type=float, help="Of a network from scratch.  [default: 1]")
@click.option("--sync-batch-norm", is_flag=True, help="Normalise over all processes' clips.")
@click.option(
    "--bn-momentum",
    type=float,
    help="Of BatchNorm's statistics.  [default: a window that grows to the original's 0.001]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the network's arithmetic; fp16 on CUDA alone.",
)
@click.option("--compile", is_flag=True, help="Use torch.compile.")
@click.option("--seed", default=0, show_default=True, help="Of all that is random.")
@workers_option("the cores; on a CPU 2, of two cores none")
@device_option
@click.option(
    "--save-steps", default=500, show_default=True, help="Save so often, and after each epoch."
)
@click.option("--log-steps", default=10, show_default=True, help="Steps in a row of the log.")
@click.option("--val-every", default=1, show_default=True, help="Epochs between validations.")
@click.option("--val-frames", type=int, help="Of a validation clip.  [default: --frames]")
@json_option
def train(shards: str, **options: Any) -> int:
    """Train a network on SHARDS, a folder that precompute wrote.

    Run it under torchrun, mpiexec or srun for several processes and nodes.
    """
    from i3d.tasks.train.run import run

    return run(shards, **options)


@cli.command()
@click.argument("output", default="i3d-demo", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--seed", default=SEED, show_default=True, help="Of the videos; another one gives others."
)
@click.option("--per-class", default=PER_CLASS, show_default=True, help="Videos of each action.")
@click.option(
    "--workers", type=int, help="Processes that render and precompute.  [default: the cores]"
)
@click.option("--videos-only", is_flag=True, help="Only render, to OUTPUT/ACTION/*.mp4.")
@click.option(
    "--action",
    "actions",
    multiple=True,
    metavar="NAME",
    help="With --videos-only: which to render; repeat it for several.  [default: the twelve]",
)
def demo(output: Path, videos_only: bool, actions: tuple[str, ...], **options: Any) -> None:
    """Run the whole system on videos that it renders, into the folder OUTPUT (default: i3d-demo).

    The videos are synthetic: figures that do one of twelve actions. They are precomputed, evaluated
    with two small networks that come with the package, and shown in OUTPUT/index.html; offline, in
    two minutes on two cores. Run it again to go on after an interruption.
    """
    from i3d.demo.pipeline import render_videos, run

    if videos_only:
        render_videos(output, actions=actions or None, **options)
    elif actions:
        raise UsageError("--action is for --videos-only; the demo's networks know the twelve")
    else:
        run(output, **options)
