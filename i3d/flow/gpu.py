"""TV-L1 on a GPU: compiles `tvl1.cu` on the spot and feeds it with batches of pairs.

The compiler is NVRTC, a library that PyTorch's CUDA wheels bring, so nothing has to be built or
installed; the kernels are launched through the driver. Both are called by ctypes: PyTorch's own
wrapper asks for an installed CUDA toolkit.

`tvl1.cu` says how the kernels work; docs/gpu.md counts what they move and compute.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from i3d.errors import I3DError, UsageError
from i3d.flow.cpu import FLOAT_EPSILON, PAD, scale_sizes
from i3d.flow.tvl1 import TVL1

SOURCE = Path(__file__).with_name("tvl1.cu")
LANES = 32  # as in tvl1.cu
REACH = 2
ROW_FLOATS = 32  # rows of the state start at whole lines of 128 bytes
PIXEL_THREADS = 256  # in a block of the pyramid's kernels
STEPS = 16  # between two looks at whether all pairs are done
PIXELS_AT_WORK = 128 * 256 * 340  # in all slots together: several times what the GPU holds at once
MOST_SLOTS = 512
PIXELS_OF_FRAMES = 1025 * 256 * 340  # in one batch: four videos of ten seconds
MOST_FRAMES = 65_535  # in one batch: a launch has no more blocks along its second axis
MEMORY_SHARE = 0.5  # of what is free on the GPU, for one solver

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut; the names are explained in tvl1.cu."""

    tile_width: int = 64
    strips: int = 4
    rows: int = 12
    blocks: int = 2
    pass_iterations: int = 4

    @property
    def threads(self) -> int:
        """In a block of `step`."""
        return self.strips * self.tile_width

    @property
    def tile_height(self) -> int:
        """Pixels."""
        return self.strips * self.rows

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block of `step`: what a pass or what a median needs."""
        tile = self.tile_width * self.tile_height
        of_pass = 8 * tile + 2 * self.threads + self.pass_iterations * self.threads
        width = self.tile_width + 2 * REACH
        of_median = width * (self.tile_height + 2 * REACH) + 5 * width * self.tile_height
        return 4 * max(of_pass, of_median)

    @property
    def macros(self) -> list[str]:
        """The compiler's options."""
        return [f"-D{name.upper()}={value}" for name, value in vars(self).items()]

    def tiles(self, length: int, tile: int) -> int:
        """Tiles of ``tile`` pixels that cover ``length``, neighbours sharing two halos."""
        step = tile - 2 * self.pass_iterations
        return 1 + max(0, math.ceil((length - tile) / step))


# From the largest, which computes least in its halo, to the smallest; `choose_tiling` says whose.
TILINGS = (
    Tiling(),  # 102 KiB of shared memory a block
    Tiling(rows=8),  # 70
    Tiling(rows=7),  # 62
    Tiling(rows=5),  # 46
)
RESERVED_BYTES = 1024  # of shared memory, which the driver takes for each block


def choose_tiling(block_bytes: int, multiprocessor_bytes: int) -> Tiling | None:
    """The first tiling of which two blocks fit a multiprocessor, else the first of which one does.

    Args:
        block_bytes: shared memory that the GPU gives one block at most.
        multiprocessor_bytes: shared memory of a multiprocessor.

    Returns:
        None where no tiling fits.
    """
    fitting = [tiling for tiling in TILINGS if tiling.shared_bytes <= block_bytes]
    for tiling in fitting:
        if tiling.blocks * (tiling.shared_bytes + RESERVED_BYTES) <= multiprocessor_bytes:
            return tiling
    return replace(fitting[0], blocks=1) if fitting else None


# --- what the kernels are passed, field for field as in tvl1.cu ----------------------------------


class _Scale(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("height", "width", "stride", "tiles_x", "tiles")),
        ("limit", ctypes.c_float),
        ("step_y", ctypes.c_double),
        ("step_x", ctypes.c_double),
        ("taps", ctypes.c_longlong),
    ]


class _PairJob(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("scales", "gray", "taps", "frames", "counters", "slots")
        ),
        *((name, ctypes.c_void_p) for name in ("flow", "dual", "data", "changes", "result")),
        ("frame_taps", ctypes.c_longlong),
        ("plane", ctypes.c_longlong),
        ("shrink", ctypes.c_double),
        *(
            (name, ctypes.c_float)
            for name in ("epsilon_square", "step", "theta", "tau_by_theta", "zoom")
        ),
        *((name, ctypes.c_int) for name in ("num_scales", "most_tiles", "warps")),
        *((name, ctypes.c_int) for name in ("outer_iterations", "inner_iterations", "scale")),
    ]


