// What both passes of the selective scan share.
//
// Compile-time: IO as in io.cu, STATE states per channel, LANES channels of a block, CHUNK steps staged at a time,
// MERGE chunks between two saved states, SOFTPLUS 1 where it is applied to the step size, STEPS_READY 1 where that is done and delta
// holds what pack_step made of the step size (the gradient is still the logit's), VECTOR 1 where every row of u, delta and z is made
// of aligned 16-byte pieces, WORDS 1 where every row of B and C is made of aligned words.
//
// One thread owns one channel of one sequence and direction, with all its states in registers. Chunks are aligned in time, also
// for the direction that runs backward; row j of a staged chunk is its j-th step in the order of the scan. A step past the end has
// step size 0, which leaves the state as it is.

// With bf16 operands and 16 states, saved states are bf16 and the sums over channels run on the tensor cores.
#define MATRIX_UNITS (STATE == 16 && IO == 0)
static_assert(!STEPS_READY || (SOFTPLUS && IO == 0), "step_sizes.cu makes no others");
#define SEGMENT (CHUNK * MERGE)
#define HALF_STATE (STATE / 2)

#if MATRIX_UNITS
typedef u16 saved_t;
#else
typedef float saved_t;
#endif

struct Direction {
    const io_t *u, *delta, *B, *C;
    const float *A, *D, *bias;
    i64 u_batch, u_time, delta_batch, delta_time, B_batch, B_time, C_batch, C_time;
};

// What a forward pass is given; scan_spread.cu takes whole time, so no initial, reverse, split, and no last.
struct ForwardArgs {
    Direction direction[2];
    const io_t *z;     // gate (batch, length, channels) or null
    i64 z_batch, z_time;
    io_t *out;         // (batch, length, channels)
    io_t *ungated;     // the same before the gate, with KEEP and GATE
    saved_t *states;   // (directions, batch, segments, channels, STATE): the state entering each segment; with KEEP
    const float *initial;  // (directions, splits, batch, channels, STATE): the state entering each split; or null for 0
    float *last;       // (batch, channels, STATE): the state after the last step, of one direction only; or null
    int batch, length, channels, reverse;
    int split;  // segments of a block along the grid's last axis
};

struct Gradients {
    io_t *u, *delta;  // (batch, length, channels)
};

struct BackwardArgs {
    Direction direction[2];
    Gradients gradient[2];
    const io_t *dy;         // (batch, length, channels)
    const saved_t *states;  // as in ForwardArgs
    const float *carry;     // (directions, splits, batch, channels, STATE): gradient of the state leaving each split; or null for 0
    float *projections;     // (channel blocks, directions, batch, length, 2, STATE): parts of dB and dC
    float *parameters;      // (splits, batch, directions, STATE + 2, channels): parts of dA, dD and d(bias)
    saved_t *earlier;       // (blocks, (MERGE - 1) CHUNK, LANES STATE): the states before the last chunk of a block's segment
    int batch, length, channels, directions, reverse;
    int split;  // segments of a block; the grid's last axis is (splits, directions)
};

// The size of a step from what is staged; 0 for a step that does not count.
INLINE float step_size(io_t delta, float bias, bool counts) {
#if STEPS_READY
    return unpack_step(delta);  // what is staged for a step that does not count is 0
#else
    float dt = widen(delta) + bias;
#if SOFTPLUS
    dt = softplus(dt);
#endif
    return counts ? dt : 0.f;
#endif
}

// Consecutive steps of the scan: row j is at time start + j * sign.
struct Steps {
    int start, sign;
};

INLINE Steps steps_of(int first_time, int rows, bool backward) {
    return backward ? Steps{first_time + rows - 1, -1} : Steps{first_time, 1};
}

struct Place {
    int batch, first_channel, lane, length, channels;
};

// ROWS steps of LANES channels into tile[ROWS][LANES]; zeros outside the tensor.
template <int ROWS>
INLINE void stage(io_t *tile, const io_t *source, i64 batch_stride, i64 time_stride, Steps steps, const Place &at) {
    source += at.batch * batch_stride + at.first_channel;
#if VECTOR
    const int width = 16 / sizeof(io_t), pieces = LANES / width, rows = LANES / pieces;
    int column = at.lane % pieces * width, time = steps.start + at.lane / pieces * steps.sign;
    bool valid = at.first_channel + column < at.channels;
    const io_t *from = source + time * time_stride + column;
    tile += at.lane * width;
#pragma unroll
    for (int i = 0; i < (ROWS + rows - 1) / rows; ++i) {
        if (ROWS % rows && i * rows + at.lane / pieces >= ROWS) break;
        bool reads = valid && time < at.length;
        copy_async(tile + i * rows * LANES, reads ? from : source, reads);
        time += rows * steps.sign;
        from += rows * steps.sign * time_stride;
    }
#else
    for (int row = 0; row < ROWS; ++row) {
        int time = steps.start + row * steps.sign;
        bool valid = time < at.length && at.first_channel + at.lane < at.channels;
        tile[row * LANES + at.lane] = valid ? source[time * time_stride + at.lane] : narrow(0.f);
    }
#endif
}

