// Of the logits of the step sizes, steps W^T in both directions: the gradient of both factors from one reading of that of the logits.
//
// Compile-time: IO 0, CHANNELS, RANK. A block takes TOKENS tokens at a time, every so many, of one direction, and leaves its part of dW.
// Phase one multiplies by W: a warp has 16 tokens and a part of the channels. Phase two multiplies by the steps: a warp has all tokens and
// an eighth of the channels.

#define TOKENS 32
#define TILES_OF_TOKENS (TOKENS / 16)
#define PARTS (8 / TILES_OF_TOKENS)  // of the channels in phase one
#define SHARE (CHANNELS / PARTS)     // the channels of such a part
#define OWN (CHANNELS / 8)           // the channels of a warp in phase two
#define TILE_PITCH (CHANNELS + 8)    // of rows in shared memory, in numbers: eight of them then lie in different banks
#define STEP_PITCH (RANK + 8)
static_assert(CHANNELS % 128 == 0 && RANK % 8 == 0, "products take 16 channels of each warp and 8 numbers of a step");

struct StepArgs {
    const io_t *dlogits[2], *steps[2], *weight[2];  // of each direction: (tokens, CHANNELS), rows of RANK numbers, and W (CHANNELS, RANK)
    io_t *dsteps[2];                                // rows of RANK numbers
    float *dweight;                                 // (blocks, directions, RANK, CHANNELS): parts of dW
    i64 tokens, steps_pitch, dsteps_pitch;
};

struct StepShared {
    io_t dlogits[2][TOKENS * TILE_PITCH], steps[2][TOKENS * STEP_PITCH];
    float sum[PARTS][TOKENS * RANK];
};
static_assert(sizeof(StepShared) == SHARED_BYTES, "products.py counts the bytes of StepShared otherwise");

INLINE void stage_tile(const StepArgs &p, StepShared &s, int buffer, i64 first) {
    const int way = blockIdx.y, rows = (int)min(p.tokens - first, (i64)TOKENS), quads = CHANNELS / 8, quad = threadIdx.x;
    const io_t *from = p.dlogits[way] + first * CHANNELS;
#pragma unroll
    for (int k = 0; k < TOKENS * quads; k += 256) {
        bool valid = quad + k < rows * quads;
        copy_async(s.dlogits[buffer] + (quad + k + (quad + k) / quads) * 8, valid ? from + (quad + k) * 8 : from, valid);
    }
    for (int i = threadIdx.x; i < TOKENS * RANK / 8; i += 256) {
        int row = i / (RANK / 8), column = i % (RANK / 8) * 8;
        bool valid = row < rows;
        copy_async(s.steps[buffer] + row * STEP_PITCH + column, p.steps[way] + (first + (valid ? row : 0)) * p.steps_pitch + column, valid);
    }
}

// This warp's part of W, as the products of phase one take it.
INLINE void load_weight(u32 (&b)[SHARE / 16][RANK / 8][2], const io_t *weight, int lane) {
#pragma unroll
    for (int k = 0; k < SHARE / 16; ++k) {
#pragma unroll
        for (int j = 0; j < RANK / 8; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const io_t *at = weight + (k * 16 + half * 8 + lane % 4 * 2) * RANK + j * 8 + lane / 4;
                b[k][j][half] = at[0] | (u32)at[RANK] << 16;
            }
        }
    }
}

// Of 16 tokens, a part of the channels' sum of the gradients of the steps.
INLINE void multiply_by_weight(float *sum, const io_t *dlogits, const u32 (&b)[SHARE / 16][RANK / 8][2], int lane) {
    float d[RANK / 8][4] = {};
    dlogits += lane / 4 * TILE_PITCH + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < SHARE / 16; ++k) {
        u32 a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = *(const u32 *)(dlogits + i % 2 * 8 * TILE_PITCH + k * 16 + i / 2 * 8);
#pragma unroll
        for (int j = 0; j < RANK / 8; ++j) multiply_bf16(d[j], a, b[k][j][0], b[k][j][1]);
    }
    sum += lane / 4 * RANK + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < RANK / 8; ++j) {
        *(float2 *)(sum + j * 8) = make_float2(d[j][0], d[j][1]);
        *(float2 *)(sum + 8 * RANK + j * 8) = make_float2(d[j][2], d[j][3]);
    }
}

// Adds to dW of this warp's channels what the staged tokens give.
INLINE void multiply_by_steps(float (&dW)[OWN / 16][RANK / 8][4], const io_t *dlogits, const io_t *steps, int lane) {
    const int matrix = lane / 8, row = lane % 8;
#pragma unroll
    for (int k = 0; k < TOKENS; k += 16) {
        u32 b[(RANK + 8) / 16][4];
#pragma unroll
        for (int j = 0; j < (RANK + 8) / 16; ++j)
            load_matrices_transposed(b[j], steps + (k + matrix % 2 * 8 + row) * STEP_PITCH + min(j * 16 + matrix / 2 * 8, RANK - 8));
#pragma unroll
        for (int i = 0; i < OWN / 16; ++i) {
            u32 a[4];
            load_matrices_transposed(a, dlogits + (k + matrix / 2 * 8 + row) * TILE_PITCH + i * 16 + matrix % 2 * 8);
#pragma unroll
            for (int j = 0; j < RANK / 8; ++j) multiply_bf16(dW[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) step_gradients(const __grid_constant__ StepArgs p) {
    extern __shared__ __align__(16) char shared[];
    StepShared &s = *(StepShared *)shared;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, way = blockIdx.y, part = warp / TILES_OF_TOKENS;
    const int first_token = warp % TILES_OF_TOKENS * 16, own = warp * OWN;
    const i64 step = (i64)gridDim.x * TOKENS;
    i64 first = (i64)blockIdx.x * TOKENS;
    u32 weight[SHARE / 16][RANK / 8][2];
    float dW[OWN / 16][RANK / 8][4] = {};
    stage_tile(p, s, 0, first);
    load_weight(weight, p.weight[way] + part * SHARE * RANK, lane);
    for (int buffer = 0; first < p.tokens; first += step, buffer ^= 1) {
        copy_wait();
        __syncthreads();
        if (first + step < p.tokens) stage_tile(p, s, buffer ^ 1, first + step);
        multiply_by_weight(s.sum[part] + first_token * RANK, s.dlogits[buffer] + first_token * TILE_PITCH + part * SHARE, weight, lane);
        multiply_by_steps(dW, s.dlogits[buffer] + own, s.steps[buffer], lane);
        __syncthreads();
        for (int i = threadIdx.x * 2; i < TOKENS * RANK; i += 512) {
            float low = 0.f, high = 0.f;
#pragma unroll
            for (int k = 0; k < PARTS; ++k) {
                float2 sum = *(const float2 *)(s.sum[k] + i);
                low += sum.x;
                high += sum.y;
            }
            if (first + i / RANK < p.tokens) *(u32 *)(p.dsteps[way] + (first + i / RANK) * p.dsteps_pitch + i % RANK) = floats_to_bf16x2(low, high);
        }
    }
    float *dweight = p.dweight + ((i64)blockIdx.x * gridDim.y + way) * RANK * CHANNELS + own + lane / 4;
#pragma unroll
    for (int i = 0; i < OWN / 16; ++i) {
#pragma unroll
        for (int j = 0; j < RANK / 8; ++j) {
#pragma unroll
            for (int k = 0; k < 4; ++k) dweight[(j * 8 + lane % 4 * 2 + k % 2) * CHANNELS + i * 16 + k / 2 * 8] = dW[i][j][k];
        }
    }
}
