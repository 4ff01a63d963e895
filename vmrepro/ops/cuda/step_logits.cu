// The logits of the step sizes, steps W^T in both directions: little to read and to multiply, so made to write as fast as memory takes.
//
// Compile-time: IO 0, CHANNELS, RANK 8 or 16, BLOCKS on a multiprocessor. A block takes TOKENS tokens at a time, every so many, of one
// direction, all warps the same tokens, so that a block writes whole rows; a warp keeps W of its PIECE channels in registers.
//
// Products are W times the steps, so that a lane has channels of few tokens rather than tokens of few channels. Which row of a product
// is which channel is free: four products give a lane eight neighbours, and the warp's lanes write whole lines of 128 bytes. Which
// number of a step is which term is free too: a lane takes neighbours, so that a row of them is one access.

#define TOKENS 16
#define TILES (TOKENS / 8)  // a product takes eight tokens
#define PIECE 64
static_assert(CHANNELS % PIECE == 0 && (RANK == 8 || RANK == 16), "a warp has whole lines, a product up to 16 numbers of a step");

struct LogitArgs {
    const io_t *steps[2], *weight[2];  // of each direction: rows of RANK numbers, and W (CHANNELS, RANK)
    io_t *logits[2];                   // (tokens, CHANNELS)
    i64 tokens, pitch;                 // pitch: of the rows of steps, in numbers
};

// A lane's part of a row of RANK numbers, in pairs as products take them.
struct __align__(RANK / 2) Part { u32 pair[RANK / 8]; };

INLINE Part load_part(const io_t *row, int lane) { return *(const Part *)(row + lane % 4 * (RANK / 4)); }

// The second half of the terms of a product, which RANK 8 does not have: zeros.
INLINE u32 second(const Part &part) { return RANK == 16 ? part.pair[RANK / 8 - 1] : 0; }

INLINE void load_steps(Part (&steps)[TILES], const io_t *row, i64 pitch, int left, int lane) {
#pragma unroll
    for (int k = 0; k < TILES; ++k) steps[k] = k * 8 < left ? load_part(row + k * 8 * pitch, lane) : Part{};
}

// Rows r and r + 8 of product j are channels 8 r + 2 j and the next.
INLINE void load_weight(u32 (&a)[4][4], const io_t *weight, int lane) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const io_t *row = weight + (lane / 4 * 8 + j * 2) * RANK;
        Part even = load_part(row, lane), odd = load_part(row + RANK, lane);
        a[j][0] = even.pair[0];
        a[j][1] = odd.pair[0];
        a[j][2] = second(even);
        a[j][3] = second(odd);
    }
}

extern "C" __global__ void __launch_bounds__(CHANNELS / 2, BLOCKS) step_logits(const __grid_constant__ LogitArgs p) {
    const int lane = threadIdx.x % 32, piece = threadIdx.x / 32 * PIECE, row = lane / 4, token = lane % 4 * 2, step = gridDim.x * TOKENS;
    const i64 first = (i64)blockIdx.x * TOKENS;
    const io_t *from = p.steps[blockIdx.y] + (first + row) * p.pitch;
    io_t *to = p.logits[blockIdx.y] + (first + token) * CHANNELS + piece + row * 8;
    int left = (int)(p.tokens - first);  // fits: 2^31 rows would not fit into memory
    u32 weight[4][4];
    Part next[TILES];
    load_steps(next, from, p.pitch, left - row, lane);
    load_weight(weight, p.weight[blockIdx.y] + piece * RANK, lane);
    for (; left > 0; left -= step, to += (i64)step * CHANNELS) {
        Part steps[TILES];
#pragma unroll
        for (int k = 0; k < TILES; ++k) steps[k] = next[k];
        from += step * p.pitch;
        load_steps(next, from, p.pitch, left - step - row, lane);  // comes while these are multiplied
#pragma unroll
        for (int k = 0; k < TILES; ++k) {
            float d[4][4] = {};
#pragma unroll
            for (int j = 0; j < 4; ++j) multiply_bf16(d[j], weight[j], steps[k].pair[0], second(steps[k]));
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                u32 y[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) y[j] = floats_to_bf16x2(d[j][i], d[j][i + 2]);
                if (k * 8 + token + i < left) *(uint4 *)(to + (k * 8 + i) * CHANNELS) = make_uint4(y[0], y[1], y[2], y[3]);
            }
        }
    }
}
