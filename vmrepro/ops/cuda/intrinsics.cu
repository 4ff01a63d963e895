// The machine instructions the kernels use by name, sm_80 and later. A CPU emulation replaces this file and nothing else.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define INLINE __device__ __forceinline__

INLINE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

INLINE float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

INLINE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

INLINE float bf16_to_float(u16 x) { return __uint_as_float((u32)x << 16); }

INLINE u16 float_to_bf16(float x) {
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

INLINE u32 floats_to_bf16x2(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

INLINE float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }

INLINE float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

INLINE float half_to_float(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

INLINE u16 float_to_half(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// Sixteen bytes from global to shared memory in the background; zeros, without reading, where not valid.
INLINE void copy_async(void *shared, const void *global, bool valid) {
    u32 address = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(valid ? 16 : 0) : "memory");
}

// The same for four bytes.
INLINE void copy_async_word(void *shared, const void *global, bool valid) {
    u32 address = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(global), "r"(valid ? 4 : 0) : "memory");
}

// What a thread copied since it last said so is a group; wait for all groups but the last MOST.
INLINE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int MOST>
INLINE void copy_wait_but() { asm volatile("cp.async.wait_group %0;" ::"n"(MOST) : "memory"); }

INLINE void copy_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8 x 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8.
INLINE void load_matrices(u32 (&a)[4], const void *row) {
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(address)
                 : "memory");
}

// The same, each transposed.
INLINE void load_matrices_transposed(u32 (&a)[4], const void *row) {
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(address)
                 : "memory");
}

// c += a b, with a (16, 16) and b (16, 8) in bf16, spread over the warp.
INLINE void multiply_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same for a (16, 8) and b (8, 8).
INLINE void multiply_bf16(float (&c)[4], u32 a0, u32 a1, u32 b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b0));
}

// The same for a (16, 4) and b (4, 8) in tf32: of each number the upper 19 bits count.
INLINE void multiply_tf32(float (&c)[4], const float (&a)[2], float b0) {
    asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(b0)));
}

// The same for a (16, 8) and b (8, 8).
INLINE void multiply_tf32(float (&c)[4], const float (&a)[4], float b0, float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
                   "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// To nearest, where multiply_tf32 would cut.
INLINE float round_tf32(float x) {
    u32 y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return __uint_as_float(y);
}

// The given number of threads, a multiple of 32, that call it with the same id, which is not 0; wherever in the code each calls it.
INLINE void group_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// A barrier in two halves, in shared memory: threads arrive, as many a turn as it began with, and wait later. sm_90 and later.
struct __align__(8) TurnBarrier {
    u64 state;

    INLINE void begin(int count) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address()), "r"(count) : "memory"); }

    INLINE void arrive() { asm volatile("{.reg .b64 t; mbarrier.arrive.shared.b64 t, [%0];}" ::"r"(address()) : "memory"); }

    // Until all have arrived for the turn, of which only whether it is odd counts.
    INLINE void wait(int turn) {
        asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared.b64 p, [%0], %1; @!p bra again;}" ::"r"(address()),
                     "r"(turn & 1)
                     : "memory");
    }

    INLINE u32 address() { return (u32)__cvta_generic_to_shared(&state); }
};

INLINE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

// A store that costs no branch, so that the arithmetic before it is not moved behind one.
INLINE void store_if(bool condition, u16 *to, u16 value) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p st.global.u16 [%0], %1;}" ::"l"(to), "h"(value), "r"((u32)condition) : "memory");
}

INLINE void store_if(bool condition, float *to, float value) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p st.global.f32 [%0], %1;}" ::"l"(to), "f"(value), "r"((u32)condition) : "memory");
}

INLINE void store_if(bool condition, uint4 *to, uint4 value) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p st.global.v4.u32 [%0], {%1, %2, %3, %4};}" ::"l"(to), "r"(value.x), "r"(value.y),
                 "r"(value.z), "r"(value.w), "r"((u32)condition)
                 : "memory");
}

INLINE void store_if(bool condition, float4 *to, float4 value) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p st.global.v4.f32 [%0], {%1, %2, %3, %4};}" ::"l"(to), "f"(value.x), "f"(value.y),
                 "f"(value.z), "f"(value.w), "r"((u32)condition)
                 : "memory");
}