# Attributes of a function, as the driver numbers them: a block's shared memory, and how much of the
# memory that it shares with the first-level cache is to be shared memory, so that two blocks fit.
MOST_SHARED_BYTES, SHARED_PERCENT = 8, 9
# Attributes of a GPU: its compute capability, and the shared memory of a multiprocessor and of a
# block that asks for more than the usual 48 KiB.
MAJOR, MINOR, MULTIPROCESSOR_BYTES, BLOCK_BYTES = 75, 76, 81, 97
SLOT_INTS = 10  # of struct Slot
COUNTER_INTS = 3  # of struct Counters: pairs, next, done
DONE = 2


# --- compiling and launching ---------------------------------------------------------------------


class Kernels:
    """The compiled kernels, ready to launch.

    Args:
        code: machine code, as `compile_kernels` gives it.
        driver: the CUDA driver's library.
        tiling: how the code that was compiled cuts a picture.
    """

    def __init__(self, code: bytes, driver: Any, tiling: Tiling) -> None:
        self.tiling = tiling
        self._driver = driver
        driver.cuLaunchKernel.argtypes = [
            ctypes.c_void_p,
            *[ctypes.c_uint] * 7,
            *[ctypes.c_void_p] * 3,
        ]
        module = ctypes.c_void_p()
        _check(driver, driver.cuModuleLoadData(ctypes.byref(module), code))
        self._functions = {}
        for name in ("shrink", "differentiate", "step", "advance"):
            function = ctypes.c_void_p()
            pointer = ctypes.byref(function)
            _check(driver, driver.cuModuleGetFunction(pointer, module, name.encode()))
            self._functions[name] = function
        for attribute, value in ((MOST_SHARED_BYTES, tiling.shared_bytes), (SHARED_PERCENT, 100)):
            step = self._functions["step"]
            _check(driver, driver.cuFuncSetAttribute(step, attribute, value))

    def launch(
        self,
        name: str,
        job: _PairJob,
        grid: tuple[int, int],
        *,
        threads: int,
        shared_bytes: int = 0,
    ) -> None:
        """Put a kernel in PyTorch's current stream."""
        stream = torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else None
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(job))
        function = self._functions[name]
        size = (*grid, 1, threads, 1, 1, shared_bytes)
        status = self._driver.cuLaunchKernel(function, *size, stream, arguments, None)
        _check(self._driver, status)


@functools.cache
def load_kernels(device_index: int) -> Kernels:
    """Compile for a GPU and load; once in a process, about a second.

    Raises:
        UsageError: no compiler, or a GPU that has too little shared memory.
        I3DError: the driver refuses.
    """
    with open_driver(device_index) as driver:
        architecture, tiling = describe_gpu(driver)
        return Kernels(compile_kernels(architecture, tiling), driver, tiling)


@contextmanager
def open_driver(device_index: int) -> Iterator[Any]:
    """The CUDA driver's library, with PyTorch's context of a GPU as the current one."""
    with torch.cuda.device(device_index):
        torch.zeros(1, device="cuda")  # makes the context
        yield ctypes.CDLL("libcuda.so.1")


