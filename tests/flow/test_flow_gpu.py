"""TV-L1 on a GPU, without one: its kernels run on the CPU here and must give the CPU's bits.

With I3D_REQUIRE_GPU=1 the tests that need a GPU fail where there is none, instead of skipping.
"""

import ctypes
import logging
import os
import re
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import gpu_stand_in, plain_tvl1
from support.flow import moved, opencv_flow, texture, translated

from i3d.errors import I3DError, UsageError
from i3d.flow import TVL1, batch, check_device, flow_kernel, gpu, optical_flow, stream_flow

CPU = torch.device("cpu")
TINY = gpu.Tiling(tile_width=32, strips=4, rows=4)  # many tiles in a small picture

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() and not os.environ.get("I3D_REQUIRE_GPU"), reason="no GPU"
)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    built = gpu_stand_in.build(tmp_path_factory.mktemp("tiny"), TINY)
    if built is None:
        pytest.skip("no C++ compiler (g++ or clang++) to run the GPU's kernels on the CPU")
    return built


def moving_frames(height, width):
    pattern = texture(height + 32, width + 32)
    rotation = cv2.getRotationMatrix2D((width / 2, height / 2), 2, 1.01)
    return np.stack(
        [translated(pattern, 0, 0), translated(pattern, 1.7, -2.4), moved(pattern, rotation)]
    )


def solve(kernels, frames, pairs=((0, 1), (1, 2)), parameters=TVL1(), slots=2):  # noqa: B008
    solver = gpu.BatchSolver(
        *frames.shape[1:],
        parameters,
        CPU,
        kernels=kernels,
        slots=slots,
        most_frames=max(len(frames), len(pairs)),
    )
    solver._result.fill_(torch.nan)  # every pixel must be written
    return solver.flow(frames, pairs).numpy()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (57, 91), (31, 70)])
def test_kernels_give_the_cpus_bits(kernels, height, width):
    frames = moving_frames(height, width)
    flow = solve(kernels, frames)
    np.testing.assert_array_equal(flow, optical_flow(frames))
    # measured: identical where OpenCV warps with AVX-512; 0.031 px where it rounds differently
    assert np.abs(flow[0] - opencv_flow(frames[0], frames[1])).mean() < 0.05


@pytest.mark.parametrize("tiling", gpu.TILINGS, ids=lambda tiling: f"{tiling.rows} rows")
def test_the_tiles_of_every_gpu_give_the_same_bits(tmp_path, tiling):
    kernels = gpu_stand_in.build(tmp_path, tiling)
    if kernels is None:
        pytest.skip("no C++ compiler (g++ or clang++)")
    frames = moving_frames(57, 70)[:2]
    np.testing.assert_array_equal(solve(kernels, frames, [(0, 1)]), optical_flow(frames))


def test_no_race(kernels):
    """Threads and blocks in the opposite order: a missing barrier would show."""
    frames = moving_frames(40, 60)
    expected = solve(kernels, frames)
    kernels.stand_in.run_backwards(1)
    try:
        np.testing.assert_array_equal(solve(kernels, frames), expected)
    finally:
        kernels.stand_in.run_backwards(0)


def test_a_pair_does_not_depend_on_its_neighbours(kernels):
    frames = moving_frames(30, 45)
    pairs = [(0, 1), (1, 2), (0, 0), (2, 0), (1, 0)]
    together = solve(kernels, frames, pairs, slots=3)
    for slots, chosen in ((1, pairs), (8, pairs[::-1]), (2, pairs[3:])):
        for pair, flow in zip(chosen, solve(kernels, frames, chosen, slots=slots), strict=True):
            np.testing.assert_array_equal(flow, together[pairs.index(pair)])
    assert not together[2].any()  # no motion between a frame and itself


def test_a_solver_is_used_again(kernels):
    frames = moving_frames(24, 40)
    solver = gpu.BatchSolver(24, 40, TVL1(), CPU, kernels=kernels, slots=2, most_frames=4)
    first = solver.flow(frames, [(0, 1), (1, 2)]).clone()
    solver.flow(frames[::-1].copy(), [(0, 1)])
    torch.testing.assert_close(solver.flow(frames, [(0, 1), (1, 2)]), first, rtol=0, atol=0)
    assert solver.flow(frames[:1], []).shape == (0, 24, 40, 2)


