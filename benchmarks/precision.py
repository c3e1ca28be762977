"""What lower precision, other runtimes and other orders of the sums change in the answers.

    python benchmarks/precision.py CLIP... [--rgb CHECKPOINT] [--step 32] [--exact] [--fp16]

Each clip's first ten seconds give windows of 64 frames, one every 32. Each row is compared with
`i3d.load`'s network in fp32 on the same windows: the largest change of a logit, the largest change
of the probability of that network's best class, and on how many windows the best class is the
same. --exact adds how far the fp32 rows are from a float64 computation. --fp16 adds autocast to
float16, for which PyTorch has no fast convolution on CPUs: 40 s for 16 frames.
"""

import tempfile
from pathlib import Path
from unittest import mock

import common
import torch

from i3d import rgb_clip
from i3d.models import winograd
from i3d.models.checkpoints import build, read_weights, resolve
from i3d.models.exported.runtimes import ExportedNetwork
from i3d.models.memory import reuse_freed_memory
from i3d.tasks.export import export
from i3d.tasks.network import compute

BATCH = 3


def ask(model, clips, precision="fp32"):
    """Logits float64 (N, 400) of clips (C, T, H, W), one by one."""
    return torch.cat([compute(model, clip[None], precision=precision) for clip in clips]).double()


def ask_in_batches(model, clips):
    batches = [torch.stack(clips[i : i + BATCH]) for i in range(0, len(clips), BATCH)]
    return torch.cat([compute(model, batch) for batch in batches]).double()


def ask_one_thread(model, clips):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return ask(model, clips)
    finally:
        torch.set_num_threads(threads)


def ask_plainly(model, clips):
    """Without Winograd's algorithm."""
    with mock.patch.object(winograd, "pays", lambda *_: False):
        return ask(model, clips)


def ask_in_float64(weights, clips):
    model = build(weights).double().eval()
    with torch.inference_mode():
        return torch.cat([model(clip[None].double()) for clip in clips])


def rounded(weights):
    """The folded network with its weights rounded to float16, computed in float32."""
    return build(weights).fold().half().float()


def rows(checkpoint, weights, model, clips, folder, fp16):
    """(name, whether it computes in fp32, logits)."""
    yield "unfolded (trainable=True)", True, ask(build(weights).eval(), clips)
    yield "no Winograd", True, ask_plainly(model, clips)
    yield f"batch of {BATCH}", True, ask_in_batches(model, clips)
    yield "1 thread", True, ask_one_thread(model, clips)
    yield "autocast bf16", False, ask(model, clips, "bf16")
    if fp16:
        yield "autocast fp16", False, ask(model, clips, "fp16")
    yield "weights rounded to fp16", False, ask(rounded(weights), clips)
    for precision in ("fp32", "fp16"):
        path = folder / f"{precision}.onnx"
        export(checkpoint, path, precision=precision)
        for runtime, name in (("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")):
            network = ExportedNetwork(path, runtime=runtime)
            yield f"{name} {precision}", precision == "fp32", ask(network, clips)


def compare(expected, found):
    best = expected.argmax(1)
    change = found.softmax(1) - expected.softmax(1)
    of_best = change.gather(1, best[:, None])[:, 0]
    return {
        "largest_logit_change": float((found - expected).abs().max()),
        "best_class_probability_change": float(of_best.abs().max()),
        "largest_probability_change": float(change.abs().max()),
        "top1_same": int((found.argmax(1) == best).sum()),
    }


def main():
    parser = common.options(__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--rgb", default="rgb_scratch_kinetics400")
    parser.add_argument("--frames", type=int, default=64, help="of a window")
    parser.add_argument("--step", type=int, default=32, help="frames between windows")
    parser.add_argument("--exact", action="store_true", help="compare with float64 too")
    parser.add_argument("--fp16", action="store_true", help="autocast to float16 too; slow")
    args = common.parse(parser)
    reuse_freed_memory()
    clips, windows = [], {}
    for path in args.clips:
        found = common.cut_windows(
            common.read_clip(path), args.frames, step_seconds=args.step / 25
        ).values()
        windows[path.name] = len(found)
        clips += [rgb_clip(frames) for frames in found]
    weights = read_weights(resolve(args.rgb))
    model = build(weights).fold()
    base = ask(model, clips)
    likeliest = base.softmax(1).max(1).values.tolist()
    result = {
        "windows": windows,
        "frames": args.frames,
        "largest_logit": float(base.abs().max()),
        "probabilities": likeliest,
        "changes": {},
    }
    if args.exact:
        exact = ask_in_float64(weights, clips)
        result["from_float64"] = {"i3d.load": compare(exact, base)}
    packages = ("torch", "onnxruntime", "openvino")
    print(f"{len(clips)} windows, logits up to {result['largest_logit']:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        made = rows(args.rgb, weights, model, clips, Path(folder), args.fp16)
        for name, is_fp32, logits in made:
            row = result["changes"][name] = compare(base, logits)
            line = (
                f"{name:28}{row['largest_logit_change']:10.1e}"
                f"{row['best_class_probability_change']:10.1e}"
                f"{row['largest_probability_change']:10.1e}{row['top1_same']:4}"
            )
            if args.exact and is_fp32:
                of_exact = result["from_float64"][name] = compare(exact, logits)
                line += f"   from float64 {of_exact['largest_logit_change']:.1e}"
            print(line, flush=True)
            common.write(args, result, *packages)


if __name__ == "__main__":
    main()
