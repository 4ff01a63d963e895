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
typedef u16 weight_t;
#define SLOT STATE
#else
typedef float weight_t;
#define SLOT (STATE + 1)  // an odd stride spreads a warp over the banks
#endif

struct BackwardShared {
    io_t u[2][SEGMENT * LANES], delta[2][SEGMENT * LANES], dy[2][SEGMENT * LANES];
    io_t raw[SEGMENT * 2 * STATE];
    float projections[2][SEGMENT * 2 * STATE];
    weight_t dtu[CHUNK * LANES], dyw[CHUNK * LANES];  // factors of the sums for dB and dC; on tensor cores, then the warps' parts
    float step[CHUNK * LANES];
    saved_t slot[(CHUNK + 1) * LANES * SLOT];  // slot j: the state before step j, then g of step j - 1
};

INLINE saved_t *slot_of(BackwardShared &s, int j, int lane) { return s.slot + (j * LANES + lane) * SLOT; }

INLINE weight_t to_weight(float x) {
#if MATRIX_UNITS
    return float_to_bf16(x);
#else
    return x;
#endif
}

#if MATRIX_UNITS
// For each step j of the chunk, sum_c weight[j][c] slot[j + 1][c][n] over the warp's 32 channels, as 16 floats that replace the
// warp's 32 weights. Only the first of the product's eight columns counts: the unit is idle otherwise.
INLINE void warp_sums(BackwardShared &s, weight_t *weight, int lane) {
    const int TOGETHER = 4;
    int in_warp = lane % 32, first = lane - in_warp;
    int row = first + (in_warp >> 4) * 8 + in_warp % 8, half = (in_warp >> 3 & 1) ^ (row >> 2 & 1);
    weight += first;
    float low[CHUNK], high[CHUNK];
    __syncwarp();
#pragma unroll
    for (int group = 0; group < CHUNK; group += TOGETHER) {
        u32 a[TOGETHER][2][4], b[TOGETHER][4];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            const weight_t *w = weight + (group + i) * LANES + in_warp % 4 * 2;
#pragma unroll
            for (int k = 0; k < 4; ++k) b[i][k] = *(const u32 *)(w + k * 8);
            load_matrices_transposed(a[i][0], slot_of(s, group + i + 1, row) + half * 8);
            load_matrices_transposed(a[i][1], slot_of(s, group + i + 1, row + 16) + half * 8);
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            float sum[4] = {0.f, 0.f, 0.f, 0.f};
            multiply_bf16(sum, a[i][0], b[i][0], b[i][1]);
            multiply_bf16(sum, a[i][1], b[i][2], b[i][3]);
            low[group + i] = sum[0];
            high[group + i] = sum[2];
        }
    }
    __syncwarp();
    if (in_warp % 4 == 0) {
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) {
            float *part = (float *)(weight + j * LANES) + in_warp / 4;
            part[0] = low[j];
            part[8] = high[j];
        }
    }
    __syncwarp();
}

// The warps' parts of a chunk's sums, added and written.
INLINE void write_sums(const BackwardShared &s, float *result, Steps steps, int length, int lane) {
    int n = lane % STATE, half = lane / STATE % 2;
#pragma unroll
    for (int j = lane / (2 * STATE); j < CHUNK; j += LANES / (2 * STATE)) {
        const float *parts = (const float *)((half ? s.dyw : s.dtu) + j * LANES) + n;
        int time = steps.start + j * steps.sign;
        float sum = 0.f;
#pragma unroll
        for (int warp = 0; warp < LANES / 32; ++warp) sum += parts[warp * STATE];
        if (time < length) result[((i64)time * 2 + half) * STATE + n] = sum;
    }
}
#else
// The same over the block's channels, straight to the result.
INLINE void block_sums(const BackwardShared &s, const weight_t *weight, float *result, Steps steps, int length, int lane) {
    __syncthreads();
    for (int i = lane; i < CHUNK * STATE; i += LANES) {
        int j = i / STATE, n = i % STATE, time = steps.start + j * steps.sign;
        float sum = 0.f;
        for (int c = 0; c < LANES; ++c) sum += weight[j * LANES + c] * s.slot[((j + 1) * LANES + c) * SLOT + n];
        if (time < length) result[(i64)time * 2 * STATE + n] = sum;
    }
    __syncthreads();
}
#endif

struct Walk {
    float A2[STATE], carry[STATE], dA[STATE];
    float D, bias, dD, dbias;
};