@pytest.mark.parametrize(
    "parameters",
    [
        TVL1(inner_iterations=7, outer_iterations=2, epsilon=1e-4),  # a pass of 4 and one of 3
        TVL1(tau=0.2, lambda_=0.1, theta=0.25, scales=3, warps=2, epsilon=0.02),
        TVL1(scales=1, warps=1, inner_iterations=1, outer_iterations=3),
        TVL1(scale_step=0.5),
    ],
)
def test_other_parameters_give_the_cpus_bits(kernels, parameters):
    frames = moving_frames(40, 52)[:2]
    expected = optical_flow(frames, parameters=parameters)
    np.testing.assert_array_equal(solve(kernels, frames, [(0, 1)], parameters), expected)


def test_motion_far_outside_the_image(kernels):
    frames = np.random.default_rng(3).integers(0, 256, (2, 30, 38), np.uint8)
    np.testing.assert_array_equal(solve(kernels, frames, [(0, 1)]), optical_flow(frames))


def test_quotients_and_roots_are_rounded_once(kernels):
    rng = np.random.default_rng(0)
    count = 1_000_000
    a = (rng.normal(size=count) * 10.0 ** rng.integers(-6, 2, count)).astype(np.float32)
    b = (1 + np.abs(rng.normal(size=count)) * 10.0 ** rng.integers(-3, 3, count)).astype(np.float32)
    quotients, roots = np.empty_like(a), np.empty_like(a)
    pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in (a, b, quotients, roots)]
    kernels.stand_in.arithmetic(*pointers, count)
    assert (quotients != a / b).sum() == 0  # measured: 0 of 200 million
    exact = np.sqrt(a.astype(np.float64) ** 2 + b.astype(np.float64) ** 2).astype(np.float32)
    assert (roots != exact).sum() <= 3  # measured: 20 of 200 million


def test_structs_are_laid_out_alike(kernels):
    sizes = (ctypes.c_int * 4)()
    kernels.stand_in.struct_sizes(sizes)
    ours = (
        ctypes.sizeof(gpu._Scale),
        ctypes.sizeof(gpu._PairJob),
        4 * gpu.SLOT_INTS,
        4 * gpu.COUNTER_INTS,
    )
    assert tuple(sizes) == ours


# --- which tiling ---------------------------------------------------------------------------------

# Compute capability, KiB of shared memory for a block and for a multiprocessor (CUDA programming
# guide, "Compute Capabilities"); rows of the tiling, and its blocks on a multiprocessor.
GPUS = [
    (75, 64, 64, 7, 1),
    (80, 163, 164, 8, 2),
    (86, 99, 100, 5, 2),
    (87, 163, 164, 8, 2),
    (89, 99, 100, 5, 2),
    (90, 227, 228, 12, 2),
    (100, 227, 228, 12, 2),
    (120, 99, 100, 5, 2),
]


@pytest.fixture
def driver(kernels, monkeypatch):
    """The stand-in for the driver, as the driver of the GPU that a test makes it."""
    stand_in = kernels.stand_in
    monkeypatch.setattr(gpu, "open_driver", lambda index: nullcontext(stand_in))
    monkeypatch.setattr(gpu, "compile_kernels", lambda architecture, tiling: b"")
    gpu.load_kernels.cache_clear()
    yield stand_in
    gpu.load_kernels.cache_clear()
    stand_in.be_gpu(90, 227 * 1024, 228 * 1024)


@pytest.mark.parametrize(("capability", "block", "multiprocessor", "rows", "blocks"), GPUS)
def test_every_gpu_takes_the_tiling_that_fits_it(
    driver, caplog, capability, block, multiprocessor, rows, blocks
):
    """The stand-in refuses more shared memory than the GPU gives a block, as the driver does."""
    driver.be_gpu(capability, block * 1024, multiprocessor * 1024)
    with caplog.at_level(logging.DEBUG, "i3d.flow.gpu"):
        tiling = gpu.load_kernels(0).tiling
    assert (tiling.rows, tiling.blocks) == (rows, blocks)
    # 1 KiB of a block's shared memory is the system's, from capability 8.0 on
    needed = blocks * (tiling.shared_bytes + (1024 if capability >= 80 else 0))
    assert needed <= multiprocessor * 1024
    line = f"sm_{capability} with {multiprocessor} KiB .* 64x{4 * rows} pixels .*, {blocks} on a"
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert re.search(line, caplog.text)


