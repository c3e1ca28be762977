// TV-L1 on a GPU: many pairs of frames at once, each at its own pace.
//
// The algorithm and the rounding of every operation are those of cpu.py, so the flow is the CPU's to
// the last bit but for two things: the order in which the stopping rule's sum is added, and roots, of
// which one in ten million differs in the last bit.
//
// A pair sits in a slot. One launch of `step` does the next piece of work of every slot's pair, tile
// by tile, whatever that piece is; `advance` then looks at what came out and decides what comes next:
//
//     for each scale, the coarsest first
//       for each warp           WARP    second frame read at x + u, rho linearised
//         up to 10 times        MEDIAN  5x5, of the flow
//           up to 30 iterations PASS    up to PASS_ITERATIONS of them on a tile in registers
//     WRITE                             the flow goes out and the slot takes the next pair
//
// So no pair waits for another one, the host decides nothing in between, and what comes out does not
// depend on which pairs are there together.
//
// A PASS reads the flow and the dual variables from one buffer and writes to the other. It notes
// the flow's change in every iteration. Where the pair came to rest after the j-th of them, the pass
// is done again from the old buffer, with j iterations: that is the CPU's stopping rule exactly.
//
// The same text is compiled for the CPU by the tests (tests/support/gpu_on_cpu.cpp), which define what
// follows for it.