// One chunk of the replay, from row first of the segment on; SAVE keeps each state and what the walk back needs.
template <bool SAVE>
INLINE void replay_chunk(BackwardShared &s, const Walk &w, float (&h)[STATE], int buffer, int first, Steps steps, int limit, int lane) {
    int swap = lane >> 2 & 1, time = steps.start;
    const io_t *u = s.u[buffer] + first * LANES + lane, *delta = s.delta[buffer] + first * LANES + lane;
    const io_t *dy = s.dy[buffer] + first * LANES + lane;
    const float *B = s.projections[buffer] + first * 2 * STATE;
    float dt[CHUNK], dtu[CHUNK];
#pragma unroll
    for (int j = 0; j < CHUNK; ++j, time += steps.sign) {
        dt[j] = step_size(delta[j * LANES], w.bias, time < limit);
        dtu[j] = dt[j] * widen(u[j * LANES]);
        if (SAVE) {
            s.step[j * LANES + lane] = dt[j];
            s.dtu[j * LANES + lane] = to_weight(dtu[j]);
            s.dyw[j * LANES + lane] = to_weight(widen(dy[j * LANES]));
        }
    }
    if (SAVE) store_state(slot_of(s, 0, lane), h, swap);
#pragma unroll
    for (int j = 0; j < CHUNK; ++j) {
        advance(h, w.A2, dt[j], dtu[j], B + j * 2 * STATE);
        if (SAVE) store_state(slot_of(s, j + 1, lane), h, swap);
    }
}

// Back over one chunk; first is the element of the outputs at time 0.
INLINE void walk_chunk(const BackwardArgs &p, BackwardShared &s, Walk &w, const Gradients &out, i64 first, int buffer, int first_row,
                       Steps steps, int limit, int lane) {
    int swap = lane >> 2 & 1, time = steps.start + (CHUNK - 1) * steps.sign;
    const io_t *us = s.u[buffer] + first_row * LANES + lane, *dys = s.dy[buffer] + first_row * LANES + lane;
    const float *Bs = s.projections[buffer] + first_row * 2 * STATE, *Cs = Bs + STATE;
    i64 at = first + (i64)time * p.channels, stride = (i64)steps.sign * p.channels;
    // What the next step back needs is read a step ahead.
    SavedState next_h = fetch_state(slot_of(s, CHUNK - 1, lane), swap);
    float next_dt = s.step[(CHUNK - 1) * LANES + lane];
    io_t next_u = us[(CHUNK - 1) * LANES], next_dy = dys[(CHUNK - 1) * LANES];
#pragma unroll 2
    for (int j = CHUNK - 1; j >= 0; --j, time -= steps.sign, at -= stride) {
        float h[STATE], g[STATE], gB = 0.f, Ap = 0.f, gB2 = 0.f, Ap2 = 0.f;
        float dt = next_dt, u = widen(next_u), dy = widen(next_dy);
        unpack_state(h, next_h);
        int ahead = max(j - 1, 0);
        next_h = fetch_state(slot_of(s, ahead, lane), swap);
        next_dt = s.step[ahead * LANES + lane];
        next_u = us[ahead * LANES];
        next_dy = dys[ahead * LANES];
#pragma unroll
        for (int n = 0; n < STATE; n += 4) {
            float4 b = *(const float4 *)(Bs + j * 2 * STATE + n), c = *(const float4 *)(Cs + j * 2 * STATE + n);
            float bs[4] = {b.x, b.y, b.z, b.w}, cs[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                g[n + k] = cs[k] * dy + w.carry[n + k];
                w.carry[n + k] = exp2_fast(dt * w.A2[n + k]) * g[n + k];
                float grad = w.carry[n + k] * h[n + k];
                w.dA[n + k] += dt * grad;
                (k % 2 ? gB : gB2) += g[n + k] * bs[k];
                (k % 2 ? Ap : Ap2) += w.A2[n + k] * grad;
            }
        }
        gB += gB2;
        store_state(slot_of(s, j + 1, lane), g, swap);
        float ddelta = u * gB + (Ap + Ap2) * LN2;
#if SOFTPLUS
        ddelta *= softplus_slope(dt);
#endif
        w.dD += dy * u;
        w.dbias += time < limit ? ddelta : 0.f;
        store_if(time < limit, out.u + at, narrow(dt * gB + w.D * dy));
        store_if(time < limit, out.delta + at, narrow(ddelta));
    }
}

