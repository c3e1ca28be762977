"""TV-L1 on the CPU: the kernels, in numba, with explicit vectors of 16 floats.

Convergence tests turn a difference in the last bit into another number of iterations, and in places
where the flow is ambiguous that becomes 0.01 to 0.03 px on average over a frame. So these kernels
round where OpenCV 5.0.0.93 rounds on x86-64 with AVX-512, and give the same flow to the last bit in
67 of 69 pairs of real frames (the others: see `hypotenuses`). Every operation is element-wise in a
written order: `fma` where a product and a sum are rounded once, `+ - * /` where they are not. No
compiler flag may reorder them and no sum depends on how a loop was vectorised, so the result does
not depend on alignment in memory, on the width of the processor's vectors or on the number of
threads. The compiler splits a vector where the processor's registers are narrower.

    image    float32 (H, stride), gray in 0..255
    taps     float32 (H + 2 PAD, W + 2 PAD, 4): I, dI/dx, dI/dy and 0 of every pixel side by side, a
             short vector; zeros outside the image
    state    float32 (H + 1, 6, stride): flow u1, u2 (x and y, pixels), dual variables p11 .. p22.
             Image row y is state row y + 1; row 0 stays zero, for the divergence at the top
    data     float32 (H, 6, stride): the warped second frame, and the last change of the flow

`stride` is W rounded up to whole vectors, and one vector more. Columns from W on are padding: no
column of the image reads them, except that u at column W repeats column W - 1 (there the forward
difference is zero) and that the last float of every row stays zero (it is the left neighbour of the
next row's first column).

All compiled code is in this one file because numba's cache looks at no other when it decides
whether what it stored is still valid.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from i3d.flow.tvl1 import TVL1

# --- vectors -------------------------------------------------------------------------------------

LANES = 16  # floats in a vector: one register of AVX-512, two of AVX2, four of NEON
QUAD = 4  # floats of one pixel of `taps`

V = Any  # in signatures: a vector
instruction: Any = intrinsic  # Any: numba's annotations have callers pass the typing context
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_QUAD_FLOATS = ir.VectorType(ir.FloatType(), QUAD)


class _VectorType(types.Type):
    """Numba's type of a vector of LANES float32."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


_vector = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _FLOATS)


def _define_operator(function: Callable, instruction: str, operands: int) -> None:
    arguments = (_vector,) * operands

    @infer_global(function)
    class Typing(AbstractTemplate):
        def generic(self, args: tuple, kws: dict) -> Any:
            return signature(_vector, *arguments) if args == arguments else None

    @lower_builtin(function, *arguments)
    def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        return getattr(builder, instruction)(*args)


_define_operator(operator.neg, "fneg", 1)
_define_operator(operator.add, "fadd", 2)
_define_operator(operator.sub, "fsub", 2)
_define_operator(operator.mul, "fmul", 2)
_define_operator(operator.truediv, "fdiv", 2)


def _call_llvm(builder: Any, name: str, args: Any) -> Any:
    """A call of LLVM's intrinsic `name` on operands of one type: float32 or vectors of it."""
    kind = args[0].type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * len(args)), f"llvm.{name}.{suffix}"
    )
    return builder.call(function, args)


def _constant_indices(indices: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), indices)


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, _constant_indices([0] * kind.count))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, kind: Any) -> Any:
    """Pointer to a vector inside an array; the index is neither wrapped nor checked."""
    address = cgutils.get_item_pointer(
        context,
        builder,
        array_type,
        context.make_array(array_type)(context, builder, array),
        cgutils.unpack_tuple(builder, index),
        wraparound=False,
        boundscheck=False,
    )
    return builder.bitcast(address, kind.as_pointer())


