// Selective scan, backward, by the chain rule on scan_forward.cu:
//
//     g_t = C_t dy_t + a_{t+1} g_{t+1}      dC_t = sum_channels dy_t h_t      dB_t = sum_channels dt_t u_t g_t
//     p_t = g_t a_t h_{t-1}                 du_t = dt_t <g_t, B_t> + D dy_t   d(dt)_t = u_t <g_t, B_t> + <A, p_t>
//     dA = sum_t dt_t p_t                   with a_t = exp(dt_t A)
//
// A block takes LANES channels of one sequence and direction, and walks back over the segments. Each chunk's states are replayed
// from the state that the forward pass saved before the segment. Sums over channels cover the block; sums over blocks and
// sequences are left to the caller, so that every run gives the same bits.

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
    int batch, length, channels, directions, reverse;
    int split;  // segments of a block; the grid's last axis is (splits, directions)
};

#if MATRIX_UNITS
#define SLOT STATE
#else
#define SLOT (STATE + 1)  // an odd stride spreads a warp over the banks
#endif

// In BackwardShared::tile, from a u to what stands for the delta of the same step, and to its dy.
#define FACTORS (SEGMENT * LANES)
#define DY (2 * SEGMENT * LANES)

// One operand of a block's sequence: its first row, and from one row to the next. Kept in shared memory, since registers are short.
struct alignas(16) Source {
    const io_t *start;
    int pitch;
};

// On the tensor cores, the deltas give way to the factors dt u of the sums for dB, and these and the dy, which are the factors for dC,
// to each warp's part of the sums.
struct BackwardShared {
    io_t tile[2][3][SEGMENT * LANES];  // u, delta, dy
    io_t raw[SEGMENT * 2 * STATE];
    float projections[2][SEGMENT * 2 * STATE];
    Source source[5];  // of this sequence and direction: u, delta, dy, B, C
    i64 first_sum;     // where in the parts of dB and dC those of this block begin
    float step[SEGMENT * LANES];
#if !MATRIX_UNITS
    float dtu[CHUNK * LANES];
#endif
    __align__(16) saved_t slot[(CHUNK + 1) * LANES * SLOT];  // slot j: the state before step j, then g of step j - 1
};
static_assert(sizeof(BackwardShared) == SHARED_BYTES, "layout.py counts the bytes of BackwardShared otherwise");

INLINE saved_t *slot_of(BackwardShared &s, int j, int lane) { return s.slot + (j * LANES + lane) * SLOT; }

#if MATRIX_UNITS
// Where the factor of this lane lies in a row: the eight that a lane gives to a product lie together, unlike those in lane order.
INLINE int factor_place(int lane) { return (lane & ~31) + (lane >> 1 & 3) * 8 + (lane >> 3 & 3) * 2 + (lane & 1); }

// The row of slot j that this lane names to a matrix load.
INLINE const saved_t *matrix_rows(BackwardShared &s, int j, int lane) {
    int in_warp = lane % 32, row = lane - in_warp + (in_warp >> 4) * 8 + in_warp % 8;
    return slot_of(s, j, row) + ((in_warp >> 3 & 1) ^ (row >> 2 & 1)) * 8;
}

// Of two steps, sum_c factor[c] slot[c][n] over the warp's 32 channels; rows and factors are those of the first, PLACED those that lie
// as factor_place says. Lane l gets step l >> 1 & 1, n = l / 4 + 8 (l & 1). All eight columns of the product are the same.
template <bool PLACED>
INLINE float pair_sums(const saved_t *rows, const io_t *factors, int lane) {
    float sum[2][4] = {};
    factors += (lane & ~31) + lane % 4 * (PLACED ? 8 : 2);
#pragma unroll
    for (int i = 0; i < 2; ++i, rows += LANES * SLOT, factors += LANES) {
        u32 a[2][4];
        uint4 b;
        load_matrices_transposed(a[0], rows);
        load_matrices_transposed(a[1], rows + 16 * SLOT);
        if (PLACED) b = *(const uint4 *)factors;
        else b = make_uint4(*(const u32 *)factors, *(const u32 *)(factors + 8), *(const u32 *)(factors + 16), *(const u32 *)(factors + 24));
        multiply_bf16(sum[i], a[0], b.x, b.y);
        multiply_bf16(sum[i], a[1], b.z, b.w);
    }
    float low = lane & 2 ? sum[1][0] : sum[0][0], high = lane & 2 ? sum[1][2] : sum[0][2];
    return lane & 1 ? high : low;
}

// Puts the sums of two steps where their factors were.
INLINE void put_sums(io_t *factors, float sum, int lane) {
    ((float *)(factors + (lane >> 1 & 1) * LANES + (lane & ~31)))[(lane >> 2 & 7) + (lane & 1) * 8] = sum;
}