#ifdef __CUDACC__
#define APPROXIMATE(name, instruction)                        \
    __device__ __forceinline__ float name(float x)            \
    {                                                         \
        float y;                                              \
        asm(instruction ".approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); \
        return y;                                             \
    }
APPROXIMATE(approximate_reciprocal, "rcp")  // relative error at most 2^-23
APPROXIMATE(approximate_rsqrt, "rsqrt")     // 2^-22.9
#endif

// --- sizes ---------------------------------------------------------------------------------------

// gpu.py defines: TILE_WIDTH, the pixels beside one another that a block works on, halo included;
// STRIPS, ROWS: a thread has a strip of ROWS pixels above one another, a block STRIPS of strips;
// BLOCKS on one multiprocessor, so that one computes while another one loads; PASS_ITERATIONS, each
// of which makes the correct part of a tile smaller by one pixel all around.
const int TILE_HEIGHT = STRIPS * ROWS;
const int TILE = TILE_WIDTH * TILE_HEIGHT;
const int THREADS = STRIPS * TILE_WIDTH;
const int LANES = 32;  // threads that add up one iteration's changes
const int PAD = 4;     // zeros around the taps, as in cpu.py
const int REACH = 2;   // of the 5x5 median
const int MEDIAN_WIDTH = TILE_WIDTH + 2 * REACH, MEDIAN_HEIGHT = TILE_HEIGHT + 2 * REACH;

// --- what the host passes, field for field as in gpu.py -------------------------------------------

struct Scale {
    int height, width;
    int stride;             // floats from one row of the state to the next
    int tiles_x, tiles;     // in a row of tiles, in all
    float limit;            // of the summed squares of the flow's change
    double step_y, step_x;  // pixels of the next coarser scale for each pixel here
    long long taps;         // where this scale begins in a frame's taps
};

enum Stage { IDLE, WARP, MEDIAN, PASS, WRITE };

struct Slot {
    int stage, pair, scale, warp, outer, inner;
    int iterations;      // of this pass
    int last;            // whether this pass is done again, up to where the pair came to rest
    int flow_in, dual_in;  // which of the two buffers holds the flow, and the dual variables
};

struct Counters {
    int pairs;  // all that there are
    int next;   // the first that no slot has taken
    int done;
};

struct Job {
    const Scale* scales;         // the full size first
    const unsigned char* gray;   // (frames, H, W)
    float4* taps;                // (frames, frame_taps): I, dI/dx, dI/dy and 0 of every pixel
    const int* frames;           // (pairs, 2): the first and the second frame's number
    Counters* counters;
    Slot* slots;
    float* flow;                 // (slots, 2 buffers, 2, plane): u1, u2
    float* dual;                 // (slots, 2 buffers, 4, plane): p11, p12, p21, p22
    float* data;                 // (slots, 3, plane): IX, IY, RHO
    float* changes;              // (slots, PASS_ITERATIONS, most_tiles)
    float* result;               // (pairs, H, W, 2)
    long long frame_taps, plane;
    double shrink;               // pixels of a scale for each of the next coarser
    float epsilon_square;        // gradients whose square is under it count as none
    float step, theta, tau_by_theta, zoom;  // lambda theta, theta, tau / theta, 1 / scale_step
    int num_scales, most_tiles, warps, outer_iterations, inner_iterations;
    int scale;                   // of the kernels of the pyramid
};

// --- the pyramid ---------------------------------------------------------------------------------

struct Between {
    int first, second;
    float weight;  // of the second
};

__device__ Between between(int index, double step, int length)
{
    const double position = (index + 0.5) * step - 0.5;
    const int first = (int)floor(position);
    if (first < 0) return {0, 0, 0.0f};
    if (first < length - 1) return {first, first + 1, (float)(position - first)};
    if (step > 1) return {length - 2, length - 1, 1.0f};  // as OpenCV rounds when it shrinks
    return {length - 1, length - 1, 0.0f};
}

__device__ float bilinear(float a, float b, float c, float d, float x, float y)
{
    const float upper = fmaf(b - a, x, a), lower = fmaf(d - c, x, c);
    return fmaf(lower - upper, y, upper);
}

__device__ long long tap_at(const Scale& scale, int y, int x)
{
    return scale.taps + (long long)(y + PAD) * (scale.width + 2 * PAD) + x + PAD;
}

// The image of one scale into the taps; a thread is a pixel, blockIdx.y a frame.
extern "C" __global__ void shrink(const Job job)
{
    const Scale scale = job.scales[job.scale];
    const int pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= scale.height * scale.width) return;
    const int y = pixel / scale.width, x = pixel % scale.width;
    float4* taps = job.taps + blockIdx.y * job.frame_taps;
    float value;
    if (job.scale == 0) {
        value = job.gray[(long long)blockIdx.y * scale.height * scale.width + pixel];
    } else {
        const Scale larger = job.scales[job.scale - 1];
        const Between rows = between(y, job.shrink, larger.height);
        const Between columns = between(x, job.shrink, larger.width);
        value = bilinear(taps[tap_at(larger, rows.first, columns.first)].x,
                         taps[tap_at(larger, rows.first, columns.second)].x,
                         taps[tap_at(larger, rows.second, columns.first)].x,
                         taps[tap_at(larger, rows.second, columns.second)].x,
                         columns.weight, rows.weight);
    }
    taps[tap_at(scale, y, x)].x = value;
}

// The central differences of one scale into the taps, the border repeated.
extern "C" __global__ void differentiate(const Job job)
{
    const Scale scale = job.scales[job.scale];
    const int pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= scale.height * scale.width) return;
    const int y = pixel / scale.width, x = pixel % scale.width;
    float4* taps = job.taps + blockIdx.y * job.frame_taps;
    const float left = taps[tap_at(scale, y, max(x - 1, 0))].x;
    const float right = taps[tap_at(scale, y, min(x + 1, scale.width - 1))].x;
    const float above = taps[tap_at(scale, max(y - 1, 0), x)].x;
    const float below = taps[tap_at(scale, min(y + 1, scale.height - 1), x)].x;
    float4* tap = taps + tap_at(scale, y, x);
    tap->y = 0.5f * (right - left);
    tap->z = 0.5f * (below - above);
}

// --- one tile of one pair ------------------------------------------------------------------------

//     tile 0    |XXXXXXXXXX....|                X: the pixels that are this tile's to write
//     tile 1              |....XXXXXX....|      .: halo of PASS_ITERATIONS pixels, computed by the
//     tile 2                         |....XX|      neighbour too; none at the border of the image
struct Tile {
    int x, y;                      // of the first pixel, halo included
    int left, right, top, bottom;  // of the pixels to write, ends excluded
};

