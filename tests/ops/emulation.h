// Runs the CUDA sources of vmrepro/ops/cuda on a CPU, one block at a time: each thread is a fibre that runs until a barrier.
// It replaces intrinsics.cu. Shared memory starts as NaN, and background copies land only when waited for, so that a missing
// barrier or wait shows as a wrong number.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

using std::max;
using std::min;

#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define INLINE inline

typedef unsigned short u16;
typedef unsigned int u32;
struct Dim { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { u32 x, y, z, w; };
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static Dim threadIdx, blockIdx, gridDim, blockDim;
alignas(128) char shared[256 * 1024];

enum State { READY, AT_WARP, AT_GROUP, AT_BLOCK, DONE };
struct Copy { void *to; size_t size; char bytes[16]; int group; };
struct Group { int id, threads; };
struct Fibre {
    ucontext_t context;
    State state;
    Group group;
    std::vector<Copy> copies;
    int groups;
    std::vector<char> stack;
};
static std::vector<Fibre> fibres;
static ucontext_t scheduler;
static unsigned running;
static void (*body)(const void *);
static const void *arguments;

inline void stop(State state) {
    fibres[running].state = state;
    swapcontext(&fibres[running].context, &scheduler);
}
inline void __syncthreads() { stop(AT_BLOCK); }
inline void group_barrier(int id, int threads) {
    fibres[running].group = {id, threads};
    stop(AT_GROUP);
}
inline void __syncwarp() { stop(AT_WARP); }
inline void __threadfence() {}

struct alignas(8) TurnBarrier {
    u16 count, arrived;
    u32 turn;
    void begin(int threads) { count = threads, arrived = 0, turn = 0; }
    void arrive() {
        if (++arrived == count) arrived = 0, ++turn;
    }
    void wait(int which) {
        for (int tries = 0; turn % 2 == (which & 1); ++tries) {
            if (tries > 1 << 20) {
                std::fprintf(stderr, "emulation: a thread waits at a barrier that others never reach\n");
                std::abort();
            }
            stop(READY);
        }
    }
};

static void fibre_main() {
    body(arguments);
    fibres[running].copies.clear();
    fibres[running].state = DONE;
    swapcontext(&fibres[running].context, &scheduler);
}

static bool release(size_t first, size_t last, State waiting) {
    size_t ready = 0, done = 0;
    for (size_t i = first; i < last; ++i) {
        ready += fibres[i].state == waiting;
        done += fibres[i].state == DONE;
    }
    if (ready == 0 || ready + done < last - first) return false;
    for (size_t i = first; i < last; ++i)
        if (fibres[i].state == waiting) fibres[i].state = READY;
    return true;
}

// The first complete group that waits at a barrier of its own.
static bool release_group() {
    for (Fibre &first : fibres) {
        if (first.state != AT_GROUP) continue;
        auto waits = [&](const Fibre &f) { return f.state == AT_GROUP && f.group.id == first.group.id; };
        if (std::count_if(fibres.begin(), fibres.end(), waits) < first.group.threads) continue;
        int id = first.group.id;
        for (Fibre &f : fibres)
            if (f.state == AT_GROUP && f.group.id == id) f.state = READY;
        return true;
    }
    return false;
}

static bool run_warp(size_t first, size_t last) {
    bool moved = false;
    do {
        for (size_t i = first; i < last; ++i) {
            if (fibres[i].state != READY) continue;
            running = i;
            threadIdx = {(unsigned)i, 0, 0};
            swapcontext(&scheduler, &fibres[i].context);
            moved = true;
        }
    } while (release(first, last, AT_WARP));
    return moved;
}

static void run_block() {
    size_t threads = blockDim.x;
    fibres.resize(threads);
    for (size_t i = 0; i < threads; ++i) {
        Fibre &f = fibres[i];
        f.stack.resize(1 << 16);
        f.state = READY;
        f.groups = 0;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data();
        f.context.uc_stack.ss_size = f.stack.size();
        f.context.uc_link = &scheduler;
        makecontext(&f.context, fibre_main, 0);
    }
    std::memset(shared, 0xff, sizeof shared);
    for (;;) {
        bool moved = false;
        for (size_t first = 0; first < threads; first += 32) moved |= run_warp(first, min(first + 32, threads));
        if (release_group() || release(0, threads, AT_BLOCK)) continue;
        if (!moved) break;
    }
    for (Fibre &f : fibres)
        if (f.state != DONE) {
            std::fprintf(stderr, "emulation: some threads wait at a barrier that others never reach\n");
            std::abort();
        }
}

struct Entry {
    const char *name;
    void (*body)(const void *);
};
extern const Entry entries[];

extern "C" int emulate(const char *name, Dim grid, Dim block, const void *argument) {
    for (const Entry *e = entries; e->name; ++e) {
        if (std::strcmp(e->name, name)) continue;
        body = e->body;
        arguments = argument;
        gridDim = grid;
        blockDim = block;
        for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
            for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
                for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block();
        return 0;
    }
    return 1;
}

inline float __uint_as_float(u32 x) {
    float y;
    std::memcpy(&y, &x, 4);
    return y;
}
inline u32 __float_as_uint(float x) {
    u32 y;
    std::memcpy(&y, &x, 4);
    return y;
}

inline float exp2_fast(float x) { return std::exp2(x); }
inline float log2_fast(float x) { return std::log2(x); }
inline float reciprocal(float x) { return 1.f / x; }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float bf16_to_float(u16 x) { return __uint_as_float((u32)x << 16); }
inline u16 float_to_bf16(float x) {
    u32 bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline u32 floats_to_bf16x2(float low, float high) { return float_to_bf16(low) | (u32)float_to_bf16(high) << 16; }

inline float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
inline float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

inline float half_to_float(u16 x) {
    u32 exponent = x >> 10 & 31, fraction = x & 1023;
    float size = exponent == 0 ? std::ldexp((float)fraction, -24) : std::ldexp((float)(fraction | 1024), (int)exponent - 25);
    if (exponent == 31) size = fraction ? NAN : INFINITY;
    return x >> 15 ? -size : size;
}
inline u16 float_to_half(float x) {
    u16 sign = __float_as_uint(x) >> 31 << 15;
    float size = std::fabs(x);
    if (!(size < 65520.f)) return sign | (x != x ? 0x7e00 : 0x7c00);
    int exponent = size < 6.103515625e-5f ? -14 : std::ilogb(size);
    u32 fraction = (u32)std::nearbyint(std::ldexp(size, 10 - exponent));
    return sign | (exponent == -14 ? fraction : fraction + ((u32)(exponent + 14) << 10));
}

static void queue_copy(void *to, const void *from, bool valid, size_t size) {
    Copy copy = {to, size, {}, fibres[running].groups};
    if (valid) std::memcpy(copy.bytes, from, size);
    fibres[running].copies.push_back(copy);
}
inline void copy_async(void *to, const void *from, bool valid) { queue_copy(to, from, valid, 16); }
inline void copy_async_word(void *to, const void *from, bool valid) { queue_copy(to, from, valid, 4); }
inline void copy_commit() { ++fibres[running].groups; }
static void land(int groups) {
    std::vector<Copy> &copies = fibres[running].copies;
    size_t left = 0;
    for (Copy &copy : copies) {
        if (copy.group < groups) std::memcpy(copy.to, copy.bytes, copy.size);
        else copies[left++] = copy;
    }
    copies.resize(left);
}
template <int MOST>
inline void copy_wait_but() { land(fibres[running].groups - MOST); }
inline void copy_wait() { land(fibres[running].groups + 1); }

template <typename Element>
inline void store_if(bool condition, Element *to, Element value) {
    if (condition) *to = value;
}

// What each lane of a warp shows the others.
static u32 board[32][32][8];
inline u32 *mine() { return board[running / 32][running % 32]; }
inline u32 *lane_of(unsigned lane) { return board[running / 32][lane]; }

inline float shuffle_xor(float x, int mask) {
    mine()[0] = __float_as_uint(x);
    __syncwarp();
    float y = __uint_as_float(lane_of((running % 32) ^ mask)[0]);
    __syncwarp();
    return y;
}

static void load_matrices(u32 (&a)[4], const void *row, bool transposed) {
    std::memcpy(mine(), &row, sizeof row);
    __syncwarp();
    unsigned lane = running % 32;
    for (int m = 0; m < 4; ++m) {
        u16 pair[2];
        for (int k = 0; k < 2; ++k) {
            const u16 *source;
            std::memcpy(&source, lane_of(m * 8 + (transposed ? lane % 4 * 2 + k : lane / 4)), sizeof source);
            pair[k] = source[transposed ? lane / 4 : lane % 4 * 2 + k];
        }
        a[m] = pair[0] | (u32)pair[1] << 16;
    }
    __syncwarp();
}

inline void load_matrices(u32 (&a)[4], const void *row) { load_matrices(a, row, false); }
inline void load_matrices_transposed(u32 (&a)[4], const void *row) { load_matrices(a, row, true); }

inline void multiply_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    u32 *own = mine();
    std::memcpy(own, a, sizeof a);
    own[4] = b0;
    own[5] = b1;
    __syncwarp();
    unsigned lane = running % 32;
    for (int i = 0; i < 4; ++i) {
        unsigned row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 16; ++k) {
            u32 left = lane_of(row % 8 * 4 + k % 8 / 2)[row / 8 + 2 * (k / 8)];
            u32 right = lane_of(column * 4 + k % 8 / 2)[4 + k / 8];
            c[i] += bf16_to_float(left >> (k % 2 * 16)) * bf16_to_float(right >> (k % 2 * 16));
        }
    }
    __syncwarp();
}

