"""TV-L1 flow on a GPU: agreement with the CPU's, and speed; `flow.py --device cuda` calls it.

Agreement: every EVERY-th pair of each video beside the CPU's kernel; and the same bits from another
run and from a pair alone. Speed: batches of PAIRS pairs made of those frames, already on the GPU,
for several numbers of pairs at work and several ways to cut the picture; median of ROUNDS. Beside
it, in the same run, the rates of a large copy and of a large float32 product of matrices, which are
what the work's bytes and operations are held against.
"""

from dataclasses import asdict

import common
import numpy as np
import torch

from i3d.errors import I3DError
from i3d.flow import TVL1, gpu, optical_flow

PAIRS = 1024
ROUNDS = 5
SLOTS = (16, 32, 64, 128, 256, 512)
TILINGS = (
    *gpu.TILINGS,
    *(gpu.Tiling(pass_iterations=iterations) for iterations in (3, 5, 6)),
    *(gpu.Tiling(rows=rows) for rows in (9, 10, 11)),
    gpu.Tiling(rows=8, blocks=3),
)
INSTRUCTIONS = 135  # of one pixel's iteration, in the loop that the compiler makes for sm_90
READ_FLOATS, WRITTEN_FLOATS = 9, 6  # of a pixel in a pass: u, p, IX, IY, RHO; u, p
LIMIT_PIXELS = 0.03  # mean end-point difference that is asked for
AIM, LEAST = 2000, 1000  # pairs a second at 340x256


def agreement(clips, every):
    """One record a clip."""
    records = []
    for name, frames in clips:
        frames = np.stack(list(frames))
        flow = optical_flow(frames, device="cuda")
        again = optical_flow(frames, device="cuda")
        alone = optical_flow(frames[1:3], device="cuda")
        differences = []
        for first in range(0, len(frames) - 1, every):
            expected = optical_flow(frames[first : first + 2])[0]
            differences.append(np.hypot(*np.moveaxis(flow[first] - expected, -1, 0)))
        records.append(
            {
                "video": name,
                "pairs": len(differences),
                "end_point_difference_pixels": float(np.mean(differences)),
                "largest_of_a_pair_pixels": max(float(d.mean()) for d in differences),
                "identical_pairs": sum(not d.any() for d in differences),
                "same_bits_again": bool((flow == again).all()),
                "same_bits_alone": bool((flow[1] == alone[0]).all()),
            }
        )
    return records


def seconds_of(work):
    """Median of ROUNDS, after one that warms up."""
    return common.median(lambda: common.timed(work)[0], ROUNDS, warm_up=1)


def ceilings():
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = 2 * source.numel() / seconds_of(lambda: target.copy_(source))
    torch.backends.cuda.matmul.allow_tf32 = False
    a, b = torch.randn(2, 8192, 8192, device="cuda")
    product = 2 * 8192**3 / seconds_of(lambda: a @ b)
    return {"copy_bytes_per_second": copy, "float32_operations_per_second": product}


def count_work(solver, frames, pairs):
    """Pixels' iterations and bytes of the passes, by looking at the slots after every step."""
    tiling = solver.kernels.tiling
    tile = tiling.tile_width * tiling.tile_height
    work = {"pixel_iterations": 0, "computed_pixel_iterations": 0, "bytes": 0, "steps": 0}

    def run(count):
        while solver._counters[gpu.DONE] < count:
            for slot in solver._slots.tolist():
                stage, scale, iterations = slot[0], slot[2], slot[6]
                if stage != 3:
                    continue
                height, width = solver._sizes[scale]
                tiles = tiling.tiles(width, tiling.tile_width)
                tiles *= tiling.tiles(height, tiling.tile_height)
                work["pixel_iterations"] += height * width * iterations
                work["computed_pixel_iterations"] += tiles * tile * iterations
                read = 4 * READ_FLOATS * tiles * tile
                work["bytes"] += read + 4 * WRITTEN_FLOATS * height * width
            work["steps"] += 1
            solver._launch_step()
            solver._launch_advance()

    solver._run = run
    solver.flow(frames, pairs)
    return {key: value / len(pairs) for key, value in work.items() if key != "steps"}


