// Replaces NVIDIA's headers when kernels are compiled as C++ for the simulated GPU. Must not know any kernel.
// One thread of a block runs at a time. All names have CUDA's meanings.
#pragma once
#include <math.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// The values that the lanes of a warp exchange. There are two sets of `slots`, because a lane can be one
// collective ahead of the slowest reader, but never two. `phase` counts the collectives.
// Its low bit selects the set.
struct simgpu_warp {
    unsigned long long slots[2][32];
    unsigned phase;
    unsigned size;
    float *d[32];
    unsigned a[32][4];
    unsigned b[32][2];
};

extern "C" {
// The state of the running thread. The scheduler sets these before it starts or resumes a thread.
extern uint3 simgpu_thread, simgpu_block;
extern dim3 simgpu_block_dim, simgpu_grid_dim;
extern unsigned simgpu_lane;
extern struct simgpu_warp *simgpu_this_warp;
extern void *simgpu_shared_base;
// The first two wait until each thread of the block, or of the warp, has arrived. The last one to arrive does
// not wait. `simgpu_is_last_of_warp` returns true to that thread.
void simgpu_wait_block(void);
void simgpu_wait_warp(unsigned kind);
bool simgpu_is_last_of_warp(unsigned kind);
void simgpu_multiply(struct simgpu_warp *warp);
}

#define threadIdx simgpu_thread
#define blockIdx simgpu_block
#define blockDim simgpu_block_dim
#define gridDim simgpu_grid_dim
#define warpSize 32

static inline void *simgpu_shared() { return simgpu_shared_base; }

enum { simgpu_kind_sync = 1, simgpu_kind_shuffle = 2, simgpu_kind_mma = 3, simgpu_kind_vote = 4 };

static inline void __syncthreads() { simgpu_wait_block(); }
static inline void __syncwarp(unsigned = 0xffffffffu) { simgpu_wait_warp(simgpu_kind_sync); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

template <class T> static inline T simgpu_shuffle(T value, unsigned from) {
    static_assert(sizeof(T) <= 8, "a lane exchanges at most 8 bytes");
    simgpu_warp *warp = simgpu_this_warp;
    unsigned lane = simgpu_lane, set = warp->phase & 1u;
    unsigned long long bits = 0;
    memcpy(&bits, &value, sizeof(T));
    warp->slots[set][lane] = bits;
    simgpu_wait_warp(simgpu_kind_shuffle);
    if (from >= warp->size) return value;
    bits = warp->slots[set][from];
    memcpy(&value, &bits, sizeof(T));
    return value;
}

template <class T> static inline T __shfl_xor_sync(unsigned, T value, int mask, int width = 32) {
    unsigned from = simgpu_lane ^ (unsigned)mask;
    // A lane cannot read from a higher segment. CUDA then returns the lane's own value.
    bool outside = from / (unsigned)width > simgpu_lane / (unsigned)width;
    return simgpu_shuffle(value, outside ? simgpu_lane : from);
}
template <class T> static inline T __shfl_sync(unsigned, T value, int lane, int width = 32) {
    unsigned first = simgpu_lane & ~(unsigned)(width - 1);
    return simgpu_shuffle(value, first + ((unsigned)lane & (unsigned)(width - 1)));
}
template <class T> static inline T __shfl_down_sync(unsigned, T value, unsigned by, int width = 32) {
    unsigned from = simgpu_lane + by;
    bool outside = from / (unsigned)width != simgpu_lane / (unsigned)width;
    return simgpu_shuffle(value, outside ? simgpu_lane : from);
}
template <class T> static inline T __shfl_up_sync(unsigned, T value, unsigned by, int width = 32) {
    unsigned within = simgpu_lane & (unsigned)(width - 1);
    return simgpu_shuffle(value, within < by ? simgpu_lane : simgpu_lane - by);
}
static inline unsigned __ballot_sync(unsigned, int predicate) {
    simgpu_warp *warp = simgpu_this_warp;
    unsigned set = warp->phase & 1u, ballot = 0;
    warp->slots[set][simgpu_lane] = predicate != 0;
    simgpu_wait_warp(simgpu_kind_vote);
    for (unsigned lane = 0; lane < warp->size; lane++) ballot |= (unsigned)warp->slots[set][lane] << lane;
    return ballot;
}
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// d += a * b. The last lane to arrive multiplies for the whole warp. The others wait: their `d` stays valid.
static inline void simgpu_mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    simgpu_warp *warp = simgpu_this_warp;
    unsigned lane = simgpu_lane;
    warp->d[lane] = d;
    memcpy(warp->a[lane], a, sizeof a);
    memcpy(warp->b[lane], b, sizeof b);
    if (simgpu_is_last_of_warp(simgpu_kind_mma)) simgpu_multiply(warp);
    simgpu_wait_warp(simgpu_kind_mma);
}