def test_a_gpu_with_too_little_shared_memory_is_said_clearly(driver):
    driver.be_gpu(30, 45 * 1024, 48 * 1024)
    with pytest.raises(UsageError, match=r"46 KiB .*this GPU \(sm_30\) gives 45; use device='cpu'"):
        gpu.load_kernels(0)


@pytest.mark.parametrize("capability", [capability for capability, *_ in GPUS])
def test_kernels_compile_for_a_gpu(capability):
    try:
        gpu.load_compiler()
    except UsageError as error:
        pytest.skip(str(error))
    _, block, multiprocessor, *_ = next(known for known in GPUS if known[0] == capability)
    tiling = gpu.choose_tiling(block * 1024, multiprocessor * 1024)
    assert gpu.compile_kernels(f"sm_{capability}", tiling)[:4] == b"\x7fELF"


# --- how much memory ------------------------------------------------------------------------------


def solver_on_paper(monkeypatch, height, width, *, free, slots=None, most_frames=None):
    """A solver whose tensors have no memory, and the bytes that they would take."""
    monkeypatch.setattr(gpu, "free_bytes", lambda device: free)
    solver = gpu.BatchSolver(
        height,
        width,
        TVL1(),
        torch.device("meta"),
        kernels=SimpleNamespace(tiling=gpu.TILINGS[0]),
        slots=slots,
        most_frames=most_frames,
    )
    tensors = [value for value in vars(solver).values() if isinstance(value, torch.Tensor)]
    return solver, sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize(
    ("height", "width", "two", "stream"),
    # GB for two frames, and for as many as a long video is streamed by
    [(256, 340, 0.03, 2.0), (1080, 1920, 0.6, 6.0), (2160, 3840, 1.5, 6.0)],
)
def test_memory_follows_the_frames_there_are(monkeypatch, height, width, two, stream):
    solver, size = solver_on_paper(monkeypatch, height, width, free=140e9, most_frames=2)
    assert solver.most_frames == 2
    assert size < two * 1e9
    asked = min(batch.STREAM_FRAMES, gpu.batch_frames(height, width))
    solver, size = solver_on_paper(monkeypatch, height, width, free=140e9, most_frames=asked)
    assert solver.most_frames == asked
    assert size < stream * 1e9


@pytest.mark.parametrize("free", [1.5e9, 3e9, 6e9, 24e9])
@pytest.mark.parametrize(("height", "width"), [(256, 340), (1080, 1920)])
def test_memory_is_half_of_what_is_free_at_most(monkeypatch, height, width, free):
    for most_frames in (2, 257, None):
        solver, size = solver_on_paper(
            monkeypatch, height, width, free=free, most_frames=most_frames
        )
        assert solver.most_frames >= 2
        assert solver.slots >= 1
        assert size <= free / 2 + 1e4  # but for the tables of the scales