inline void multiply_bf16(float (&c)[4], u32 a0, u32 a1, u32 b0) {
    const u32 a[4] = {a0, a1, 0, 0};
    multiply_bf16(c, a, b0, 0);
}

inline float tf32(u32 bits) { return __uint_as_float(bits & 0xffffe000u); }

inline float round_tf32(float x) { return std::isfinite(x) ? __uint_as_float(__float_as_uint(x) + 0x1000 & 0xffffe000u) : x; }

// c (16, 8) += a (16, K) b (K, 8), K four times as many as there are numbers of b in a lane.
template <int N>
static void multiply_tf32(float (&c)[4], const float (&a)[2 * N], const float (&b)[N]) {
    u32 *own = mine();
    std::memcpy(own, a, sizeof a);
    std::memcpy(own + 2 * N, b, sizeof b);
    __syncwarp();
    unsigned lane = running % 32;
    for (int i = 0; i < 4; ++i)
        for (unsigned k = 0; k < 4 * N; ++k) {
            u32 left = lane_of(lane / 4 * 4 + k % 4)[i / 2 + 2 * (k / 4)];
            u32 right = lane_of((lane % 4 * 2 + i % 2) * 4 + k % 4)[2 * N + k / 4];
            c[i] += tf32(left) * tf32(right);
        }
    __syncwarp();
}
inline void multiply_tf32(float (&c)[4], const float (&a)[2], float b0) { multiply_tf32<1>(c, a, {b0}); }
inline void multiply_tf32(float (&c)[4], const float (&a)[4], float b0, float b1) { multiply_tf32<2>(c, a, {b0, b1}); }