INLINE void stage_backward(const BackwardArgs &p, const Direction &d, BackwardShared &s, int buffer, Steps steps, const Place &at) {
    stage<SEGMENT>(s.u[buffer], d.u, d.u_batch, d.u_time, steps, at);
    stage<SEGMENT>(s.delta[buffer], d.delta, d.delta_batch, d.delta_time, steps, at);
    stage_projections<SEGMENT>(s.raw, d, steps, at);
    stage<SEGMENT>(s.dy[buffer], p.dy, (i64)p.length * p.channels, p.channels, steps, at);
}

extern "C" __global__ void __launch_bounds__(LANES, BACKWARD_BLOCKS) scan_backward(const __grid_constant__ BackwardArgs p) {
    extern __shared__ __align__(16) char shared[];
    BackwardShared &s = *(BackwardShared *)shared;
    int way = blockIdx.z % p.directions, part_of_time = blockIdx.z / p.directions, splits = gridDim.z / p.directions, lane = threadIdx.x;
    Place place = {(int)blockIdx.y, (int)blockIdx.x * LANES, lane, p.length, p.channels};
    const Direction &d = p.direction[way];
    int channel = place.first_channel + lane;
    bool backward = way == 1 || p.reverse, inside = channel < p.channels;
    int limit = inside ? p.length : 0;  // a lane without a channel takes no steps and writes nothing
    i64 row = (i64)way * p.batch + place.batch, first = (i64)place.batch * p.length * p.channels + channel;
    float *projections = p.projections + ((i64)blockIdx.x * p.directions * p.batch + row) * p.length * 2 * STATE;

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
    stage_backward(p, d, s, 0, steps_of(segment * SEGMENT, SEGMENT, backward), place);
    const saved_t *saved = p.states + ((row * segments + segment) * p.channels + (inside ? channel : 0)) * STATE;
    const i64 saved_step = (i64)step * p.channels * STATE;
    SavedState entering = fetch_state(saved, 0);
    for (int left = end - begin; left > 0; --left, segment += step, buffer ^= 1) {
        copy_wait();
        widen_projections<SEGMENT>(s.projections[buffer], s.raw, lane);
        __syncthreads();
        if (left > 1) stage_backward(p, d, s, buffer ^ 1, steps_of((segment + step) * SEGMENT, SEGMENT, backward), place);
        for (int part = MERGE - 1; part >= 0; --part) {
            int first_row = part * CHUNK, first_time = segment * SEGMENT + (backward ? MERGE - 1 - part : part) * CHUNK;
            if (first_time >= p.length) continue;
            float h[STATE];
            unpack_state(h, entering);
            for (int before = 0; before < part; ++before) {
                int time = segment * SEGMENT + (backward ? MERGE - 1 - before : before) * CHUNK;
                replay_chunk<false>(s, w, h, buffer, before * CHUNK, steps_of(time, CHUNK, backward), limit, lane);
            }
            Steps chunk = steps_of(first_time, CHUNK, backward);
            replay_chunk<true>(s, w, h, buffer, first_row, chunk, limit, lane);
#if MATRIX_UNITS
            warp_sums(s, s.dyw, lane);
            walk_chunk(p, s, w, p.gradient[way], first, buffer, first_row, chunk, limit, lane);
            warp_sums(s, s.dtu, lane);
            // Read early what the next part of this segment, or the next segment, starts from.
            if (part == 0 && left > 1) saved += saved_step;
            entering = fetch_state(saved, 0);
            __syncthreads();
            write_sums(s, projections, chunk, p.length, lane);
            __syncthreads();
#else
            block_sums(s, s.dyw, projections + STATE, chunk, p.length, lane);
            walk_chunk(p, s, w, p.gradient[way], first, buffer, first_row, chunk, limit, lane);
            block_sums(s, s.dtu, projections, chunk, p.length, lane);
            if (part == 0 && left > 1) saved += saved_step;
            entering = fetch_state(saved, 0);
#endif
        }
    }
    if (!inside) return;
    float *parameters = p.parameters + (((i64)part_of_time * p.batch + place.batch) * p.directions + way) * (STATE + 2) * p.channels + channel;
#pragma unroll
    for (int n = 0; n < STATE; ++n) parameters[(i64)n * p.channels] = w.dA[n];
    parameters[(i64)STATE * p.channels] = w.dD;
    parameters[(i64)(STATE + 1) * p.channels] = w.dbias;
}