// The warps' parts of a segment's sums, added and written, four numbers a lane.
INLINE void write_sums(const BackwardShared &s, float *result, int buffer, Steps steps, int length, int lane) {
    const int quads = STATE / 4, row_quads = 2 * quads;
#pragma unroll
    for (int k = 0; k < SEGMENT * row_quads / LANES; ++k) {
        int i = k * LANES + lane, j = i / row_quads, quad = i % row_quads, time = steps.start + j * steps.sign;
        const float4 *parts = (const float4 *)(s.tile[buffer][1 + quad / quads] + j * LANES) + quad % quads;
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
    const io_t *dy = s.tile[buffer][2] + first_row * LANES;
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

struct Walk {
    float A2[STATE], carry[STATE], dA[STATE];
    float D, bias, dD, dbias;
};

// Step sizes of a segment, and on the tensor cores the factors of its sums for dB. A chunk is read before any of it is written: its
// steps then hide each other's latency, and no lane loses a delta to another's factor.
INLINE void step_sizes(BackwardShared &s, float bias, int buffer, Steps steps, int limit, int lane) {
#pragma unroll 1
    for (int first = 0; first < SEGMENT; first += CHUNK) {
        io_t *delta = s.tile[buffer][1] + first * LANES;
        float dt[CHUNK];
#if MATRIX_UNITS
        float u[CHUNK];
#endif
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) {
            dt[j] = widen(delta[j * LANES + lane]) + bias;
#if MATRIX_UNITS
            u[j] = widen(s.tile[buffer][0][(first + j) * LANES + lane]);
#endif
        }
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) {
#if SOFTPLUS
            dt[j] = softplus(dt[j]);
#endif
            if (steps.start + (first + j) * steps.sign >= limit) dt[j] = 0.f;
            s.step[(first + j) * LANES + lane] = dt[j];
        }
#if MATRIX_UNITS
        __syncwarp();
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) delta[j * LANES + factor_place(lane)] = narrow(dt[j] * u[j]);
#endif
    }
}

// One chunk of the replay, from row first of the segment on; SAVE keeps each state. A step's reads come before the write of the state
// that it starts from, since the compiler does not know that they are apart.
template <bool SAVE>
INLINE void replay_chunk(BackwardShared &s, const Walk &w, float (&h)[STATE], int buffer, int first, int lane) {
    const io_t *u = s.tile[buffer][0] + first * LANES + lane;
    const float *B = s.projections[buffer] + first * 2 * STATE, *step = s.step + first * LANES + lane;
    float dt[CHUNK], dtu[CHUNK];
#pragma unroll
    for (int j = 0; j < CHUNK; ++j) {
        dt[j] = step[j * LANES];
        dtu[j] = dt[j] * widen(u[j * LANES]);
#if !MATRIX_UNITS
        if (SAVE) s.dtu[j * LANES + lane] = dtu[j];
#endif
    }
#pragma unroll
    for (int j = 0; j < CHUNK; ++j) {
        float B_now[STATE];
#pragma unroll
        for (int n = 0; n < STATE; n += 4) *(float4 *)(B_now + n) = *(const float4 *)(B + j * 2 * STATE + n);
        if (SAVE) store_state(slot_of(s, j, lane), h, lane >> 2 & 1);
        advance(h, w.A2, dt[j], dtu[j], B_now);
    }
    if (SAVE) store_state(slot_of(s, CHUNK, lane), h, lane >> 2 & 1);
}

struct Operands {
    SavedState h;
    float dt, u, dy;
};

// Back over one step.
INLINE void walk_step(Walk &w, float (&g)[STATE], const Operands &o, const float *B, bool counts, io_t *du, io_t *ddelta) {
    const float *C = B + STATE;
    float h[STATE], gB = 0.f, Ap = 0.f, gB2 = 0.f, Ap2 = 0.f;
    unpack_state(h, o.h);
#pragma unroll
    for (int n = 0; n < STATE; n += 4) {
        float4 b = *(const float4 *)(B + n), c = *(const float4 *)(C + n);
        float bs[4] = {b.x, b.y, b.z, b.w}, cs[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            g[n + k] = cs[k] * o.dy + w.carry[n + k];
            w.carry[n + k] = exp2_fast(o.dt * w.A2[n + k]) * g[n + k];
            float grad = w.carry[n + k] * h[n + k];
            w.dA[n + k] += o.dt * grad;
            (k % 2 ? gB : gB2) += g[n + k] * bs[k];
            (k % 2 ? Ap : Ap2) += w.A2[n + k] * grad;
        }
    }
    gB += gB2;
    float slope = o.u * gB + (Ap + Ap2) * LN2;
#if SOFTPLUS
    slope *= softplus_slope(o.dt);
#endif
    w.dD += o.dy * o.u;
    w.dbias += SOFTPLUS || counts ? slope : 0.f;  // past the end the slope of softplus is 0
    store_if(counts, du, narrow(o.dt * gB + w.D * o.dy));
    store_if(counts, ddelta, narrow(slope));
}