// B and C of ROWS steps, raw[ROWS][2][STATE]; zeros past the end. A thread copies what it will widen itself, so that it need not
// wait for the others in between.
template <int ROWS>
INLINE void stage_projections(io_t *raw, const Direction &d, Steps steps, const Place &at) {
    const u32 piece = WORDS ? 4 / sizeof(io_t) : 1, row_pieces = 2 * STATE / piece, count = ROWS * row_pieces;
#pragma unroll
    for (u32 k = 0; k < (count + LANES - 1) / LANES; ++k) {
        u32 i = at.lane + k * LANES, n = i % row_pieces * piece;
        if (count % LANES && i >= count) break;
        int time = steps.start + (int)(i / row_pieces) * steps.sign;
        bool valid = time < at.length;
        const io_t *from = n < STATE ? d.B + at.batch * d.B_batch + n : d.C + at.batch * d.C_batch + n - STATE;
        from += (valid ? time : 0) * (n < STATE ? d.B_time : d.C_time);
        if (WORDS) copy_async_word(raw + i * piece, from, valid);
        else raw[i] = valid ? *from : narrow(0.f);
    }
}

template <int ROWS>
INLINE void widen_projections(float *table, const io_t *raw, int lane) {
    const u32 piece = WORDS ? 4 / sizeof(io_t) : 1, count = ROWS * 2 * STATE / piece;
#pragma unroll
    for (u32 k = 0; k < (count + LANES - 1) / LANES; ++k) {
        u32 i = lane + k * LANES;
        if (count % LANES && i >= count) break;
#pragma unroll
        for (u32 j = 0; j < piece; ++j) table[i * piece + j] = widen(raw[i * piece + j]);
    }
}

INLINE void load_decay_rates(float (&A2)[STATE], const float *A, int channel, bool valid) {
#pragma unroll
    for (int n = 0; n < STATE; ++n) A2[n] = valid ? A[(i64)channel * STATE + n] * LOG2E : 0.f;
}

// A state at rest. In bf16 it is two 16-byte halves, ``gap`` elements apart; ``swap`` exchanges them, which keeps neighbouring lanes of
// shared memory in different banks.
struct SavedState {
#if MATRIX_UNITS
    uint4 half[2];
#else
    float h[STATE];
#endif
};

INLINE SavedState pack_state(const float (&h)[STATE]) {
    SavedState state;
#if MATRIX_UNITS
#pragma unroll
    for (int i = 0; i < 2; ++i)
        state.half[i] = make_uint4(floats_to_bf16x2(h[8 * i], h[8 * i + 1]), floats_to_bf16x2(h[8 * i + 2], h[8 * i + 3]),
                                   floats_to_bf16x2(h[8 * i + 4], h[8 * i + 5]), floats_to_bf16x2(h[8 * i + 6], h[8 * i + 7]));
#else
#pragma unroll
    for (int n = 0; n < STATE; ++n) state.h[n] = h[n];
#endif
    return state;
}

INLINE void store_state(saved_t *to, const SavedState &state, int swap, int gap) {
#if MATRIX_UNITS
    *(uint4 *)(to + swap * gap) = state.half[0];
    *(uint4 *)(to + (swap ^ 1) * gap) = state.half[1];
#else
#pragma unroll
    for (int n = 0; n < STATE; ++n) to[n] = state.h[n];
#endif
}

INLINE SavedState fetch_state(const saved_t *from, int swap, int gap) {
    SavedState state;
#if MATRIX_UNITS
    state.half[0] = *(const uint4 *)(from + swap * gap);
    state.half[1] = *(const uint4 *)(from + (swap ^ 1) * gap);
#else
#pragma unroll
    for (int n = 0; n < STATE; ++n) state.h[n] = from[n];
#endif
    return state;
}

INLINE void unpack_state(float (&h)[STATE], const SavedState &state) {
#if MATRIX_UNITS
    uint4 a = state.half[0], b = state.half[1];
    u32 words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int n = 0; n < STATE; n += 2) {
        h[n] = __uint_as_float(words[n / 2] << 16);
        h[n + 1] = __uint_as_float(words[n / 2] & 0xffff0000u);
    }
#else
#pragma unroll
    for (int n = 0; n < STATE; ++n) h[n] = state.h[n];
#endif
}

// The decays of TOGETHER states from n on.
template <int TOGETHER>
INLINE void decays(float (&decay)[TOGETHER], const float (&A2)[STATE], float dt, int n = 0) {
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) decay[i] = exp2_fast(dt * A2[n + i]);
}

// One step of the recurrence, h = decay h + dtu B, with the decays of TOGETHER states before what they multiply.
template <int TOGETHER>
INLINE void advance(float (&h)[STATE], const float (&A2)[STATE], float dt, float dtu, const float *B) {
#pragma unroll
    for (int n = 0; n < STATE; n += TOGETHER) {
        float decay[TOGETHER];
        decays(decay, A2, dt, n);
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) h[n + i] = decay[i] * h[n + i] + dtu * B[n + i];
    }
}
