// The GPU's kernels on a CPU, for tests: the text of i3d/flow/tvl1.cu unchanged, behind the few
// functions of the CUDA driver that i3d/flow/gpu.py calls.
//
// The threads of a block take turns: each runs until its next barrier. Blocks run one after another.
// After run_backwards(1) both go from the last to the first, so a missing barrier or a dependence
// between blocks gives other results. Shared memory starts as NaN. The approximate instructions err
// as much as the GPU's may.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <setjmp.h>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads, blocks)
#define __shared__

using std::max;
using std::min;

struct alignas(16) float4 { float x, y, z, w; };
struct Index { unsigned x, y, z; };
static Index threadIdx, blockIdx, blockDim;

template <class T> T __ldg(const T* p) { return *p; }
inline int atomicAdd(int* p, int value) { int old = *p; *p += value; return old; }

// One or two units in the last place off, by a pattern of its bits.
static float off(float value, int most)
{
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const int error = int((bits * 2654435761u) >> 16) % (2 * most + 1) - most;
    bits += error;
    std::memcpy(&value, &bits, 4);
    return value;
}
static float approximate_reciprocal(float x) { return off(1.0f / x, 1); }
static float approximate_rsqrt(float x) { return off(1.0f / std::sqrt(x), 2); }

static void __syncthreads();

alignas(16) float shared[64 * 1024];  // the kernels declare it as extern

#include KERNELS  // the path of tvl1.cu, defined by the compiler's caller

// --- threads that take turns ---------------------------------------------------------------------

using Kernel = void (*)(const Job);

static bool backwards = false;
static Kernel running;
static const Job* job_of_running;
static unsigned current;
static jmp_buf scheduler;
const size_t STACK = 64 * 1024;

// Its context is used to begin, once for all blocks; jumps, which need no system call, afterwards.
struct Thread {
    std::vector<char> stack = std::vector<char>(STACK);
    ucontext_t context;
    jmp_buf place;
    bool begun = false, finished = false;
};
static std::deque<Thread> threads;

static void give_way()
{
    if (!_setjmp(threads[current].place)) _longjmp(scheduler, 1);
}

static void __syncthreads() { give_way(); }

static void thread_main()
{
    for (;;) {
        running(*job_of_running);
        threads[current].finished = true;
        give_way();
    }
}

static void resume(Thread& thread)
{
    if (_setjmp(scheduler)) return;
    if (thread.begun) _longjmp(thread.place, 1);
    thread.begun = true;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = STACK;
    makecontext(&thread.context, thread_main, 0);
    setcontext(&thread.context);
}

static void run_block(unsigned count)
{
    while (threads.size() < count) threads.emplace_back();
    for (unsigned i = 0; i < count; i++) threads[i].finished = false;
    for (unsigned left = count; left > 0;) {
        left = 0;
        for (unsigned i = 0; i < count; i++) {
            current = backwards ? count - 1 - i : i;
            if (threads[current].finished) continue;
            threadIdx = {current, 0, 0};
            resume(threads[current]);
            left += !threads[current].finished;
        }
        if (left != 0 && left != count) {
            std::fprintf(stderr, "a barrier that only some threads reach\n");
            std::abort();
        }
    }
}

// --- the driver ----------------------------------------------------------------------------------

extern "C" int cuModuleLoadData(void** module, const void*) { *module = nullptr; return 0; }

extern "C" int cuModuleGetFunction(void** function, void*, const char* name)
{
    const std::pair<const char*, Kernel> known[] = {
        {"shrink", shrink}, {"differentiate", differentiate}, {"step", step}, {"advance", advance}};
    for (const auto& [its_name, kernel] : known)
        if (!std::strcmp(name, its_name)) {
            *function = reinterpret_cast<void*>(kernel);
            return 0;
        }
    return 500;  // CUDA_ERROR_NOT_FOUND
}

// The GPU that this is: an H100, until be_gpu says otherwise.
static int capability = 90, block_bytes = 227 * 1024, multiprocessor_bytes = 228 * 1024;

extern "C" int cuCtxGetDevice(int* device) { *device = 0; return 0; }

extern "C" int cuDeviceGetAttribute(int* value, int attribute, int)
{
    switch (attribute) {
        case 75: *value = capability / 10; return 0;      // COMPUTE_CAPABILITY_MAJOR
        case 76: *value = capability % 10; return 0;      // COMPUTE_CAPABILITY_MINOR
        case 81: *value = multiprocessor_bytes; return 0;  // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        case 97: *value = block_bytes; return 0;           // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    }
    return 1;  // CUDA_ERROR_INVALID_VALUE
}

static size_t allowed_shared = 48 * 1024;

extern "C" int cuFuncSetAttribute(void*, int attribute, int value)
{
    if (attribute != 8) return 0;  // MAX_DYNAMIC_SHARED_SIZE_BYTES
    if (value > block_bytes) return 1;
    allowed_shared = value;
    return 0;
}

extern "C" int cuGetErrorString(int, const char** text) { *text = "an error"; return 0; }

extern "C" int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                              unsigned block_x, unsigned block_y, unsigned block_z,
                              unsigned shared_bytes, void*, void** arguments, void** extra)
{
    if (grid_z != 1 || block_y != 1 || block_z != 1 || extra || !grid_x || !grid_y) return 1;
    if (shared_bytes > allowed_shared || shared_bytes > sizeof shared) return 1;
    running = reinterpret_cast<Kernel>(function);
    job_of_running = static_cast<const Job*>(arguments[0]);
    blockDim = {block_x, 1, 1};
    for (unsigned i = 0; i < grid_x * grid_y; i++) {
        const unsigned block = backwards ? grid_x * grid_y - 1 - i : i;
        blockIdx = {block % grid_x, block / grid_x, 0};
        std::fill(std::begin(shared), std::end(shared),
                  std::numeric_limits<float>::quiet_NaN());
        run_block(block_x);
    }
    return 0;
}

// --- what tests ask for besides ------------------------------------------------------------------

extern "C" void run_backwards(int yes) { backwards = yes; }

extern "C" void be_gpu(int its_capability, int its_block_bytes, int its_multiprocessor_bytes)
{
    capability = its_capability;
    block_bytes = its_block_bytes;
    multiprocessor_bytes = its_multiprocessor_bytes;
}

extern "C" void struct_sizes(int* sizes)
{
    sizes[0] = sizeof(Scale);
    sizes[1] = sizeof(Job);
    sizes[2] = sizeof(Slot);
    sizes[3] = sizeof(Counters);
}

// a / b and sqrt(a^2 + b^2) as the kernels compute them; b from 1 on for the quotients.
extern "C" void arithmetic(const float* a, const float* b, float* quotients, float* roots, int count)
{
    for (int i = 0; i < count; i++) {
        quotients[i] = quotient(a[i], b[i], reciprocal(b[i]));
        roots[i] = hypotenuse(a[i], b[i]);
    }
}
