"""How fast the network is, beside its peers and the limit of the arithmetic.

    python benchmarks/forward.py [--rounds 7] [--threads 2]               on a CPU
    python benchmarks/forward.py --device cuda [--batches 1 4 16 64]      on a GPU

A clip of 64 frames of 224 x 224 pixels, full width. All rows of a round are run in turns, so that a
neighbour's load meets all of them; a row's figure is the median of its rounds.

On a CPU, in float32: `i3d.load`'s network; the same weights in a network as ports write it
(channels first, padding copied, ReLU apart); ONNX Runtime and OpenVINO where they are installed
(`pip install "i3d[export,openvino]"`); the convolutions alone, each on an input that
lies ready; and the time that the multiplications take at the rate of a large matrix product.

On a GPU: eager, compiled and as a CUDA graph, in fp32, tf32 and bf16, for each batch; clips per
second, and the share of the rate of a large matrix product of that precision in the same run. Then
the time of every row of the table in bf16, and how far bf16's logits are from fp32's.
"""

import os
import tempfile
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import common
import numpy as np
import torch
import torch.nn.functional as F
from common import trained_like
from torch import nn

import i3d
from i3d.models.folded import FoldedUnit, NeighbourMax
from i3d.models.i3d import TABLE, MaxPool, Unit3D
from i3d.models.memory import reuse_freed_memory
from i3d.models.padding import same_pads
from i3d.tasks.export import export
from i3d.tasks.network import compute

SHAPE = (3, 64, 224, 224)
PACKAGES = ("torch", "onnxruntime", "openvino", "triton")


def convolutions_of(network, clip):
    """Every convolution with its input: (row of the table, module, input without padding)."""
    found = []
    row = ""

    def before(module, inputs):
        found.append((row, module, inputs[0].detach()))

    units = [m for m in network.modules() if isinstance(m, Unit3D | FoldedUnit)]
    hooks = [unit.register_forward_pre_hook(before) for unit in units]
    x = clip
    with torch.inference_mode():
        for row, _ in TABLE:
            x = network.get_submodule(row)(x)
    for hook in hooks:
        hook.remove()
    return found