__device__ Tile tile_of(const Scale& scale, int number)
{
    Tile tile;
    tile.x = number % scale.tiles_x * (TILE_WIDTH - 2 * PASS_ITERATIONS);
    tile.y = number / scale.tiles_x * (TILE_HEIGHT - 2 * PASS_ITERATIONS);
    const bool last_x = tile.x + TILE_WIDTH >= scale.width;
    const bool last_y = tile.y + TILE_HEIGHT >= scale.height;
    tile.left = tile.x ? tile.x + PASS_ITERATIONS : 0;
    tile.top = tile.y ? tile.y + PASS_ITERATIONS : 0;
    tile.right = last_x ? scale.width : tile.x + TILE_WIDTH - PASS_ITERATIONS;
    tile.bottom = last_y ? scale.height : tile.y + TILE_HEIGHT - PASS_ITERATIONS;
    return tile;
}

__device__ float* flow_of(const Job& job, const Slot& slot, int buffer)
{
    return job.flow + ((long long)blockIdx.y * 2 + (slot.flow_in ^ buffer)) * 2 * job.plane;
}

__device__ float* dual_of(const Job& job, const Slot& slot, int buffer)
{
    return job.dual + ((long long)blockIdx.y * 2 + (slot.dual_in ^ buffer)) * 4 * job.plane;
}

__device__ float* data_of(const Job& job)
{
    return job.data + (long long)blockIdx.y * 3 * job.plane;
}

__device__ bool enters_scale(const Slot& slot)
{
    return slot.stage == WARP && slot.warp == 0;
}

struct Weights {
    float w0, w1, w2, w3;
};

// Cubic convolution with a = -0.75: the weights of the pixels at -1, 0, 1, 2 for position t.
__device__ Weights cubic_weights(float t)
{
    const float s = 1.0f - t;
    const float w0 = t * (s * s) * -0.75f;
    const float w1 = fmaf(fmaf(1.25f, t, -2.25f), t * t, 1.0f);
    const float w3 = s * (t * t) * -0.75f;
    return {w0, w1, 1.0f - w0 - w1 - w3, w3};
}

__device__ float weigh(float a, float b, float c, float d, const Weights& w)
{
    return fmaf(d, w.w3, fmaf(c, w.w2, fmaf(b, w.w1, a * w.w0)));
}

