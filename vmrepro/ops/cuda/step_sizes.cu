// The step sizes softplus(rows W^T + bias) of both directions, packed: little to read and to multiply, so made to write as fast as
// memory takes. Both scans and what cuts them in time then need no softplus, of which they would compute up to four.
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

struct StepSizeArgs {
    const io_t *rows[2], *weight[2];  // of each direction: rows of RANK numbers, and W (CHANNELS, RANK)
    const float *bias[2];             // (CHANNELS,)
    u16 *sizes[2];                    // (tokens, CHANNELS)
    i64 tokens, pitch;                // pitch: of the rows, in numbers
};

// A lane's part of a row of RANK numbers, in pairs as products take them.
struct __align__(RANK / 2) Part { u32 pair[RANK / 8]; };

INLINE Part load_part(const io_t *row, int lane) { return *(const Part *)(row + lane % 4 * (RANK / 4)); }

// The second half of the terms of a product, which RANK 8 does not have: zeros.
INLINE u32 second(const Part &part) { return RANK == 16 ? part.pair[RANK / 8 - 1] : 0; }

INLINE void load_rows(Part (&rows)[TILES], const io_t *row, i64 pitch, int left, int lane) {
#pragma unroll
    for (int k = 0; k < TILES; ++k) rows[k] = k * 8 < left ? load_part(row + k * 8 * pitch, lane) : Part{};
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

// softplus to a 2^-16th, closer than it will be packed: max(x, 0) + e P(e) with e = exp(-|x|), where P is the polynomial of degree 5
// whose largest relative distance from log(1 + e) / e on [0, 1], 8.4e-6, is smallest.
INLINE float softplus_to_pack(float x) {
    float e = exp2_fast(-fabsf(x) * LOG2E);
    float P = 0.9999916f + e * (-0.4993616f + e * (0.3252077f + e * (-0.21005055f + e * (0.10122364f - e * 0.023869466f))));
    return fmaxf(x, 0.f) + e * P;
}

extern "C" __global__ void __launch_bounds__(CHANNELS / 2, BLOCKS) step_sizes(const __grid_constant__ StepSizeArgs p) {
    const int lane = threadIdx.x % 32, piece = threadIdx.x / 32 * PIECE, row = lane / 4, token = lane % 4 * 2, step = gridDim.x * TOKENS;
    const i64 first = (i64)blockIdx.x * TOKENS;
    const io_t *from = p.rows[blockIdx.y] + (first + row) * p.pitch;
    u16 *to = p.sizes[blockIdx.y] + (first + token) * CHANNELS + piece + row * 8;
    int left = (int)(p.tokens - first);  // fits: 2^31 rows would not fit into memory
    u32 weight[4][4];
    float bias[8];
    Part next[TILES];
    load_rows(next, from, p.pitch, left - row, lane);
    load_weight(weight, p.weight[blockIdx.y] + piece * RANK, lane);
#pragma unroll
    for (int j = 0; j < 8; ++j) bias[j] = p.bias[blockIdx.y][piece + row * 8 + j];
    for (; left > 0; left -= step, to += (i64)step * CHANNELS) {
        Part rows[TILES];
#pragma unroll
        for (int k = 0; k < TILES; ++k) rows[k] = next[k];
        from += step * p.pitch;
        load_rows(next, from, p.pitch, left - step - row, lane);  // comes while these are multiplied
#pragma unroll
        for (int k = 0; k < TILES; ++k) {
            float d[4][4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                for (int i = 0; i < 4; ++i) d[j][i] = bias[2 * j + i / 2];
                multiply_bf16(d[j], weight[j], rows[k].pair[0], second(rows[k]));
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                u32 y[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) y[j] = pack_step(softplus_to_pack(d[j][i])) | pack_step(softplus_to_pack(d[j][i + 2])) << 16;
                if (k * 8 + token + i < left) *(uint4 *)(to + (k * 8 + i) * CHANNELS) = make_uint4(y[0], y[1], y[2], y[3]);
            }
        }
    }
}
