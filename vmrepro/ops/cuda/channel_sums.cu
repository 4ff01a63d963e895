// What a block of the backward pass of the scan has in shared memory, and its sums over channels, dB and dC.
//
// Follows scan_common.cu and comes before scan_backward.cu, which says what is computed. With MATRIX_UNITS each warp sums over its own
// channels on the tensor cores; else the block sums each chunk together.

#if MATRIX_UNITS
#define SLOT STATE
#else
#define SLOT (STATE + 1)  // an odd stride spreads a warp over the banks
#endif

// In BackwardShared::tile, from a u to the dy of the same step.
#define DY (SEGMENT * LANES)

// One operand of a block's sequence: its first row, and from one row to the next. Kept in shared memory, since registers are short.
struct alignas(16) Source {
    const io_t *start;
    int pitch;
};

// On the tensor cores, each warp's part of the sums takes the place of the dy (for dC) and of the deltas (for dB).
struct BackwardShared {
    io_t tile[2][3][SEGMENT * LANES];  // u, dy, delta
    io_t raw[SEGMENT * 2 * STATE];
    float projections[2][SEGMENT * 2 * STATE];
    Source source[5];  // of this sequence and direction: u, delta, dy, B, C
    i64 first_sum;     // where in the parts of dB and dC those of this block begin
#if !STEPS_READY
    float step[SEGMENT * LANES];
#endif
#if MATRIX_UNITS
    uint4 picks[2][8];
#else
    float dtu[CHUNK * LANES];
#endif
    __align__(16) saved_t slot[(CHUNK + 1) * LANES * SLOT];  // slot j: the state before step j; for block_sums then g of step j - 1
};
static_assert(sizeof(BackwardShared) == SHARED_BYTES, "layout.py counts the bytes of BackwardShared otherwise");

// The size of the step in a row of the segment.
INLINE float size_of(const BackwardShared &s, int buffer, int row, int lane) {
#if STEPS_READY
    return unpack_step(s.tile[buffer][2][row * LANES + lane]);
#else
    return s.step[row * LANES + lane];
#endif
}

INLINE saved_t *slot_of(BackwardShared &s, int j, int lane) { return s.slot + (j * LANES + lane) * SLOT; }

#if MATRIX_UNITS
// The row of slot j that this lane names to a matrix load.
INLINE const saved_t *matrix_rows(BackwardShared &s, int j, int lane) {
    int in_warp = lane % 32, row = lane - in_warp + (in_warp >> 4) * 8 + in_warp % 8;
    return slot_of(s, j, row) + ((in_warp >> 3 & 1) ^ (row >> 2 & 1)) * 8;
}

// Of two steps, sum_c factor[c] slot[c][n] over the warp's 32 channels; rows and factors are those of the first. Lane l gets step
// l >> 1 & 1, n = l / 4 + 8 (l & 1). All eight columns of the product are the same.
INLINE float sums_of_slots(const saved_t *rows, const io_t *factors, int lane) {
    float sum[2][4] = {};
    factors += (lane & ~31) + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i, rows += LANES * SLOT, factors += LANES) {
        u32 a[2][4];
        load_matrices_transposed(a[0], rows);
        load_matrices_transposed(a[1], rows + 16 * SLOT);
#pragma unroll
        for (int k = 0; k < 2; ++k) multiply_bf16(sum[i], a[k], *(const u32 *)(factors + k * 16), *(const u32 *)(factors + k * 16 + 8));
    }
    float low = lane & 2 ? sum[1][0] : sum[0][0], high = lane & 2 ? sum[1][2] : sum[0][2];
    return lane & 1 ? high : low;
}

// What the sums over numbers in registers multiply by: rows 0 to 3 of ``low`` and rows 4 to 7 of ``high`` pick one each of the four
// numbers that a lane gives to a product, the other rows nothing.
struct Picks {
    u32 low[4], high[4];
};

// Read from shared memory: the compiler would put most of it together again before every product if it knew what is in it.
INLINE Picks picks_of(const BackwardShared &s, int lane) {
    uint4 low = s.picks[0][lane % 32 / 4], high = s.picks[1][lane % 32 / 4];
    return {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
}

INLINE void make_picks(BackwardShared &s, int lane) {
    const u32 one[2] = {0x3f80, 0x3f800000};  // in the lower and in the upper half
    if (lane >= 16) return;
    int row = lane % 8 - lane / 8 * 4;
    s.picks[lane / 8][lane % 8] = make_uint4(row / 2 == 0 && row >= 0 ? one[row % 2] : 0, 0, row / 2 == 1 ? one[row % 2] : 0, 0);
}

// The sum of terms over the warp's channels, of which lane l gets n = l / 4 + 8 (l & 1). The first products add over the lanes of each
// l % 4, which become columns, the last one over these: terms that have been in shared memory would cost more of its time.
INLINE float sum_of_terms(const SavedState &terms, const Picks &picks, int lane) {
    float halves[2], sum[4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float columns[4] = {};
        multiply_bf16(columns, picks.low, terms.half[i].x, terms.half[i].y);
        multiply_bf16(columns, picks.high, terms.half[i].z, terms.half[i].w);
        halves[i] = columns[0] + columns[1];
    }
    multiply_tf32(sum, halves, 1.f);
    return lane & 1 ? sum[2] : sum[0];
}

// Puts the sums of two steps where their operands were, the first step's at ``row``.
INLINE void put_sums(io_t *row, float sum, int lane) {
    ((float *)(row + (lane >> 1 & 1) * LANES + (lane & ~31)))[(lane >> 2 & 7) + (lane & 1) * 8] = sum;
}

// The warps' parts of a segment's sums, added and written, four numbers a lane.
INLINE void write_sums(BackwardShared &s, float *result, int buffer, Steps steps, int length, int lane) {
    const int quads = STATE / 4, row_quads = 2 * quads;
#pragma unroll
    for (int k = 0; k < (SEGMENT * row_quads + LANES - 1) / LANES; ++k) {
        int i = k * LANES + lane, j = i / row_quads, quad = i % row_quads, time = steps.start + j * steps.sign;
        if (SEGMENT * row_quads % LANES && i >= SEGMENT * row_quads) break;
        const io_t *places = s.tile[buffer][quad < quads ? 2 : 1];
        const float4 *parts = (const float4 *)(places + j * LANES) + quad % quads;
        float4 sum = parts[0];
#pragma unroll
        for (int warp = 1; warp < LANES / 32; ++warp) {
            float4 part = parts[warp * quads];
            sum = make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
        }
        store_if(time < length, (float4 *)(result + s.first_sum) + (i64)time * row_quads + quad, sum);
    }
}
#else
// Over the block's channels, a chunk's sums for dB (GRAD_B) or dC, straight to the result; first_row is the chunk's.
template <bool GRAD_B>
INLINE void block_sums(const BackwardShared &s, int buffer, int first_row, float *result, Steps steps, int length, int lane) {
    const io_t *dy = s.tile[buffer][1] + first_row * LANES;
    __syncthreads();
    for (int i = lane; i < CHUNK * STATE; i += LANES) {
        int j = i / STATE, n = i % STATE, time = steps.start + j * steps.sign;
        float sum = 0.f;
        for (int c = j * LANES; c < (j + 1) * LANES; ++c) sum += (GRAD_B ? s.dtu[c] : widen(dy[c])) * s.slot[(c + LANES) * SLOT + n];
        if (time < length) result[(i64)time * 2 * STATE + n] = sum;
    }
    __syncthreads();
}
#endif