// Threads run one at a time, so plain arithmetic is atomic.
template <class T> static inline T atomicAdd(T *address, T value) {
    T old = *address;
    *address = old + value;
    return old;
}
template <class T> static inline T atomicOr(T *address, T value) {
    T old = *address;
    *address = old | value;
    return old;
}
template <class T> static inline T atomicMax(T *address, T value) {
    T old = *address;
    if (value > old) *address = value;
    return old;
}
template <class T> static inline T atomicMin(T *address, T value) {
    T old = *address;
    if (value < old) *address = value;
    return old;
}
template <class T> static inline T atomicExch(T *address, T value) {
    T old = *address;
    *address = value;
    return old;
}
template <class T> static inline T atomicCAS(T *address, T compare, T value) {
    T old = *address;
    if (old == compare) *address = value;
    return old;
}

template <class To, class From> static inline To simgpu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "both types have the same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float value) { return simgpu_bits<unsigned>(value); }
static inline int __float_as_int(float value) { return simgpu_bits<int>(value); }
static inline float __uint_as_float(unsigned bits) { return simgpu_bits<float>(bits); }
static inline float __int_as_float(int bits) { return simgpu_bits<float>(bits); }
static inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }
static inline float __fdividef(float a, float b) { return a / b; }
// glibc declares these names itself.
#define __expf expf
#define __logf logf
template <class T> static inline T __ldg(const T *address) { return *address; }

#define SIMGPU_MIN_MAX(T) \
    static inline T min(T a, T b) { return b < a ? b : a; } \
    static inline T max(T a, T b) { return a < b ? b : a; }
SIMGPU_MIN_MAX(int)
SIMGPU_MIN_MAX(unsigned)
SIMGPU_MIN_MAX(long long)
SIMGPU_MIN_MAX(unsigned long long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

// The table of kernels. build.rs writes one entry for each `extern "C" __global__ void NAME(`.
struct simgpu_kernel {
    const char *name;
    void (*run)(void **parameters);
    const unsigned *sizes;
    unsigned count;
};
template <class... A> struct simgpu_sizes {
    static constexpr unsigned of[sizeof...(A) + 1] = {sizeof(A)..., 0};
};
template <unsigned... I> struct simgpu_indices {};
template <unsigned N, unsigned... I> struct simgpu_count : simgpu_count<N - 1, N - 1, I...> {};
template <unsigned... I> struct simgpu_count<0, I...> { using type = simgpu_indices<I...>; };
template <class... A, unsigned... I>
static inline void simgpu_call(void (*kernel)(A...), void **parameters, simgpu_indices<I...>) {
    kernel(*static_cast<A *>(parameters[I])...);
}
template <class... A> static inline void simgpu_call(void (*kernel)(A...), void **parameters) {
    simgpu_call(kernel, parameters, typename simgpu_count<sizeof...(A)>::type());
}
template <class... A>
static constexpr simgpu_kernel simgpu_entry(const char *name, void (*)(A...), void (*run)(void **)) {
    return {name, run, simgpu_sizes<A...>::of, sizeof...(A)};
}
#define SIMGPU_KERNEL(NAME) \
    simgpu_entry(#NAME, NAME, [](void **parameters) { simgpu_call(NAME, parameters); })