def test_what_pytorch_keeps_for_later_is_free(monkeypatch):
    """A solver that was there before has left its memory to PyTorch."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert gpu.free_bytes(torch.device("cuda", 1)) == 50


def test_many_tiny_frames_fit_a_launch(monkeypatch):
    solver, _ = solver_on_paper(monkeypatch, 16, 16, free=140e9)
    assert solver.most_frames == 65_535  # blocks along a grid's second axis (programming guide)


def test_frames_that_do_not_fit_are_said_clearly(monkeypatch):
    with pytest.raises(I3DError, match=r"7680x4320 needs 5\.\d GB .* 2\.0 GB, half .*'cpu'"):
        solver_on_paper(monkeypatch, 4320, 7680, free=4e9)


# --- several GPUs ---------------------------------------------------------------------------------


class Cuda:
    """The part of torch.cuda that a solver uses, on the CPU, where work belongs to a GPU's context.

    Work that is captured is kept, and done at each replay. A launch in a stream of another GPU than
    the kernels' fails, as it does there.
    """

    def __init__(self, monkeypatch):
        self.streams = [SimpleNamespace(device_index=0, cuda_stream=None)]
        self.captured, self.modes = None, []
        stand_in = self

        class Graph:
            def __init__(self):
                self.work = []

            def capture_begin(self, *, capture_error_mode, **_):
                stand_in.modes.append(capture_error_mode)
                stand_in.captured = self.work

            def capture_end(self):
                stand_in.captured = None

            def replay(self):
                for launch in self.work:
                    launch()

        fakes = {
            "is_available": lambda: True,
            "current_stream": lambda: self.streams[-1],
            "Stream": self.make_stream,
            "stream": self.enter,
            "device": lambda device: self.enter(self.make_stream(device)),
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
            "CUDAGraph": Graph,
            "Event": lambda: SimpleNamespace(record=lambda: None, synchronize=lambda: None),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)

    def make_stream(self, device=None):
        index = self.streams[-1].device_index if device is None else torch.device(device).index
        return SimpleNamespace(device_index=index, cuda_stream=None)

    @contextmanager
    def enter(self, stream):
        self.streams.append(stream)
        yield
        self.streams.pop()

    def solver(self, kernels, index):
        """A solver on the CPU that believes to be on a GPU, whose kernels are of its context."""

        def launch(name, job, grid, **how):
            assert self.streams[-1].device_index == index, "a launch in another GPU's context"
            if self.captured is None:
                kernels.launch(name, job, grid, **how)
            else:
                self.captured.append(lambda: kernels.launch(name, job, grid, **how))

        own = SimpleNamespace(tiling=kernels.tiling, launch=launch)
        solver = gpu.BatchSolver(24, 40, TVL1(), CPU, kernels=own, slots=2, most_frames=3)
        solver.device = torch.device("cuda", index)
        return solver


def test_each_gpu_captures_in_a_stream_of_its_own(kernels, monkeypatch):
    """PyTorch's graphs have one stream, of the GPU where the first was captured."""
    frames = moving_frames(24, 40)
    expected = optical_flow(frames)
    cuda = Cuda(monkeypatch)
    for index in (0, 1, 0):
        solver = cuda.solver(kernels, index)
        for _ in range(2):  # captured, and replayed
            flow = solver.flow(frames, [(0, 1), (1, 2)])
            np.testing.assert_array_equal(flow, expected)
    assert cuda.modes == ["thread_local"] * 3


# --- plain PyTorch --------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(24, 24), (40, 66)])
def test_plain_pytorch_agrees(height, width):
    frames = moving_frames(height, width)
    solver = plain_tvl1.open_solver(height, width, TVL1(), "cpu")
    flow = solver.flow(frames, [(0, 1), (1, 2)]).numpy()
    distance = np.hypot(*np.moveaxis(flow - optical_flow(frames), -1, 0))
    assert distance.mean() < 0.001  # measured 0: all bits are the same


# --- batches --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(2, 30))
def test_batches_have_every_pair_once(lengths, most_frames):
    batches = batch.cut_into_batches(lengths, most_frames)
    pairs = [(s.video, i) for b in batches for s in b for i in range(s.start, s.stop - 1)]
    assert pairs == [(v, i) for v, length in enumerate(lengths) for i in range(length - 1)]
    for segments in batches:
        assert segments
        assert sum(s.stop - s.start for s in segments) <= most_frames
        assert all(s.stop - s.start >= 2 for s in segments)


@pytest.fixture
def plain_on_cpu(monkeypatch):
    """The GPU's path with PyTorch's operations on the CPU, three frames at a time."""
    opened = []

    def open_plain(height, width, parameters, device, most_frames=None):
        opened.append((height, width))
        return plain_tvl1.open_solver(height, width, parameters, "cpu", most_frames=3)

    monkeypatch.setattr(batch, "open_solver", open_plain)
    monkeypatch.setattr(batch, "_kept_solver", open_plain)
    monkeypatch.setattr("i3d.flow.check_device", lambda device: None)
    return opened