// WARP: IX, IY and RHO of the tile's pixels. At the first warp of a scale the flow comes from the
// coarser scale in the one buffer, enlarged, into the other one; there is none at the coarsest.
__device__ void warp_tile(const Job& job, const Slot& slot, const Scale& scale, const Tile& tile)
{
    const bool enters = enters_scale(slot), coarsest = slot.scale == job.num_scales - 1;
    const float4* first = job.taps + job.frames[2 * slot.pair] * job.frame_taps;
    const float4* second = job.taps + job.frames[2 * slot.pair + 1] * job.frame_taps;
    const float* old = flow_of(job, slot, 0);
    float* flow = flow_of(job, slot, enters ? 1 : 0);
    float* dual = dual_of(job, slot, 0);
    float* data = data_of(job);
    const int x = tile.left + threadIdx.x % TILE_WIDTH;
    if (x >= tile.right) return;
    for (int y = tile.top + threadIdx.x / TILE_WIDTH; y < tile.bottom; y += STRIPS) {
        const int at = y * scale.stride + x;
        float u1, u2;
        if (!enters) {
            u1 = flow[at];
            u2 = flow[at + job.plane];
        } else {
            u1 = u2 = 0.0f;
            if (!coarsest) {
                const Scale coarse = job.scales[slot.scale + 1];
                const Between rows = between(y, scale.step_y, coarse.height);
                const Between columns = between(x, scale.step_x, coarse.width);
                const float* above = old + (long long)rows.first * coarse.stride;
                const float* below = old + (long long)rows.second * coarse.stride;
                const int l = columns.first, r = columns.second;
                u1 = bilinear(above[l], above[r], below[l], below[r], columns.weight, rows.weight);
                above += job.plane;
                below += job.plane;
                u2 = bilinear(above[l], above[r], below[l], below[r], columns.weight, rows.weight);
                u1 *= job.zoom;
                u2 *= job.zoom;
            }
            flow[at] = u1;
            flow[at + job.plane] = u2;
            for (int plane = 0; plane < 4; plane++) dual[at + plane * job.plane] = 0.0f;
        }
        // positions that far outside read nothing but zeros
        const float px = fminf(fmaxf(x + u1, 1 - PAD), scale.width + 1);
        const float py = fminf(fmaxf(y + u2, 1 - PAD), scale.height + 1);
        const float floor_x = floorf(px), floor_y = floorf(py);
        const Weights along_x = cubic_weights(px - floor_x), along_y = cubic_weights(py - floor_y);
        const float4* window = second + tap_at(scale, (int)floor_y - 1, (int)floor_x - 1);
        float rows[3][4];
#pragma unroll
        for (int row = 0; row < 4; row++) {
            const float4 a = __ldg(window), b = __ldg(window + 1);
            const float4 c = __ldg(window + 2), d = __ldg(window + 3);
            rows[0][row] = weigh(a.x, b.x, c.x, d.x, along_x);
            rows[1][row] = weigh(a.y, b.y, c.y, d.y, along_x);
            rows[2][row] = weigh(a.z, b.z, c.z, d.z, along_x);
            window += scale.width + 2 * PAD;
        }
        const float i1 = weigh(rows[0][0], rows[0][1], rows[0][2], rows[0][3], along_y);
        const float ix = weigh(rows[1][0], rows[1][1], rows[1][2], rows[1][3], along_y);
        const float iy = weigh(rows[2][0], rows[2][1], rows[2][2], rows[2][3], along_y);
        const float i0 = first[tap_at(scale, y, x)].x;
        data[at] = ix;
        data[at + job.plane] = iy;
        data[at + 2 * job.plane] = i1 - ix * u1 - iy * u2 - i0;
    }
}

__device__ __forceinline__ void sort2(float& a, float& b)
{
    const float smaller = fminf(a, b);
    b = fmaxf(a, b);
    a = smaller;
}

__device__ __forceinline__ void sort5(float& a, float& b, float& c, float& d, float& e)
{
    sort2(a, b);
    sort2(d, e);
    sort2(c, e);
    sort2(c, d);
    sort2(b, e);
    sort2(a, d);
    sort2(a, c);
    sort2(b, d);
    sort2(b, c);
}