def batch_of(clips):
    """Frames of the first clip and PAIRS pairs of neighbours among them."""
    frames = np.stack(list(clips[0][1]))
    pairs = [(i % (len(frames) - 1), i % (len(frames) - 1) + 1) for i in range(PAIRS)]
    return torch.from_numpy(frames).cuda(), pairs


def kernels_of(tiling):
    """None for a tiling that needs more shared memory than the GPU has."""
    with gpu.open_driver(torch.cuda.current_device()) as driver:
        architecture, _ = gpu.describe_gpu(driver)
        try:
            return gpu.Kernels(gpu.compile_kernels(architecture, tiling), driver, tiling)
        except I3DError as error:
            print(f"{tiling}: {error}")
            return None


def speed(frames, pairs, kernels, slots=None):
    height, width = frames.shape[1:]
    solver = gpu.BatchSolver(
        height,
        width,
        TVL1(),
        torch.device("cuda"),
        kernels=kernels,
        slots=slots,
        most_frames=max(len(frames), PAIRS),
    )
    pairs = pairs[: solver.most_frames]
    record = {"tiling": asdict(kernels.tiling), "slots": solver.slots}
    record["pairs_per_second"] = len(pairs) / seconds_of(lambda: solver.flow(frames, pairs))
    work = count_work(solver, frames, pairs[:64])
    return record | {f"{key}_per_pair": value for key, value in work.items()}


def run(args, clips):
    """Print and write everything; the exit code. ``clips()``: (name, frames) of each, anew."""
    records = agreement(clips(), args.every)
    for r in records:
        print(
            f"{r['video']:36} {r['pairs']:4} pairs, end-point difference "
            f"{r['end_point_difference_pixels']:.5f} px (largest of a pair "
            f"{r['largest_of_a_pair_pixels']:.5f}), {r['identical_pairs']} identical; same bits "
            f"again: {r['same_bits_again']}, alone: {r['same_bits_alone']}"
        )
    limits = ceilings()
    print(
        f"copy {limits['copy_bytes_per_second'] / 1e12:.2f} TB/s, "
        f"float32 {limits['float32_operations_per_second'] / 1e12:.1f} TFLOP/s"
    )
    frames, pairs = batch_of(clips())
    chosen = gpu.load_kernels(torch.cuda.current_device())
    speeds = [speed(frames, pairs, chosen, slots) for slots in SLOTS]
    speeds += [speed(frames, pairs, k) for k in map(kernels_of, TILINGS) if k is not None]
    for s in speeds:
        rate = s["pairs_per_second"]
        # a product's float32 operations are two for each instruction
        share = rate * s["computed_pixel_iterations_per_pair"] * INSTRUCTIONS
        share /= limits["float32_operations_per_second"] / 2
        moved = rate * s["bytes_per_pair"]
        t = s["tiling"]
        print(
            f"{t['tile_width']}x{t['strips'] * t['rows']} tiles, {t['blocks']} blocks, "
            f"{t['pass_iterations']} iterations a pass, {s['slots']:3} pairs at work: "
            f"{rate:7.0f} pairs/s, {moved / 1e12:.2f} TB/s of passes "
            f"({moved / limits['copy_bytes_per_second']:.0%} of the copy), instructions "
            f"{share:.0%} of the product's"
        )
    best = max(s["pairs_per_second"] for s in speeds)
    good = all(
        r["end_point_difference_pixels"] < LIMIT_PIXELS
        and r["same_bits_again"]
        and r["same_bits_alone"]
        for r in records
    )
    print(f"agreement: {'yes' if good else 'NO'}; {best:.0f} pairs/s, aim {AIM}, least {LEAST}")
    result = {
        "frame_size": f"{frames.shape[2]}x{frames.shape[1]}",
        "pairs": PAIRS,
        "rounds": ROUNDS,
        "agreement": records,
        "ceilings": limits,
        "speed": speeds,
    }
    common.write(args, result, "torch", "numpy", "numba", "opencv-contrib-python-headless")
    return 0 if good and best >= LEAST else 1