def test_videos_of_several_sizes(plain_on_cpu):
    large, small = moving_frames(20, 30), moving_frames(16, 22)
    videos = [large, small[:1], large[::-1], small]
    flows = [[] for _ in videos]
    for number, flow in batch.flow_batches(videos, device="cuda"):
        flows[number].append(flow.numpy().copy())
    assert plain_on_cpu == [(20, 30), (16, 22)]
    assert flows[1] == []
    for number in (0, 2, 3):
        expected = optical_flow(np.ascontiguousarray(videos[number]))
        assert np.abs(np.concatenate(flows[number]) - expected).mean() < 0.001  # measured 0


def test_streaming_in_batches(plain_on_cpu):
    frames = np.concatenate([moving_frames(20, 26)] * 2)[:5]
    rgb = np.repeat(frames[..., None], 3, -1)
    streamed = np.stack(list(stream_flow(iter(rgb), device="cuda")))
    assert streamed.shape == (4, 20, 26, 2)
    assert np.abs(streamed - optical_flow(rgb)).mean() < 0.001  # measured 0
    np.testing.assert_array_equal(optical_flow(rgb, device="cuda"), streamed)
    assert list(stream_flow([], device="cuda")) == []
    assert list(stream_flow(rgb[:1], device="cuda")) == []
    with pytest.raises(I3DError, match="frame 1 is 33x32 pixels, the first one 32x32"):
        list(
            stream_flow([np.zeros((32, 32), np.uint8), np.zeros((32, 33), np.uint8)], device="cuda")
        )


@pytest.mark.parametrize("fitting", [2, 3, 100])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 7, 8, 12])
def test_a_stream_takes_the_memory_of_the_frames_there_are(monkeypatch, length, fitting):
    """Where 4 frames are read ahead, and ``fitting`` fit into the GPU: every pair, once."""
    asked = []

    class Solver:
        def __init__(self, height, width, parameters, device, most_frames):
            asked.append(most_frames)
            self.most_frames = min(most_frames, fitting)

        def flow(self, gray, pairs):
            assert len(gray) <= self.most_frames
            return torch.stack([torch.from_numpy(gray[list(pair), 0, 0]) for pair in pairs])

    monkeypatch.setattr(batch, "open_solver", Solver)
    monkeypatch.setattr(batch, "STREAM_FRAMES", 4)
    frames = [np.full((16, 16), number, np.uint8) for number in range(length)]
    found = batch.stream_batches(frames, device="cuda", parameters=TVL1())
    assert [tuple(pair) for pair in found] == [(i, i + 1) for i in range(length - 1)]
    assert asked == ([min(length, 4)] if length > 1 else [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_clearly():
    with pytest.raises(I3DError, match=r"device='cuda': PyTorch .* sees 0 GPUs"):
        optical_flow(moving_frames(16, 16), device="cuda")


def test_a_gpu_without_its_compiler_is_said_clearly(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.version, "hip", None)
    gpu.load_compiler.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", missing)
        with pytest.raises(UsageError, match=r"no NVRTC.*pip install nvidia-cuda-nvrtc"):
            check_device("cuda")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(UsageError, match=r"AMD's GPUs.*needs an NVIDIA GPU"):
        check_device("cuda")


def test_kernel_names():
    assert flow_kernel("cpu") == flow_kernel("auto") == "cpu"
    assert flow_kernel("cuda") == flow_kernel("cuda:1") == "cuda"


# --- on a GPU -------------------------------------------------------------------------------------


@needs_gpu
def test_gpu_agrees_with_the_cpu():
    frames = moving_frames(120, 170)
    flow = optical_flow(frames, device="cuda")
    distance = np.hypot(*np.moveaxis(flow - optical_flow(frames), -1, 0))
    assert distance.mean() < 0.03  # not measured on a GPU; 0.0007 with the kernels on a CPU
    np.testing.assert_array_equal(optical_flow(frames, device="cuda"), flow)
    np.testing.assert_array_equal(optical_flow(frames[1:], device="cuda"), flow[1:])