def describe_gpu(driver: Any) -> tuple[str, Tiling]:
    """The current GPU's architecture such as ``sm_90``, and its tiling.

    Raises:
        UsageError: no tiling fits into its shared memory.
    """
    gpu = ctypes.c_int()
    _check(driver, driver.cuCtxGetDevice(ctypes.byref(gpu)))

    def ask(attribute: int) -> int:
        value = ctypes.c_int()
        _check(driver, driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, gpu))
        return value.value

    architecture = f"sm_{ask(MAJOR)}{ask(MINOR)}"
    block, multiprocessor = ask(BLOCK_BYTES), ask(MULTIPROCESSOR_BYTES)
    tiling = choose_tiling(block, multiprocessor)
    if tiling is None:
        least = min(tiling.shared_bytes for tiling in TILINGS)
        raise UsageError(
            f"flow needs {least / 1024:.0f} KiB of shared memory in a block, and this GPU "
            f"({architecture}) gives {block / 1024:.0f}; use device='cpu'"
        )
    LOG.debug(
        "%s with %d KiB of shared memory a multiprocessor and %d a block: "
        "tiles of %dx%d pixels in %d KiB, %d on a multiprocessor",
        *(architecture, multiprocessor // 1024, block // 1024),
        *(tiling.tile_width, tiling.tile_height, tiling.shared_bytes // 1024, tiling.blocks),
    )
    return architecture, tiling


def _check(driver: Any, status: int) -> None:
    if status != 0:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        reason = text.value.decode() if text.value else f"error {status}"
        raise I3DError(f"the GPU's driver refuses the flow kernels: {reason}")


def compile_kernels(architecture: str, tiling: Tiling) -> bytes:
    """Machine code of tvl1.cu for an architecture such as ``sm_90``; needs no GPU.

    Raises:
        UsageError: no compiler.
        I3DError: the compiler's errors.
    """
    compiler = load_compiler()
    # no fused product and sum but where the text says fmaf: cpu.py rounds so
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "--fmad=false", *tiling.macros]
    arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    program = ctypes.c_void_p()
    text = SOURCE.read_bytes()
    compiler.nvrtcCreateProgram(ctypes.byref(program), text, b"tvl1.cu", 0, None, None)
    try:
        status = compiler.nvrtcCompileProgram(program, len(options), arguments)
        if status != 0:
            log = _fetch(compiler, program, "ProgramLog").rstrip(b"\0").decode()
            raise I3DError(f"the flow's kernels cannot be compiled for {architecture}: {log}")
        return _fetch(compiler, program, "CUBIN")
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(compiler: Any, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(compiler, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    memory = ctypes.create_string_buffer(size.value)
    getattr(compiler, f"nvrtcGet{what}")(program, memory)
    return memory.raw


@functools.cache
def load_compiler() -> Any:
    """The NVRTC library that PyTorch was built for, or any that is installed.

    Raises:
        UsageError: there is none.
    """
    major = (torch.version.cuda or "13").split(".")[0]
    packages = Path(torch.__file__).parents[1] / "nvidia"
    folders = sorted(packages.glob("*/lib/libnvrtc.so.*"), reverse=True)
    for name in (f"libnvrtc.so.{major}", *map(str, folders), "libnvrtc.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise UsageError(
        "no NVRTC library, which compiles the flow's kernels for an NVIDIA GPU: "
        "pip install nvidia-cuda-nvrtc, or use device='cpu'"
    )


# --- batches of pairs ----------------------------------------------------------------------------


class BatchSolver:
    """Flow between many pairs of frames of one size.

    The memory for it is taken once: no more than `MEMORY_SHARE` of what is free. A pair's flow is
    the same bits whichever pairs are beside it.

    Args:
        height: pixels of a frame.
        width: pixels of a frame.
        parameters: the algorithm's.
        device: a GPU; in tests a CPU whose ``kernels`` stand in for it.
        kernels: what to launch; default: those of the GPU.
        slots: pairs at work at the same time, at most; default: as many as keep a large GPU busy.
        most_frames: number in one batch, at most; default: `batch_frames`.

    Attributes:
        slots: pairs at work at the same time.
        most_frames: number in one batch, at least 2; fewer than asked for where memory is short.

    Raises:
        UsageError: no compiler, or a GPU that has too little shared memory.
        I3DError: the driver refuses, or two frames do not fit into the memory.
    """

    def __init__(
        self,
        height: int,
        width: int,
        parameters: TVL1,
        device: torch.device,
        *,
        kernels: Kernels | None = None,
        slots: int | None = None,
        most_frames: int | None = None,
    ) -> None:
        if kernels is None:
            kernels = load_kernels(_index(device))
        self.kernels, self.device, self.parameters = kernels, device, parameters
        self.height, self.width = height, width
        sizes = scale_sizes(height, width, parameters)
        self._sizes = sizes
        strides = [-(-w // ROW_FLOATS) * ROW_FLOATS for _, w in sizes]
        self._plane = max(h * stride for (h, _), stride in zip(sizes, strides, strict=True))
        scales = self._scales(sizes, strides)
        self._frame_taps = scales[-1].taps + _taps_size(*sizes[-1])
        self._most_tiles = max(scale.tiles for scale in scales)
        slots = slots or min(MOST_SLOTS, max(1, PIXELS_AT_WORK // (height * width)))
        frames = min(most_frames or MOST_FRAMES, batch_frames(height, width))
        self.slots, self.most_frames = self._fit(min(slots, frames), frames)

        def memory(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(shape, dtype=kind, device=device)

        pairs, plane = self.most_frames, self._plane  # a frame may be in several pairs
        table = bytearray(b"".join(map(bytes, scales)))
        self._scale_table = torch.frombuffer(table, dtype=torch.uint8).to(device)
        self._gray = memory(self.most_frames, height, width, kind=torch.uint8)
        self._taps = memory(self.most_frames, self._frame_taps, 4)
        self._frames = memory(pairs, 2, kind=torch.int32)
        self._counters = memory(COUNTER_INTS, kind=torch.int32)
        self._slots = memory(self.slots, SLOT_INTS, kind=torch.int32)
        self._flow = memory(self.slots, 2, 2, plane)
        self._dual = memory(self.slots, 2, 4, plane)
        self._data = memory(self.slots, 3, plane)
        self._changes = memory(self.slots, kernels.tiling.pass_iterations, self._most_tiles)
        self._result = memory(pairs, height, width, 2)
        self._job = self._make_job()
        self._graph: torch.cuda.CUDAGraph | None = None

    def flow(
        self, gray: np.ndarray | torch.Tensor, pairs: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        """float32 (P, H, W, 2) on the device, x then y, pixels; valid until the next call.

        Args:
            gray: uint8 (N, H, W), no more than ``most_frames``.
            pairs: P numbers of a first and a second frame, no more than ``most_frames``.
        """
        frames = torch.as_tensor(gray)
        assert frames.shape[1:] == (self.height, self.width), frames.shape
        assert max(len(frames), len(pairs)) <= self.most_frames, (len(frames), len(pairs))
        if not pairs:
            return self._result[:0]
        numbers = torch.tensor(pairs, dtype=torch.int32)
        assert 0 <= int(numbers.min()) <= int(numbers.max()) < len(frames)
        with torch.cuda.device(self.device if self.device.type == "cuda" else -1):
            self._gray[: len(frames)].copy_(frames)
            self._frames[: len(pairs)].copy_(numbers)
            self._counters.copy_(torch.tensor([len(pairs), 0, 0], dtype=torch.int32))
            self._slots.zero_()
            self._build_pyramids(len(frames))
            self._launch_advance()
            self._run(len(pairs))
        return self._result[: len(pairs)]

    def _scales(self, sizes: list[tuple[int, int]], strides: list[int]) -> list[_Scale]:
        tiling, epsilon = self.kernels.tiling, self.parameters.epsilon
        scales, taps = [], 0
        for i, (height, width) in enumerate(sizes):
            coarse_height, coarse_width = sizes[min(i + 1, len(sizes) - 1)]
            tiles_x = tiling.tiles(width, tiling.tile_width)
            scales.append(
                _Scale(
                    height=height,
                    width=width,
                    stride=strides[i],
                    tiles_x=tiles_x,
                    tiles=tiles_x * tiling.tiles(height, tiling.tile_height),
                    limit=epsilon * epsilon * height * width,
                    step_y=coarse_height / height,
                    step_x=coarse_width / width,
                    taps=taps,
                )
            )
            taps += _taps_size(height, width)
        return scales

    def _fit(self, slots: int, frames: int) -> tuple[int, int]:
        """So many slots and frames, or as many of them as there is memory for."""
        iterations = self.kernels.tiling.pass_iterations
        slot_bytes = 4 * ((2 * 2 + 2 * 4 + 3) * self._plane + iterations * self._most_tiles)
        # taps; the gray frame; a pair of numbers and the flow
        frame_bytes = 16 * self._frame_taps + self.height * self.width * (1 + 8) + 8
        room = MEMORY_SHARE * free_bytes(self.device)
        slots = int(max(1, min(slots, room / 2 // slot_bytes)))
        frames = int(min(frames, (room - slots * slot_bytes) // frame_bytes))
        if frames < 2:
            raise I3DError(
                f"flow at {self.width}x{self.height} needs "
                f"{(slot_bytes + 2 * frame_bytes) / 1e9:.1f} GB of GPU memory, and "
                f"{room / 1e9:.1f} GB, half of what is free, may be used; use device='cpu'"
            )
        return slots, frames

    def _make_job(self) -> _PairJob:
        parameters = self.parameters
        return _PairJob(
            scales=self._scale_table.data_ptr(),
            gray=self._gray.data_ptr(),
            taps=self._taps.data_ptr(),
            frames=self._frames.data_ptr(),
            counters=self._counters.data_ptr(),
            slots=self._slots.data_ptr(),
            flow=self._flow.data_ptr(),
            dual=self._dual.data_ptr(),
            data=self._data.data_ptr(),
            changes=self._changes.data_ptr(),
            result=self._result.data_ptr(),
            frame_taps=self._frame_taps,
            plane=self._plane,
            shrink=1 / parameters.scale_step,
            epsilon_square=float(FLOAT_EPSILON),
            step=parameters.lambda_ * parameters.theta,
            theta=parameters.theta,
            tau_by_theta=parameters.tau / parameters.theta,
            zoom=1 / parameters.scale_step,
            num_scales=len(self._sizes),
            most_tiles=self._most_tiles,
            warps=parameters.warps,
            outer_iterations=parameters.outer_iterations,
            inner_iterations=parameters.inner_iterations,
        )

    def _build_pyramids(self, frames: int) -> None:
        for scale, (height, width) in enumerate(self._sizes):
            self._job.scale = scale
            grid = (-(-height * width // PIXEL_THREADS), frames)
            self.kernels.launch("shrink", self._job, grid, threads=PIXEL_THREADS)
            self.kernels.launch("differentiate", self._job, grid, threads=PIXEL_THREADS)

    def _launch_advance(self) -> None:
        threads = LANES * self.kernels.tiling.pass_iterations
        shared_bytes = 8 * (threads + self.kernels.tiling.pass_iterations)
        self.kernels.launch(
            "advance", self._job, (self.slots, 1), threads=threads, shared_bytes=shared_bytes
        )

    def _launch_step(self) -> None:
        tiling = self.kernels.tiling
        threads, shared_bytes = tiling.threads, tiling.shared_bytes
        grid = (self._most_tiles, self.slots)
        self.kernels.launch("step", self._job, grid, threads=threads, shared_bytes=shared_bytes)

    def _launch_steps(self) -> None:
        for _ in range(STEPS):
            self._launch_step()
            self._launch_advance()

    def _run(self, pairs: int) -> None:
        """Steps until all pairs are done."""
        rounds = self._most_rounds(pairs)
        if self.device.type != "cuda":
            for _ in range(rounds):
                self._launch_steps()
                if self._counters[DONE] == pairs:
                    return
            raise I3DError("the flow's kernels do not come to an end")
        if self._graph is None:
            self._launch_steps()  # loads the kernels, which capturing does not allow
            self._graph = torch.cuda.CUDAGraph()
            # A stream of this GPU: PyTorch's own is of the one where it was first asked for. And
            # other threads may go on, e.g. to pin memory, which a global capture forbids.
            stream = torch.cuda.Stream(self.device)
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._launch_steps()
        # The counters are read one round late, so that the GPU never waits for the host.
        seen = [torch.empty(COUNTER_INTS, dtype=torch.int32).pin_memory() for _ in range(2)]
        copied = [torch.cuda.Event() for _ in range(2)]
        for i in range(rounds + 1):
            self._graph.replay()
            seen[i % 2].copy_(self._counters, non_blocking=True)
            copied[i % 2].record()
            if i > 0:
                copied[(i - 1) % 2].synchronize()
                if int(seen[(i - 1) % 2][DONE]) == pairs:
                    return
        raise I3DError("the flow's kernels do not come to an end")

    def _most_rounds(self, pairs: int) -> int:
        """More than ``pairs`` can take: a bound against waiting for ever."""
        p = self.parameters
        passes = -(-p.inner_iterations // self.kernels.tiling.pass_iterations)
        steps = len(self._sizes) * p.warps * (2 + p.outer_iterations * (1 + passes)) + 1
        return math.ceil(steps / STEPS) * (pairs // self.slots + 2)


def batch_frames(height: int, width: int) -> int:
    """The most frames of a size that are worth having in one batch, at least 2."""
    return max(2, min(MOST_FRAMES, PIXELS_OF_FRAMES // (height * width)))


def free_bytes(device: torch.device) -> float:
    """Memory of a GPU that nobody uses, what PyTorch keeps for later included."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _taps_size(height: int, width: int) -> int:
    return (height + 2 * PAD) * (width + 2 * PAD)