// Back over one chunk, two steps at a time; first is the element of the outputs at time 0. Unrolled further, the kernel outgrows the
// instruction cache.
INLINE void walk_chunk(const BackwardArgs &p, BackwardShared &s, Walk &w, const Gradients &out, i64 first, int buffer, int first_row,
                       Steps steps, int limit, int lane) {
    const int last = CHUNK - 2, swap = lane >> 2 & 1;
    io_t *tile = s.tile[buffer][0] + (first_row + last) * LANES;
    const float *B = s.projections[buffer] + (first_row + last) * 2 * STATE, *step = s.step + (first_row + last) * LANES + lane;
    saved_t *slot = slot_of(s, last, lane);
    int time = steps.start + (CHUNK - 1) * steps.sign;
    i64 at = first + (i64)time * p.channels, stride = (i64)steps.sign * p.channels;
    io_t *du = out.u + at, *ddelta = out.delta + at;
#if MATRIX_UNITS
    const saved_t *rows = matrix_rows(s, CHUNK - 1, lane), *rows_before = rows;
    io_t *factors_before = tile + FACTORS;
#endif
    Operands operands[2];  // dt and dy, which the arithmetic starts from, are read a pair ahead
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        operands[i].dt = step[i * LANES];
        operands[i].dy = widen(tile[DY + i * LANES + lane]);
    }
#pragma unroll 1
    for (int pair = last; pair >= 0; pair -= 2) {
        float g[2][STATE];
#if MATRIX_UNITS
        __syncwarp();
#endif
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const io_t *u = tile + i * LANES + lane;
            operands[i].h = fetch_state(slot + i * LANES * SLOT, swap);
            operands[i].u = widen(*u);
        }
        walk_step(w, g[1], operands[1], B + 2 * STATE, time < limit, du, ddelta);
#if MATRIX_UNITS
        // The sums for dB are those of the pair before, so that nothing waits for its g; the first time they are not kept.
        float sum_C = pair_sums<false>(rows, tile + DY, lane), sum_B = pair_sums<true>(rows_before, factors_before, lane);
#endif
        walk_step(w, g[0], operands[0], B, time - steps.sign < limit, du - stride, ddelta - stride);
        const int back = pair ? 2 * LANES : 0;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            operands[i].dt = step[i * LANES - back];
            operands[i].dy = widen(tile[DY + i * LANES + lane - back]);
        }
#if MATRIX_UNITS
        __syncwarp();
#endif
#pragma unroll
        for (int i = 1; i >= 0; --i) store_state(slot + (i + 1) * LANES * SLOT, g[i], swap);
#if MATRIX_UNITS
        put_sums(tile + DY, sum_C, lane);
        if (pair < last) put_sums(factors_before, sum_B, lane);
        rows_before = rows;
        factors_before = tile + FACTORS;
        rows -= 2 * LANES * SLOT;
#endif
        slot -= 2 * LANES * SLOT;
        tile -= 2 * LANES;
        B -= 4 * STATE;
        step -= 2 * LANES;
        time -= 2 * steps.sign;
        du -= 2 * stride;
        ddelta -= 2 * stride;
    }
#if MATRIX_UNITS
    __syncwarp();
    float sum_B = pair_sums<true>(rows_before, factors_before, lane);
    __syncwarp();
    put_sums(factors_before, sum_B, lane);
#endif
}

// The pitches fit: no row of a tensor that a GPU can hold is 2^31 elements from the next.
INLINE void find_sources(const BackwardArgs &p, const Direction &d, BackwardShared &s, int batch, i64 row) {
    s.first_sum = ((i64)blockIdx.x * p.directions * p.batch + row) * p.length * 2 * STATE;
    s.source[0] = {d.u + batch * d.u_batch, (int)d.u_time};
    s.source[1] = {d.delta + batch * d.delta_batch, (int)d.delta_time};
    s.source[2] = {p.dy + (i64)batch * p.length * p.channels, p.channels};
    s.source[3] = {d.B + batch * d.B_batch, (int)d.B_time};
    s.source[4] = {d.C + batch * d.C_batch, (int)d.C_time};
}

INLINE void stage_backward(BackwardShared &s, int buffer, Steps steps, const Place &at) {
    Source u = s.source[0], delta = s.source[1], dy = s.source[2], B = s.source[3], C = s.source[4];
    Direction d = {nullptr, nullptr, B.start, C.start, nullptr, nullptr, nullptr, 0, 0, 0, 0, 0, B.pitch, 0, C.pitch};
    stage<SEGMENT>(s.tile[buffer][0], u.start, 0, u.pitch, steps, at);
    stage<SEGMENT>(s.tile[buffer][1], delta.start, 0, delta.pitch, steps, at);
    stage_projections<SEGMENT>(s.raw, d, steps, at);
    stage<SEGMENT>(s.tile[buffer][2], dy.start, 0, dy.pitch, steps, at);
}