// MEDIAN: of both planes of the flow into the other buffer. cpu.py explains the exchanges.
__device__ void median_tile(const Job& job, const Slot& slot, const Scale& scale, const Tile& tile,
                            float* shared)
{
    float* image = shared;                              // (MEDIAN_HEIGHT, MEDIAN_WIDTH)
    float* ranks = image + MEDIAN_WIDTH * MEDIAN_HEIGHT;  // (5, TILE_HEIGHT, MEDIAN_WIDTH)
    const int width = tile.right - tile.left, height = tile.bottom - tile.top;
    const int rank = TILE_HEIGHT * MEDIAN_WIDTH;
    for (int plane = 0; plane < 2; plane++) {
        const float* in = flow_of(job, slot, 0) + plane * job.plane;
        float* out = flow_of(job, slot, 1) + plane * job.plane;
        for (int i = threadIdx.x; i < (height + 2 * REACH) * MEDIAN_WIDTH; i += THREADS) {
            const int y = tile.top + i / MEDIAN_WIDTH - REACH, x = tile.left + i % MEDIAN_WIDTH - REACH;
            image[i] = in[(long long)min(max(y, 0), scale.height - 1) * scale.stride
                          + min(max(x, 0), scale.width - 1)];
        }
        __syncthreads();
        for (int i = threadIdx.x; i < height * MEDIAN_WIDTH; i += THREADS) {
            float a = image[i], b = image[i + MEDIAN_WIDTH], c = image[i + 2 * MEDIAN_WIDTH];
            float d = image[i + 3 * MEDIAN_WIDTH], e = image[i + 4 * MEDIAN_WIDTH];
            sort5(a, b, c, d, e);
            ranks[i] = a;
            ranks[i + rank] = b;
            ranks[i + 2 * rank] = c;
            ranks[i + 3 * rank] = d;
            ranks[i + 4 * rank] = e;
        }
        __syncthreads();
        const int x = threadIdx.x % TILE_WIDTH;
        if (x < width) {
            for (int y = threadIdx.x / TILE_WIDTH; y < height; y += STRIPS) {
                float v[5][5];
#pragma unroll
                for (int r = 0; r < 5; r++) {
                    const float* from = ranks + r * rank + y * MEDIAN_WIDTH + x;
#pragma unroll
                    for (int k = 0; k < 5; k++) v[r][k] = from[k];
                    sort5(v[r][0], v[r][1], v[r][2], v[r][3], v[r][4]);
                }
                float a = v[0][3], b = v[0][4], c = v[1][2], d = v[1][3], e = v[1][4];
                float f = v[2][1], g = v[2][2], h = v[2][3];
                float i = v[3][0], j = v[3][1], k = v[3][2], l = v[4][0], m = v[4][1];
                sort2(c, j);
                sort2(m, k);
                sort2(l, d);
                sort2(i, l);
                sort2(b, g);
                sort2(b, l);
                sort2(a, j);
                sort2(f, l);
                sort2(d, g);
                sort2(h, j);
                sort2(e, h);
                sort2(m, d);
                sort2(l, e);
                sort2(l, m);
                sort2(e, m);
                out[(long long)(tile.top + y) * scale.stride + tile.left + x] = e;
            }
        }
        __syncthreads();
    }
}

// a / b, rounded once: `inverse` is 1 / b to nearly the last bit, or 0 for a quotient of 0.
__device__ __forceinline__ float quotient(float a, float b, float inverse)
{
    const float q = a * inverse;
    return fmaf(fmaf(-b, q, a), inverse, q);
}

// 1 / b to nearly the last bit, for b from 1e-30 to 1e30.
__device__ __forceinline__ float reciprocal(float b)
{
    const float y = approximate_reciprocal(b);
    return fmaf(fmaf(-b, y, 1.0f), y, y);
}

// sqrt(x^2 + y^2), rounded as from double precision.
__device__ __forceinline__ float hypotenuse(float x, float y)
{
    const float larger = fmaxf(fabsf(x), fabsf(y)), smaller = fminf(fabsf(x), fabsf(y));
    const float square = larger * larger;
    const float total = fmaf(smaller, smaller, square);
    const float lost = fmaf(smaller, smaller, square - total) + fmaf(larger, larger, -square);
    const float r = approximate_rsqrt(fmaxf(total, 1e-30f)), half = 0.5f * r;
    const float rough = total * r;
    const float g = fmaf(fmaf(-rough, rough, total), half, rough);
    return fmaf(fmaf(-g, g, total) + lost, half, g);
}