@instruction
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """The LANES floats of a C-contiguous float32 array from `index` (a tuple) on."""

    def generate(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        return builder.load(
            _pointer(context, builder, sig.args[0], args[0], args[1], _FLOATS), align=4
        )

    return _vector(array, types.UniTuple(types.intp, array.ndim)), generate


@instruction
def store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes a vector to the LANES floats from `index` on."""

    def generate(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], _FLOATS)
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.UniTuple(types.intp, array.ndim), _vector), generate


@instruction
def splat(typing_context: Any, value: Any) -> Any:
    """A float32 in every lane."""

    def generate(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        return _splat(builder, args[0], _FLOATS)

    return _vector(types.float32), generate


@instruction
def absolute(typing_context: Any, a: Any) -> Any:
    """|a|."""
    return _vector(_vector), lambda context, builder, sig, args: _call_llvm(builder, "fabs", args)


@instruction
def floor(typing_context: Any, a: Any) -> Any:
    """The largest whole number that is not above a."""
    return _vector(_vector), lambda context, builder, sig, args: _call_llvm(builder, "floor", args)


@instruction
def sqrt(typing_context: Any, a: Any) -> Any:
    """Square root, correctly rounded."""
    return _vector(_vector), lambda context, builder, sig, args: _call_llvm(builder, "sqrt", args)


@instruction
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once; of vectors or of single float32."""

    def generate(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        return _call_llvm(builder, "fma", args)

    return a(a, a, a), generate


@instruction
def where_greater(typing_context: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Lane by lane, c where a > b, else d."""

    def generate(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args[:2]), *args[2:])

    return _vector(_vector, _vector, _vector, _vector), generate


@instruction
def minimum(typing_context: Any, a: Any, b: Any) -> Any:
    """The smaller of a and b."""

    def generate(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return _vector(_vector, _vector), generate


@instruction
def maximum(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of a and b."""

    def generate(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return _vector(_vector, _vector), generate


@instruction
def sort2(typing_context: Any, a: Any, b: Any) -> Any:
    """The smaller and the larger of a and b."""

    def generate(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        pair = [builder.select(builder.fcmp_ordered(sign, *args), *args) for sign in "<>"]
        return context.make_tuple(builder, sig.return_type, pair)

    return types.UniTuple(_vector, 2)(_vector, _vector), generate


@instruction
def where_first_lane(typing_context: Any, a: Any, b: Any) -> Any:
    """Lane 0 of a, the other lanes of b."""

    def generate(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        return builder.shuffle_vector(*args, _constant_indices([0, *range(LANES + 1, 2 * LANES)]))

    return _vector(_vector, _vector), generate


@instruction
def weigh_window(
    typing_context: Any, taps: Any, y: Any, x: Any, weights_x: Any, weights_y: Any
) -> Any:
    """Three channels of the 4x4 window of `taps` from (y, x) on: weighted along rows, then columns.

    Each sum goes from the first to the last, a product and a sum rounded once.
    """

    def weigh(builder: Any, quads: list, weights: list) -> Any:
        total = builder.fmul(quads[0], weights[0])
        for quad, weight in zip(quads[1:], weights[1:], strict=True):
            total = _call_llvm(builder, "fma", (quad, weight, total))
        return total

    def generate(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        zero = ir.Constant(args[1].type, 0)
        start = context.make_tuple(builder, types.UniTuple(types.intp, 3), (args[1], args[2], zero))
        first = _pointer(context, builder, sig.args[0], args[0], start, _QUAD_FLOATS)
        struct = context.make_array(sig.args[0])(context, builder, args[0])
        row_bytes = builder.extract_value(struct.strides, 0)
        along_x, along_y = (
            [_splat(builder, weight, _QUAD_FLOATS) for weight in cgutils.unpack_tuple(builder, arg)]
            for arg in args[3:]
        )
        rows = []
        for row in range(4):
            offset = builder.mul(row_bytes, ir.Constant(row_bytes.type, row))
            pointer = cgutils.pointer_add(builder, first, offset)
            quads = [
                builder.load(builder.gep(pointer, [ir.Constant(ir.IntType(32), column)]), align=4)
                for column in range(4)
            ]
            rows.append(weigh(builder, quads, along_x))
        total = weigh(builder, rows, along_y)
        lanes = [builder.extract_element(total, ir.Constant(ir.IntType(32), i)) for i in range(3)]
        return context.make_tuple(builder, sig.return_type, lanes)

    four = types.UniTuple(types.float32, 4)
    return types.UniTuple(types.float32, 3)(taps, types.intp, types.intp, four, four), generate


# --- how functions are compiled ------------------------------------------------------------------

# A kernel is called from Python and kept in numba's cache; a helper is compiled into kernels.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
helper: Any = numba.njit(**_OPTIONS)


def kernel(function: Callable) -> Any:
    """Compiles at the first call; kept on disk for later processes where a folder is writable."""
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return numba.njit(**_OPTIONS)(function)


# --- one frame -----------------------------------------------------------------------------------

PAD = 4  # zeros around `taps`: wide enough for a 4x4 window that lies wholly outside the image


class Scale(NamedTuple):
    """One frame at one scale; the shapes are in the module's docstring."""

    image: np.ndarray
    taps: np.ndarray


@kernel
def fill_taps(image: np.ndarray, taps: np.ndarray) -> None:
    """The image and its central differences (the border repeated) into the inside of `taps`."""
    height, width = taps.shape[0] - 2 * PAD, taps.shape[1] - 2 * PAD
    for y in range(height):
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        fill_tap(image, taps, y, 0, 0, 1, above, below)
        for x in range(1, width - 1):
            fill_tap(image, taps, y, x, x - 1, x + 1, above, below)
        fill_tap(image, taps, y, width - 1, width - 2, width - 1, above, below)


@helper
def fill_tap(
    image: np.ndarray,
    taps: np.ndarray,
    y: int,
    x: int,
    left: int,
    right: int,
    above: int,
    below: int,
) -> None:
    """One pixel and its differences between the neighbours named."""
    half = np.float32(0.5)
    taps[y + PAD, x + PAD, 0] = image[y, x]
    taps[y + PAD, x + PAD, 1] = half * (image[y, right] - image[y, left])
    taps[y + PAD, x + PAD, 2] = half * (image[below, x] - image[above, x])
    taps[y + PAD, x + PAD, 3] = 0


@helper
def source_pixels(index: int, step: float, length: int) -> tuple[int, int, np.float32]:
    """The source pixels around the centre of target pixel `index`, and the second one's weight."""
    position = (index + 0.5) * step - 0.5
    first = math.floor(position)
    if first < 0:
        return 0, 0, np.float32(0)
    if first < length - 1:
        return first, first + 1, np.float32(position - first)
    if step > 1:  # the last pixel, but rounded as OpenCV does when it shrinks
        return length - 2, length - 1, np.float32(1)
    return length - 1, length - 1, np.float32(0)


@kernel
def resize(
    source: np.ndarray, target: np.ndarray, step_y: float, step_x: float, factor: float
) -> None:
    """Bilinear without antialiasing, as cv2.resize with INTER_LINEAR; the values times `factor`.

    source float32 (h, w), target float32 (H, W); `step` source pixels for each target pixel.
    """
    width = target.shape[1]
    left, right = np.empty(width, np.int64), np.empty(width, np.int64)
    fraction_x = np.empty(width, np.float32)
    for x in range(width):
        left[x], right[x], fraction_x[x] = source_pixels(x, step_x, source.shape[1])
    for y in range(target.shape[0]):
        top, bottom, fraction_y = source_pixels(y, step_y, source.shape[0])
        for x in range(width):
            a, b = source[top, left[x]], source[top, right[x]]
            c, d = source[bottom, left[x]], source[bottom, right[x]]
            upper, lower = fma(b - a, fraction_x[x], a), fma(d - c, fraction_x[x], c)
            target[y, x] = fma(lower - upper, fraction_y, upper) * factor


# --- one pair of frames at one scale -------------------------------------------------------------

U1, U2, P11, P12, P21, P22 = range(6)  # planes of `state`
IX, IY, RHO, SQUARE, LIMIT, CHANGE = range(6)  # planes of `data`
FLOOR_X, FLOOR_Y, VALUE, WEIGHT_X, WEIGHT_Y = 0, 1, 2, 3, 7  # planes of `line`; four of each weight
LINE_PLANES = WEIGHT_Y + 4

LANE_INDEX = np.arange(LANES, dtype=np.float32)
FLOAT_EPSILON = np.finfo(np.float32).eps


class Work(NamedTuple):
    """The arrays that one scale of one pair needs; what is in them before does not matter."""

    state: np.ndarray  # see the module's docstring
    data: np.ndarray
    line: np.ndarray  # (LINE_PLANES, stride): positions and weights of one row of the warp
    columns: np.ndarray  # (5, LANES + stride): the median's sorted columns; column x at LANES + x
    ring: np.ndarray  # (3, stride): the median's last rows
    changes: np.ndarray  # (stride): squared changes of the flow, summed over the rows


class Constants(NamedTuple):
    """TVL1's parameters as the kernels use them."""

    step: np.float32  # lambda theta
    theta: np.float32
    tau_by_theta: np.float32
    epsilon_squared: float
    warps: int
    outer_iterations: int
    inner_iterations: int


@helper
def cubic_weights(t: V) -> tuple[V, V, V, V]:
    """Cubic convolution with a = -0.75: the weights of the pixels at -1, 0, 1, 2 for position t."""
    a, one = splat(np.float32(-0.75)), splat(np.float32(1))
    s = one - t
    w0 = t * (s * s) * a
    w1 = fma(fma(splat(np.float32(1.25)), t, splat(np.float32(-2.25))), t * t, one)
    w3 = s * (t * t) * a
    return w0, w1, one - w0 - w1 - w3, w3


@helper
def warp(first: Scale, second: Scale, work: Work, step: np.float32) -> None:
    """Fills `data` from the first frame and the second one warped by the flow.

    I1 and its gradient are read at (x + u1, y + u2) from 4x4 pixels, first along the rows, as
    cv2.remap with INTER_CUBIC does; outside the image they are zero. Then
        IX, IY = dI1/dx, dI1/dy
        RHO    = I1 - IX u1 - IY u2 - I0    the part of the linearised residual without the new u
        SQUARE = IX^2 + IY^2                infinite where that is next to zero
        LIMIT  = lambda theta (IX^2 + IY^2)
    """
    image, taps = first.image, second.taps
    state, data, line = work.state, work.data, work.line
    height, width = taps.shape[0] - 2 * PAD, taps.shape[1] - 2 * PAD
    # positions that far outside read nothing but zeros
    low = splat(np.float32(1 - PAD))
    right, bottom = splat(np.float32(width + 1)), splat(np.float32(height + 1))
    epsilon, infinity = splat(FLOAT_EPSILON), splat(np.float32(np.inf))
    lane_index = load(LANE_INDEX, (0,))
    for y in range(height):
        row = splat(np.float32(y))
        for x in range(0, width, LANES):
            column = splat(np.float32(x)) + lane_index
            px = minimum(maximum(column + load(state, (y + 1, U1, x)), low), right)
            py = minimum(maximum(row + load(state, (y + 1, U2, x)), low), bottom)
            floor_x, floor_y = floor(px), floor(py)
            store(line, (FLOOR_X, x), floor_x)
            store(line, (FLOOR_Y, x), floor_y)
            w0, w1, w2, w3 = cubic_weights(px - floor_x)
            store(line, (WEIGHT_X, x), w0)
            store(line, (WEIGHT_X + 1, x), w1)
            store(line, (WEIGHT_X + 2, x), w2)
            store(line, (WEIGHT_X + 3, x), w3)
            w0, w1, w2, w3 = cubic_weights(py - floor_y)
            store(line, (WEIGHT_Y, x), w0)
            store(line, (WEIGHT_Y + 1, x), w1)
            store(line, (WEIGHT_Y + 2, x), w2)
            store(line, (WEIGHT_Y + 3, x), w3)
        for x in range(width):
            top, left = int(line[FLOOR_Y, x]) + PAD - 1, int(line[FLOOR_X, x]) + PAD - 1
            line[VALUE, x], data[y, IX, x], data[y, IY, x] = weigh_window(
                taps,
                top,
                left,
                (
                    line[WEIGHT_X, x],
                    line[WEIGHT_X + 1, x],
                    line[WEIGHT_X + 2, x],
                    line[WEIGHT_X + 3, x],
                ),
                (
                    line[WEIGHT_Y, x],
                    line[WEIGHT_Y + 1, x],
                    line[WEIGHT_Y + 2, x],
                    line[WEIGHT_Y + 3, x],
                ),
            )
        for x in range(0, width, LANES):
            ix, iy = load(data, (y, IX, x)), load(data, (y, IY, x))
            u1, u2 = load(state, (y + 1, U1, x)), load(state, (y + 1, U2, x))
            i1, i0 = load(line, (VALUE, x)), load(image, (y, x))
            square = ix * ix + iy * iy
            store(data, (y, RHO, x), i1 - ix * u1 - iy * u2 - i0)
            store(data, (y, SQUARE, x), where_greater(square, epsilon, square, infinity))
            store(data, (y, LIMIT, x), splat(step) * square)


@helper
def sort5(a: V, b: V, c: V, d: V, e: V) -> tuple[V, V, V, V, V]:
    """Five values in ascending order: a network of nine exchanges."""
    a, b = sort2(a, b)
    d, e = sort2(d, e)
    c, e = sort2(c, e)
    c, d = sort2(c, d)
    b, e = sort2(b, e)
    a, d = sort2(a, d)
    a, c = sort2(a, c)
    b, d = sort2(b, d)
    b, c = sort2(b, c)
    return a, b, c, d, e


@helper
def sorted_rank(columns: np.ndarray, rank: int, x: int) -> tuple[V, V, V, V, V]:
    """The elements of one rank in the five columns around each pixel, in ascending order."""
    return sort5(
        load(columns, (rank, x - 2)),
        load(columns, (rank, x - 1)),
        load(columns, (rank, x)),
        load(columns, (rank, x + 1)),
        load(columns, (rank, x + 2)),
    )


@helper
def median_of_sorted_columns(columns: np.ndarray, x: int) -> V:
    """Medians of the 5x5 windows around LANES neighbouring pixels.

    With the columns sorted, sorting each rank along its row leaves both sorted. An element with 13
    or more of the 25 on one side of it cannot be the median, which leaves
        . . . a b
        . . c d e
        . f g h .
        i j k . .
        l m . . .
    and 15 exchanges, found by search and proved on all 252 sorted windows of zeros and ones. The
    compiler drops the halves of exchanges that nothing reads.
    """
    # The candidates carry the drawing's letters, l among them (which is what E741 is about).
    _, _, _, a, b = sorted_rank(columns, 0, x)
    _, _, c, d, e = sorted_rank(columns, 1, x)
    _, f, g, h, _ = sorted_rank(columns, 2, x)
    i, j, k, _, _ = sorted_rank(columns, 3, x)
    l, m, _, _, _ = sorted_rank(columns, 4, x)  # noqa: E741
    c, j = sort2(c, j)
    m, k = sort2(m, k)
    l, d = sort2(l, d)  # noqa: E741
    i, l = sort2(i, l)  # noqa: E741
    b, g = sort2(b, g)
    b, l = sort2(b, l)  # noqa: E741
    a, j = sort2(a, j)
    f, l = sort2(f, l)  # noqa: E741
    d, g = sort2(d, g)
    h, j = sort2(h, j)
    e, h = sort2(e, h)
    m, d = sort2(m, d)
    l, e = sort2(l, e)  # noqa: E741
    l, m = sort2(l, m)  # noqa: E741
    e, m = sort2(e, m)
    return e


@helper
def median(work: Work, plane: int, height: int, width: int) -> None:
    """5x5 median of one plane of the flow, in place; the border is repeated."""
    state, columns, ring = work.state, work.columns, work.ring
    for y in range(height):
        # five pixels above one another are sorted once for the five windows that they are in
        for x in range(0, width, LANES):
            a, b, c, d, e = sort5(
                load(state, (max(y - 2, 0) + 1, plane, x)),
                load(state, (max(y - 1, 0) + 1, plane, x)),
                load(state, (y + 1, plane, x)),
                load(state, (min(y + 1, height - 1) + 1, plane, x)),
                load(state, (min(y + 2, height - 1) + 1, plane, x)),
            )
            store(columns, (0, LANES + x), a)
            store(columns, (1, LANES + x), b)
            store(columns, (2, LANES + x), c)
            store(columns, (3, LANES + x), d)
            store(columns, (4, LANES + x), e)
        for rank in range(5):
            for outside in range(1, 3):
                columns[rank, LANES - outside] = columns[rank, LANES]
                columns[rank, LANES + width - 1 + outside] = columns[rank, LANES + width - 1]
        if y >= 3:  # row y - 3 is outside of this window and of all that follow
            write_back(work, plane, y - 3, width)
        for x in range(0, width, LANES):
            store(ring, (y % 3, x), median_of_sorted_columns(columns, LANES + x))
    for y in range(max(height - 3, 0), height):
        write_back(work, plane, y, width)


@helper
def write_back(work: Work, plane: int, y: int, width: int) -> None:
    """Row y of the median from the ring to its place in the flow."""
    for x in range(0, width, LANES):
        store(work.state, (y + 1, plane, x), load(work.ring, (y % 3, x)))


@helper
def hypotenuses(ax: V, ay: V, bx: V, by: V) -> tuple[V, V]:
    """sqrt(ax^2 + ay^2) and sqrt(bx^2 + by^2), rounded as from double precision.

    Each root in float32 is corrected by one step of Newton's method; the two share a division.
    Measured: the last bit is wrong once in 40 million times, which is in one pair of frames in 30,
    and changes its flow by 2e-4 px.
    """
    a, a_rest = root_and_rest(ax, ay)
    b, b_rest = root_and_rest(bx, by)
    tiny = splat(np.float32(1e-15))  # roots under it are not corrected, and nobody can tell:
    safe_a, safe_b = maximum(a, tiny), maximum(b, tiny)  # 1 + tau/theta |grad u| is 1
    half = splat(np.float32(0.5)) / (safe_a * safe_b)
    return fma(a_rest, half * safe_b, a), fma(b_rest, half * safe_a, b)


@helper
def root_and_rest(x: V, y: V) -> tuple[V, V]:
    """g = sqrt(x^2 + y^2) in float32, and x^2 + y^2 - g^2 to nearly twice its precision."""
    x, y = absolute(x), absolute(y)
    larger, smaller = maximum(x, y), minimum(x, y)
    square = larger * larger
    total = fma(smaller, smaller, square)
    g = sqrt(total)
    lost = fma(smaller, smaller, square - total) + fma(larger, larger, -square)
    return g, fma(-g, g, total) + lost


@helper
def update_row(work: Work, y: int, height: int, width: int, constants: Constants) -> None:
    """One inner iteration on row y of the flow and on row y - 1 of the dual variables.

        rho  = RHO + IX u1 + IY u2
        v    = u - IX, IY times (rho / SQUARE, or +- lambda theta where |rho| > LIMIT)
        u   <- v + theta div p                                      div: backward differences
        p   <- (p + tau/theta grad u) / (1 + tau/theta |grad u|)    grad: forward differences

    The flow of row y needs the old p of rows y - 1 and y; the dual variables of row y - 1 need the
    new flow of rows y - 1 and y. So with y from 0 to height every row is visited once, in place.
    """
    state, data, changes = work.state, work.data, work.changes
    high, low = splat(constants.step), splat(-constants.step)
    theta, tau = splat(constants.theta), splat(constants.tau_by_theta)
    one = splat(np.float32(1))
    for x in range(0, width, LANES):
        if y < height:
            old1, old2 = load(state, (y + 1, U1, x)), load(state, (y + 1, U2, x))
            ix, iy = load(data, (y, IX, x)), load(data, (y, IY, x))
            limit = load(data, (y, LIMIT, x))
            rho = load(data, (y, RHO, x)) + (ix * old1 + iy * old2)
            step = rho / load(data, (y, SQUARE, x))
            step = where_greater(rho, limit, high, where_greater(-limit, rho, low, step))

            p11, p11_left = load(state, (y + 1, P11, x)), load(state, (y + 1, P11, x - 1))
            p21, p21_left = load(state, (y + 1, P21, x)), load(state, (y + 1, P21, x - 1))
            p12, p12_above = load(state, (y + 1, P12, x)), load(state, (y, P12, x))
            p22, p22_above = load(state, (y + 1, P22, x)), load(state, (y, P22, x))
            div1 = (p11 - p11_left) + (p12 - p12_above)
            div2 = (p21 - p21_left) + (p22 - p22_above)
            if x == 0:  # OpenCV adds in another order in the first column
                div1 = where_first_lane(p11 + p12 - p12_above, div1)
                div2 = where_first_lane(p21 + p22 - p22_above, div2)

            u1 = (old1 - step * ix) + theta * div1
            u2 = (old2 - step * iy) + theta * div2
            change1, change2 = u1 - old1, u2 - old2
            change = change1 * change1 + change2 * change2
            store(data, (y, CHANGE, x), change)
            store(changes, (x,), load(changes, (x,)) + change)
            store(state, (y + 1, U1, x), u1)
            store(state, (y + 1, U2, x), u2)
        else:  # below the image: as the last row, whose difference to it is zero
            u1, u2 = load(state, (y, U1, x)), load(state, (y, U2, x))
        if y > 0:
            above1, above2 = load(state, (y, U1, x)), load(state, (y, U2, x))
            u1x, u1y = load(state, (y, U1, x + 1)) - above1, u1 - above1
            u2x, u2y = load(state, (y, U2, x + 1)) - above2, u2 - above2
            norm1, norm2 = hypotenuses(u1x, u1y, u2x, u2y)
            norm1, norm2 = one + tau * norm1, one + tau * norm2
            store(state, (y, P11, x), (load(state, (y, P11, x)) + tau * u1x) / norm1)
            store(state, (y, P12, x), (load(state, (y, P12, x)) + tau * u1y) / norm1)
            store(state, (y, P21, x), (load(state, (y, P21, x)) + tau * u2x) / norm2)
            store(state, (y, P22, x), (load(state, (y, P22, x)) + tau * u2y) / norm2)
    if y < height:
        state[y + 1, U1, width] = state[y + 1, U1, width - 1]
        state[y + 1, U2, width] = state[y + 1, U2, width - 1]


@helper
def iterate(
    work: Work, height: int, width: int, limit: np.float32, constants: Constants
) -> bool | np.bool:
    """One inner iteration; whether the flow changed by more than `limit`, the sum of its squares.

    OpenCV adds pixel after pixel in float32. Each addition can err by 2^-24 of the sum, so our
    faster sum decides only where the two cannot disagree, and otherwise we add as OpenCV does.
    """
    for x in range(0, width, LANES):
        store(work.changes, (x,), splat(np.float32(0)))
    for y in range(height + 1):
        update_row(work, y, height, width, constants)
    total = 0.0
    for x in range(width):
        total += work.changes[x]
    doubt = total * height * width * 2.0**-23
    if abs(total - limit) > doubt:
        return total > limit
    exact = np.float32(0)
    for y in range(height):
        for x in range(width):
            exact += work.data[y, CHANGE, x]
    return exact > limit


@kernel
def solve(first: Scale, second: Scale, work: Work, constants: Constants) -> None:
    """Improves the flow in `work.state` at one scale; the dual variables must be zero."""
    height, width = second.taps.shape[0] - 2 * PAD, second.taps.shape[1] - 2 * PAD
    limit = np.float32(constants.epsilon_squared * height * width)
    for _ in range(constants.warps):
        warp(first, second, work, constants.step)
        moving = True
        for _ in range(constants.outer_iterations):
            if moving:
                for plane in (U1, U2):
                    median(work, plane, height, width)
            for _ in range(constants.inner_iterations):
                if moving:
                    moving = iterate(work, height, width, limit, constants)


# --- frames in, flow out -------------------------------------------------------------------------

SMALLEST_SCALE = 16  # pixels: as OpenCV, no scale with a shorter side


def scale_sizes(height: int, width: int, parameters: TVL1) -> list[tuple[int, int]]:
    """Height and width at every scale, the full size first."""
    sizes = [(height, width)]
    while len(sizes) < parameters.scales:
        height, width = round(height * parameters.scale_step), round(width * parameters.scale_step)
        if min(height, width) < SMALLEST_SCALE:
            break
        sizes.append((height, width))
    return sizes


def padded_width(width: int) -> int:
    """The stride of a row of `width` floats: whole vectors, and one vector more."""
    return -(-width // LANES) * LANES + LANES


def aligned_zeros(*shape: int) -> np.ndarray:
    """float32 zeros that start at a whole vector: loads that cross cache lines are slower."""
    memory = np.zeros(math.prod(shape) + LANES, np.float32)
    start = -memory.ctypes.data // memory.itemsize % LANES
    return memory[start : start + math.prod(shape)].reshape(shape)


def build_scales(
    gray: np.ndarray, parameters: TVL1, spare: list[Scale] | None = None
) -> list[Scale]:
    """All that pairs need of one frame, uint8 (H, W), the full size first.

    spare   what was built for another frame of this size and is not needed any more: its memory is
            used again, which saves the time that fresh memory costs (2 ms at 340x256)
    """
    sizes = scale_sizes(gray.shape[0], gray.shape[1], parameters)
    scales = spare or [_allocate_scale(*size) for size in sizes]
    scales[0].image[:, : gray.shape[1]] = gray
    step = 1 / parameters.scale_step
    for larger, scale, (_, larger_width), (_, width) in zip(
        scales, scales[1:], sizes, sizes[1:], strict=False
    ):
        resize(larger.image[:, :larger_width], scale.image[:, :width], step, step, np.float32(1))
    for scale in scales:
        fill_taps(scale.image, scale.taps)
    return scales


class PairSolver:
    """The flow between two frames of one size; holds the memory for it, so one for each thread."""

    def __init__(self, height: int, width: int, parameters: TVL1) -> None:
        self.sizes = scale_sizes(height, width, parameters)
        self.works = _allocate_works(self.sizes)
        self.constants = Constants(
            step=np.float32(parameters.lambda_ * parameters.theta),
            theta=np.float32(parameters.theta),
            tau_by_theta=np.float32(parameters.tau / parameters.theta),
            epsilon_squared=parameters.epsilon * parameters.epsilon,
            warps=parameters.warps,
            outer_iterations=parameters.outer_iterations,
            inner_iterations=parameters.inner_iterations,
        )
        self.zoom = np.float32(1 / parameters.scale_step)

    def flow(self, first: list[Scale], second: list[Scale]) -> np.ndarray:
        """float32 (H, W, 2): x then y, pixels: first(x, y) looks like second(x + u1, y + u2)."""
        for scale in reversed(range(len(self.sizes))):
            work, (height, width) = self.works[scale], self.sizes[scale]
            work.state.fill(0)
            if scale + 1 < len(self.sizes):
                coarse, (coarse_height, coarse_width) = self.works[scale + 1], self.sizes[scale + 1]
                for plane in (U1, U2):
                    resize(
                        coarse.state[1:, plane, :coarse_width],
                        work.state[1:, plane, :width],
                        coarse_height / height,
                        coarse_width / width,
                        self.zoom,
                    )
            solve(first[scale], second[scale], work, self.constants)
        flow = work.state[1:, (U1, U2), :width]  # (H, 2, W)
        return np.ascontiguousarray(flow.transpose(0, 2, 1))


def _allocate_scale(height: int, width: int) -> Scale:
    return Scale(
        image=aligned_zeros(height, padded_width(width)),
        taps=aligned_zeros(height + 2 * PAD, width + 2 * PAD, QUAD),
    )


def _allocate_works(sizes: list[tuple[int, int]]) -> list[Work]:
    """One for each scale; all but `state` is memory that the scales share."""
    height, width = sizes[0]
    stride = padded_width(width)
    data = aligned_zeros(height * 6 * stride)
    line, columns = aligned_zeros(LINE_PLANES, stride), aligned_zeros(5, LANES + stride)
    ring, changes = aligned_zeros(3, stride), aligned_zeros(stride)
    works = []
    for height, width in sizes:
        shape = height, 6, padded_width(width)
        state = aligned_zeros(height + 1, 6, padded_width(width))
        works.append(
            Work(state, data[: math.prod(shape)].reshape(shape), line, columns, ring, changes)
        )
    return works