def operations(unit, x):
    """Floating point operations of a convolution: a multiplication and an addition a tap."""
    out = [-(-n // s) for n, s in zip(x.shape[2:], unit.conv.stride, strict=True)]
    return 2 * x.shape[0] * int(np.prod(out)) * unit.conv.weight.numel()


# --- peers ----------------------------------------------------------------------------------------


class AsPorts(nn.Module):
    """A folded I3D, computed as ports of it do: a copy for each padding, ReLU by itself."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()

    def forward(self, clip):
        x = clip
        for row, _ in TABLE:
            x = self.layer(self.network.get_submodule(row), x)
        x = F.avg_pool3d(x, (2, 7, 7), 1)
        return self.network.Logits.Conv3d_0c_1x1(x).mean((2, 3, 4))

    def layer(self, module, x):
        if isinstance(module, FoldedUnit):
            x = self.padded(x, module.conv.kernel_size, module.conv.stride)
            conv = module.conv
            return F.relu(F.conv3d(x, conv.weight, conv.bias, conv.stride))
        if isinstance(module, MaxPool | NeighbourMax):
            x = self.padded(x, module.kernel, module.stride)
            return F.max_pool3d(x, module.kernel, module.stride)
        if type(module) is nn.Sequential:
            for part in module:
                x = self.layer(part, x)
            return x
        return torch.cat([self.layer(branch, x) for branch in module.children()], 1)

    @staticmethod
    def padded(x, kernel, stride):
        pads = same_pads(x.shape[2:], kernel, stride)
        return F.pad(x, [p for pair in reversed(pads) for p in pair])


def peers(network, clip, threads):
    """Name -> callable, of the runtimes that are installed; their logits are checked."""
    if not (find_spec("onnx") and find_spec("onnxruntime")):
        return {}
    found = {}
    expected = network(clip).numpy()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, path = (Path(folder) / name for name in ("i3d.safetensors", "i3d.onnx"))
        i3d.save(trained_like(), checkpoint)
        export(checkpoint, path)
        array = clip.numpy()
        import onnxruntime

        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, session_options)
        found["ONNX Runtime"] = lambda: session.run(["logits"], {"clip": array})[0]
        if find_spec("openvino"):
            import openvino

            config = {
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": "LATENCY",
            }
            core = openvino.Core()
            model = core.read_model(path)
            model.reshape({"clip": list(clip.shape)})  # a size that is known serves it best
            request = core.compile_model(model, "CPU", config).create_infer_request()
            found["OpenVINO"] = lambda: request.infer([array])["logits"]
    for name, run in found.items():
        assert np.abs(run() - expected).max() < 1e-3, f"{name} computes something else"
    return found


# --- CPU ------------------------------------------------------------------------------------------


def on_cpu(args):
    torch.set_num_threads(args.threads)
    reuse_freed_memory()
    clip = torch.rand(1, *SHAPE) * 2 - 1
    network = trained_like().fold()
    work = convolutions_of(network, clip)
    flop = sum(operations(unit, x) for _, unit, x in work)
    matrices = torch.rand(2, 2048, 2048)

    def convolutions():
        for _, unit, x in work:
            unit(x)

    ports = AsPorts(trained_like().fold())
    rows = {
        "i3d": lambda: network(clip),
        "as ports write it": lambda: ports(clip),
        "convolutions alone": convolutions,
    }
    with torch.inference_mode():
        rows |= peers(network, clip, args.threads)
        rows["matrix product"] = lambda: torch.mm(*matrices)
        median = common.medians(
            lambda: {name: common.timed(run)[0] for name, run in rows.items()},
            args.rounds,
            warm_up=1,
        )
    rate = 2 * 2048**3 / median.pop("matrix product")
    median["multiplications at the rate of a matrix product"] = flop / rate
    print(f"1 x {SHAPE}, fp32, {args.threads} threads, {flop / 1e9:.0f} GFLOP a clip")
    for name, seconds in median.items():
        print(f"  {name:50}{seconds:8.3f} s   {median['i3d'] / seconds:6.2f} = ours / this")
    return {
        "clip": [1, *SHAPE],
        "threads": args.threads,
        "rounds": args.rounds,
        "flop": flop,
        "matrix_flop_per_second": rate,
        "seconds": median,
        "ours_over": {name: median["i3d"] / seconds for name, seconds in median.items()},
    }


# --- GPU ------------------------------------------------------------------------------------------

PRECISIONS = {"fp32": (torch.float32, False), "tf32": (torch.float32, True)}
PRECISIONS["bf16"] = (torch.bfloat16, True)


def on_cuda(args):
    flop = sum(
        operations(u, x) for _, u, x in convolutions_of(trained_like(), torch.rand(1, *SHAPE))
    )
    result = {"clip_flop": flop, "rounds": args.rounds, "precisions": {}}
    for precision, (dtype, tf32) in PRECISIONS.items():
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
        rate = matrix_rate(dtype)
        network = trained_like().fold().to("cuda", dtype)
        print(f"{precision}: matrix product {rate / 1e12:.0f} TFLOP/s")
        table = result["precisions"][precision] = {"matrix_flop_per_second": rate, "clips": {}}
        for batch in args.batches:
            clip = torch.rand(batch, *SHAPE, device="cuda", dtype=dtype) * 2 - 1
            clip = clip.contiguous(memory_format=torch.channels_last_3d)
            for form, run in forms(network, clip):
                seconds = cuda_seconds(run, args.rounds)
                share = batch * flop / seconds / rate
                table["clips"][f"{form}, batch {batch}"] = {
                    "clips_per_second": batch / seconds,
                    "share_of_matrix_rate": share,
                    "peak_bytes": torch.cuda.max_memory_allocated(),
                }
                print(f"  {form:10} batch {batch:3}{batch / seconds:9.1f} clips/s {share:6.1%}")
            del run  # and with it the graph's memory, before the next one's peak is measured
        if precision == "bf16":
            result["rows_bf16"] = by_row(network, clip, rate, args.rounds)
    result["bf16_against_fp32"] = bf16_error(args)
    return result


def forms(network, clip):
    """(name, callable): eager, compiled, and replayed as a CUDA graph, each when it is its turn."""
    torch.cuda.reset_peak_memory_stats()
    yield "eager", lambda: network(clip)

    # Dynamo compiles a function for eight inputs, and runs it uncompiled for the ninth.
    torch._dynamo.reset()
    torch.cuda.reset_peak_memory_stats()
    compiled = torch.compile(network)
    yield "compiled", lambda: compiled(clip)

    torch.cuda.reset_peak_memory_stats()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())  # which may still fill the clip
        with torch.cuda.stream(side):  # warmed up apart, as capturing asks for
            for _ in range(3):
                network(clip)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            network(clip)
    yield "graph", graph.replay


def cuda_seconds(run, rounds):
    """Median of the rounds, by the GPU's own clock."""

    def once():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    with torch.inference_mode():
        return common.median(once, rounds, warm_up=3)


def matrix_rate(dtype, size=8192):
    """Floating point operations a second of a large matrix product."""
    a, b = torch.rand(2, size, size, device="cuda", dtype=dtype)
    return 2 * size**3 / cuda_seconds(lambda: torch.mm(a, b), 10)


def by_row(network, clip, rate, rounds):
    """Milliseconds and share of the matrix rate of every row of the table."""
    flop = dict.fromkeys((name for name, _ in TABLE), 0)
    for row, unit, x in convolutions_of(network, clip):
        flop[row] += operations(unit, x)
    rows = {}
    x = clip
    with torch.inference_mode():
        for name, _ in TABLE:
            module = network.get_submodule(name)
            seconds = cuda_seconds(lambda m=module, x=x: m(x), rounds)
            rows[name] = {"milliseconds": 1000 * seconds, "share": flop[name] / seconds / rate}
            print(f"  {name:20}{1000 * seconds:8.2f} ms {rows[name]['share']:6.1%}")
            x = module(x)
    return rows


def bf16_error(args):
    """On videos: logits' largest difference, and whether top-1 agrees; as evaluation computes."""
    if not args.videos:
        return None
    network = i3d.load(args.checkpoint).to("cuda")
    logits = {"fp32": [], "bf16": []}
    for video in args.videos:
        clip = i3d.rgb_clip(i3d.read_video(video)[:250])[None].to("cuda")
        for precision, of_videos in logits.items():
            of_videos.append(compute(network, clip, precision=precision)[0].cpu().numpy())
    logits = {precision: np.stack(of_videos) for precision, of_videos in logits.items()}
    agree = (logits["fp32"].argmax(1) == logits["bf16"].argmax(1)).mean()
    error = float(np.abs(logits["fp32"] - logits["bf16"]).max())
    spread = float(np.ptp(logits["fp32"]))
    print(f"bf16: logits differ by {error:.3g} of {spread:.3g}, top-1 agrees in {agree:.1%}")
    return {"videos": len(args.videos), "error": error, "spread": spread, "top1_agrees": agree}


def main():
    parser = common.options(__doc__, rounds=7, gpu=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--checkpoint", default="rgb_imagenet_kinetics400", help="for --videos")
    parser.add_argument("--videos", type=Path, nargs="*", help="compare bf16 on them (GPU)")
    args = common.parse(parser)
    with torch.no_grad() if args.device == "cuda" else nullcontext():
        measured = on_cpu(args) if args.device == "cpu" else on_cuda(args)
    common.write(args, measured, *PACKAGES)


if __name__ == "__main__":
    main()