// PASS: `slot.iterations` inner iterations on one tile.
//
//     rho  = RHO + IX u1 + IY u2
//     v    = u - IX, IY times (rho / SQUARE, or +- lambda theta where |rho| > LIMIT)
//     u   <- v + theta div p                                      div: backward differences
//     p   <- (p + tau/theta grad u) / (1 + tau/theta |grad u|)    grad: forward differences
//
// A thread keeps u and p of its strip in registers. What its neighbours need goes through shared
// memory, between two barriers an iteration.
__device__ void iterate_tile(const Job& job, const Slot& slot, const Scale& scale, const Tile& tile,
                             float* shared)
{
    float *const ix = shared, *const iy = ix + TILE, *const rho = iy + TILE;
    float *const inverse = rho + TILE;  // 1 / (IX^2 + IY^2)
    float *const u1s = inverse + TILE, *const u2s = u1s + TILE;
    float *const p11s = u2s + TILE, *const p21s = p11s + TILE;
    float *const p12s = p21s + TILE, *const p22s = p12s + STRIPS * TILE_WIDTH;  // last row of strips
    float *const sums = p22s + STRIPS * TILE_WIDTH;                    // (PASS_ITERATIONS, THREADS)

    const int column = threadIdx.x % TILE_WIDTH, strip = threadIdx.x / TILE_WIDTH;
    const int x = tile.x + column, top = tile.y + strip * ROWS;
    const int corner = strip * ROWS * TILE_WIDTH + column;  // of the strip in the tile
    const bool first_column = x == 0;
    const int left = column > 0 ? 1 : 0;
    const int right = x + 1 < scale.width && column + 1 < TILE_WIDTH ? 1 : 0;

    unsigned mine = 0;  // bit r: row r of the strip is this tile's to write
    for (int row = 0; row < ROWS; row++) {
        const int y = top + row;
        if (x >= tile.left && x < tile.right && y >= tile.top && y < tile.bottom) mine |= 1u << row;
    }

    float u1[ROWS], u2[ROWS], p11[ROWS], p12[ROWS], p21[ROWS], p22[ROWS];
    {
        const float* flow = flow_of(job, slot, 0);
        const float* dual = dual_of(job, slot, 0);
        const float* data = data_of(job);
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            const int y = top + row, here = corner + row * TILE_WIDTH;
            const int at = y * scale.stride + x;
            const bool inside = x < scale.width && y < scale.height;
            u1[row] = inside ? flow[at] : 0.0f;
            u2[row] = inside ? flow[at + job.plane] : 0.0f;
            p11[row] = inside ? dual[at] : 0.0f;
            p12[row] = inside ? dual[at + job.plane] : 0.0f;
            p21[row] = inside ? dual[at + 2 * job.plane] : 0.0f;
            p22[row] = inside ? dual[at + 3 * job.plane] : 0.0f;
            const float gx = inside ? data[at] : 0.0f;
            const float gy = inside ? data[at + job.plane] : 0.0f;
            const float square = gx * gx + gy * gy;
            ix[here] = gx;
            iy[here] = gy;
            rho[here] = inside ? data[at + 2 * job.plane] : 0.0f;
            inverse[here] = square > job.epsilon_square ? reciprocal(square) : 0.0f;
            p11s[here] = p11[row];
            p21s[here] = p21[row];
        }
    }
    p12s[strip * TILE_WIDTH + column] = p12[ROWS - 1];
    p22s[strip * TILE_WIDTH + column] = p22[ROWS - 1];
    __syncthreads();

    for (int iteration = 0; iteration < slot.iterations; iteration++) {
        float sum = 0.0f;
        float p12_above = strip ? p12s[(strip - 1) * TILE_WIDTH + column] : 0.0f;
        float p22_above = strip ? p22s[(strip - 1) * TILE_WIDTH + column] : 0.0f;
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            const int here = corner + row * TILE_WIDTH;
            const float gx = ix[here], gy = iy[here];
            const float square = gx * gx + gy * gy;
            const float limit = job.step * square;
            const float residual = rho[here] + (gx * u1[row] + gy * u2[row]);
            float step = quotient(residual, square, inverse[here]);
            step = residual > limit ? job.step : -limit > residual ? -job.step : step;

            // (p11 - left) + (p12 - above); in the first column, as OpenCV, (p11 + p12) - above
            const float beside1 = first_column ? p12[row] : -p11s[here - left];
            const float beside2 = first_column ? p22[row] : -p21s[here - left];
            const float upright1 = (first_column ? 0.0f : p12[row]) - p12_above;
            const float upright2 = (first_column ? 0.0f : p22[row]) - p22_above;
            const float div1 = (p11[row] + beside1) + upright1;
            const float div2 = (p21[row] + beside2) + upright2;
            p12_above = p12[row];
            p22_above = p22[row];
            const float new1 = (u1[row] - step * gx) + job.theta * div1;
            const float new2 = (u2[row] - step * gy) + job.theta * div2;
            const float change1 = new1 - u1[row], change2 = new2 - u2[row];
            sum += mine >> row & 1 ? change1 * change1 + change2 * change2 : 0.0f;
            u1[row] = u1s[here] = new1;
            u2[row] = u2s[here] = new2;
        }
        sums[iteration * THREADS + threadIdx.x] = sum;
        __syncthreads();
        const int next = corner + ROWS * TILE_WIDTH;  // the first row of the strip below
        const float u1_next = strip + 1 < STRIPS ? u1s[next] : u1[ROWS - 1];
        const float u2_next = strip + 1 < STRIPS ? u2s[next] : u2[ROWS - 1];
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            const int here = corner + row * TILE_WIDTH;
            const bool last_row = top + row == scale.height - 1;
            const float u1_below = row + 1 < ROWS ? u1[(row + 1) % ROWS] : u1_next;
            const float u2_below = row + 1 < ROWS ? u2[(row + 1) % ROWS] : u2_next;
            const float u1x = u1s[here + right] - u1[row], u2x = u2s[here + right] - u2[row];
            const float u1y = last_row ? 0.0f : u1_below - u1[row];
            const float u2y = last_row ? 0.0f : u2_below - u2[row];
            const float norm1 = 1.0f + job.tau_by_theta * hypotenuse(u1x, u1y);
            const float norm2 = 1.0f + job.tau_by_theta * hypotenuse(u2x, u2y);
            const float inverse1 = reciprocal(norm1), inverse2 = reciprocal(norm2);
            p11[row] = quotient(p11[row] + job.tau_by_theta * u1x, norm1, inverse1);
            p12[row] = quotient(p12[row] + job.tau_by_theta * u1y, norm1, inverse1);
            p21[row] = quotient(p21[row] + job.tau_by_theta * u2x, norm2, inverse2);
            p22[row] = quotient(p22[row] + job.tau_by_theta * u2y, norm2, inverse2);
            p11s[here] = p11[row];
            p21s[here] = p21[row];
        }
        p12s[strip * TILE_WIDTH + column] = p12[ROWS - 1];
        p22s[strip * TILE_WIDTH + column] = p22[ROWS - 1];
        __syncthreads();
    }

    float* flow = flow_of(job, slot, 1);
    float* dual = dual_of(job, slot, 1);
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        const int at = (top + row) * scale.stride + x;
        if (mine >> row & 1) {
            flow[at] = u1[row];
            flow[at + job.plane] = u2[row];
            dual[at] = p11[row];
            dual[at + job.plane] = p12[row];
            dual[at + 2 * job.plane] = p21[row];
            dual[at + 3 * job.plane] = p22[row];
        }
    }
    // the tile's changes in each iteration, added in an order that is always the same
    const int iteration = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    if (iteration < slot.iterations) {
        float sum = 0.0f;
        for (int i = lane; i < THREADS; i += LANES) sum += sums[iteration * THREADS + i];
        sums[iteration * THREADS + lane] = sum;  // which no other thread reads before the barrier
    }
    __syncthreads();
    if ((int)threadIdx.x < slot.iterations) {
        float sum = 0.0f;
        for (int i = 0; i < LANES; i++) sum += sums[threadIdx.x * THREADS + i];
        job.changes[((long long)blockIdx.y * PASS_ITERATIONS + threadIdx.x) * job.most_tiles
                    + blockIdx.x] = sum;
    }
}