extern "C" __global__ void __launch_bounds__(LANES, BACKWARD_BLOCKS) scan_backward(const __grid_constant__ BackwardArgs p) {
    extern __shared__ __align__(16) char shared[];
    BackwardShared &s = *(BackwardShared *)shared;
    // There are one or two directions. Written as division, the loops below would not run on the uniform registers.
    int way = blockIdx.z & (p.directions - 1), part_of_time = blockIdx.z >> (p.directions - 1), lane = threadIdx.x;
    int splits = gridDim.z >> (p.directions - 1);
    Place place = {(int)blockIdx.y, (int)blockIdx.x * LANES, lane, p.length, p.channels};
    const Direction &d = p.direction[way];
    int channel = place.first_channel + lane;
    bool backward = way == 1 || p.reverse, inside = channel < p.channels;
    int limit = inside ? p.length : 0;  // a lane without a channel takes no steps and writes nothing
    i64 row = (i64)way * p.batch + place.batch, first = (i64)place.batch * p.length * p.channels + channel;

    const float *carry = p.carry + (((i64)way * splits + part_of_time) * p.batch + place.batch) * p.channels * STATE;
    Walk w;
    load_decay_rates(w.A2, d.A, channel, inside);
#pragma unroll
    for (int n = 0; n < STATE; ++n) {
        w.carry[n] = p.carry && inside ? carry[(i64)channel * STATE + n] : 0.f;
        w.dA[n] = 0.f;
    }
    w.D = inside ? d.D[channel] : 0.f;
    w.bias = inside ? d.bias[channel] : 0.f;
    w.dD = w.dbias = 0.f;

    int segments = (p.length + SEGMENT - 1) / SEGMENT, begin = part_of_time * p.split, end = min(begin + p.split, segments);
    int segment = backward ? begin : end - 1, step = backward ? 1 : -1, buffer = 0;
    if (lane == 0) find_sources(p, d, s, place.batch, row);
    __syncthreads();
    stage_backward(s, 0, steps_of(segment * SEGMENT, SEGMENT, backward), place);
    const saved_t *saved = p.states + ((row * segments + segment) * p.channels + (inside ? channel : 0)) * STATE;
    const i64 saved_step = (i64)step * p.channels * STATE;
    SavedState entering = fetch_state(saved, 0);
    for (int left = end - begin; left > 0; --left, segment += step, buffer ^= 1) {
        copy_wait();
        widen_projections<SEGMENT>(s.projections[buffer], s.raw, lane);
        __syncthreads();
        if (left > 1) stage_backward(s, buffer ^ 1, steps_of((segment + step) * SEGMENT, SEGMENT, backward), place);
        Steps steps = steps_of(segment * SEGMENT, SEGMENT, backward);
        step_sizes(s, w.bias, buffer, steps, limit, lane);
        for (int part = MERGE - 1; part >= 0; --part) {
            int first_row = part * CHUNK, first_time = segment * SEGMENT + (backward ? MERGE - 1 - part : part) * CHUNK;
            if (first_time >= p.length) continue;
            float h[STATE];
            unpack_state(h, entering);
            for (int before = 0; before < part; ++before) replay_chunk<false>(s, w, h, buffer, before * CHUNK, lane);
            Steps chunk = steps_of(first_time, CHUNK, backward);
            replay_chunk<true>(s, w, h, buffer, first_row, lane);
#if !MATRIX_UNITS
            block_sums<false>(s, buffer, first_row, p.projections + s.first_sum + STATE, chunk, p.length, lane);
#endif
            walk_chunk(p, s, w, p.gradient[way], first, buffer, first_row, chunk, limit, lane);
#if !MATRIX_UNITS
            block_sums<true>(s, buffer, first_row, p.projections + s.first_sum, chunk, p.length, lane);
#endif
            // Read early what the next part of this segment, or the next segment, starts from.
            if (part == 0 && left > 1) saved += saved_step;
            entering = fetch_state(saved, 0);
        }
#if MATRIX_UNITS
        __syncthreads();
        write_sums(s, p.projections, buffer, steps, p.length, lane);
#endif
    }
    if (!inside) return;
    float *parameters = p.parameters + (((i64)part_of_time * p.batch + place.batch) * p.directions + way) * (STATE + 2) * p.channels + channel;
#pragma unroll
    for (int n = 0; n < STATE; ++n) parameters[(i64)n * p.channels] = w.dA[n];
    parameters[(i64)STATE * p.channels] = w.dD;
    parameters[(i64)(STATE + 1) * p.channels] = w.dbias;
}