// WRITE: the flow of the full size, x and y side by side.
__device__ void write_tile(const Job& job, const Slot& slot, const Scale& scale, const Tile& tile)
{
    const float* flow = flow_of(job, slot, 0);
    float* result = job.result + (long long)slot.pair * scale.height * scale.width * 2;
    const int x = tile.left + threadIdx.x % TILE_WIDTH;
    if (x >= tile.right) return;
    for (int y = tile.top + threadIdx.x / TILE_WIDTH; y < tile.bottom; y += STRIPS) {
        const int at = y * scale.stride + x;
        float* to = result + ((long long)y * scale.width + x) * 2;
        to[0] = flow[at];
        to[1] = flow[at + job.plane];
    }
}

// The next piece of work of every slot: blockIdx.y is the slot, blockIdx.x the tile.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) step(const Job job)
{
    extern __shared__ float shared[];
    const Slot slot = job.slots[blockIdx.y];
    if (slot.stage == IDLE) return;
    const Scale scale = job.scales[slot.scale];
    if ((int)blockIdx.x >= scale.tiles) return;
    const Tile tile = tile_of(scale, blockIdx.x);
    if (slot.stage == WARP) warp_tile(job, slot, scale, tile);
    if (slot.stage == MEDIAN) median_tile(job, slot, scale, tile, shared);
    if (slot.stage == PASS) iterate_tile(job, slot, scale, tile, shared);
    if (slot.stage == WRITE) write_tile(job, slot, scale, tile);
}

// --- what comes next -----------------------------------------------------------------------------

__device__ void begin_pass(const Job& job, Slot& slot)
{
    slot.stage = PASS;
    slot.last = 0;
    slot.iterations = min(PASS_ITERATIONS, job.inner_iterations - slot.inner);
}

__device__ void begin_scale(Slot& slot, int scale)
{
    slot.stage = WARP;
    slot.scale = scale;
    slot.warp = 0;
}

__device__ void end_warp(const Job& job, Slot& slot)
{
    slot.stage = WARP;
    slot.warp++;
    if (slot.warp == job.warps) {
        if (slot.scale > 0)
            begin_scale(slot, slot.scale - 1);
        else
            slot.stage = WRITE;
    }
}

__device__ void end_pass(const Job& job, Slot& slot, const double* changes, float limit)
{
    int rest = 0;  // the iteration, counted from 1, after which the pair was at rest
    for (int i = slot.iterations; i > 0; i--)
        if (!(changes[i - 1] > limit)) rest = i;
    if (rest && rest < slot.iterations && !slot.last) {
        slot.iterations = rest;
        slot.last = 1;
        return;
    }
    slot.flow_in ^= 1;
    slot.dual_in ^= 1;
    slot.inner += slot.iterations;
    if (rest || slot.last) {
        end_warp(job, slot);
    } else if (slot.inner < job.inner_iterations) {
        begin_pass(job, slot);
    } else if (++slot.outer < job.outer_iterations) {
        slot.stage = MEDIAN;
    } else {
        end_warp(job, slot);
    }
}

// After each `step`: a block is a slot.
extern "C" __global__ void advance(const Job job)
{
    extern __shared__ float shared[];
    double* const partial = (double*)shared;                    // (PASS_ITERATIONS, LANES)
    double* const changes = partial + PASS_ITERATIONS * LANES;  // (PASS_ITERATIONS)
    Slot slot = job.slots[blockIdx.x];
    const int iteration = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const bool passed = slot.stage == PASS;
    const int tiles = passed ? job.scales[slot.scale].tiles : 0;
    const float* of_tiles = job.changes
        + ((long long)blockIdx.x * PASS_ITERATIONS + iteration) * job.most_tiles;
    double sum = 0.0;
    if (passed && iteration < slot.iterations)
        for (int tile = lane; tile < tiles; tile += LANES) sum += of_tiles[tile];
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (lane == 0) {
        sum = 0.0;
        for (int i = 0; i < LANES; i++) sum += partial[iteration * LANES + i];
        changes[iteration] = sum;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    if (slot.stage == WARP) {
        slot.flow_in ^= enters_scale(slot);
        slot.outer = 0;
        slot.stage = MEDIAN;
    } else if (slot.stage == MEDIAN) {
        slot.flow_in ^= 1;
        slot.inner = 0;
        begin_pass(job, slot);
    } else if (slot.stage == PASS) {
        end_pass(job, slot, changes, job.scales[slot.scale].limit);
    } else if (slot.stage == WRITE) {
        atomicAdd(&job.counters->done, 1);
        slot.stage = IDLE;
    }
    if (slot.stage == IDLE && job.counters->next < job.counters->pairs) {
        slot.pair = atomicAdd(&job.counters->next, 1);
        if (slot.pair < job.counters->pairs) begin_scale(slot, job.num_scales - 1);
    }
    job.slots[blockIdx.x] = slot;
}
