// Selective scan, backward, by the chain rule on scan_forward.cu:
//
//     g_t = C_t dy_t + a_{t+1} g_{t+1}      dC_t = sum_channels dy_t h_t      dB_t = sum_channels dt_t u_t g_t
//     p_t = g_t a_t h_{t-1}                 du_t = dt_t <g_t, B_t> + D dy_t   d(dt)_t = u_t <g_t, B_t> + <A, p_t>
//     dA = sum_t dt_t p_t                   with a_t = exp(dt_t A)
//
// A block takes LANES channels of one sequence and direction, and walks back over the segments. A segment's states are replayed from
// the one that the forward pass saved before it: those of its last chunk into shared memory, where that chunk's walk finds them, those
// of earlier chunks into global memory, from where each chunk gets them when its turn comes. Sums over channels cover the block; sums
// over blocks and sequences are left to the caller, so that every run gives the same bits.

struct Walk {
    float A2[STATE], carry[STATE], dA[STATE];
    float D, bias, dD, dbias;
};

#if !STEPS_READY
// Step sizes of a segment. A chunk is read before any of it is written: its steps then hide each other's latency.
INLINE void segment_sizes(BackwardShared &s, float bias, int buffer, Steps steps, int limit, int lane) {
#pragma unroll 1
    for (int first = 0; first < SEGMENT; first += CHUNK) {
        const io_t *delta = s.tile[buffer][2] + first * LANES + lane;
        float dt[CHUNK];
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) dt[j] = widen(delta[j * LANES]) + bias;
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) {
#if SOFTPLUS
            dt[j] = softplus(dt[j]);
#endif
            if (steps.start + (first + j) * steps.sign >= limit) dt[j] = 0.f;
            s.step[(first + j) * LANES + lane] = dt[j];
        }
    }
    __syncwarp();  // the deltas are read: sums may take their place
}
#endif

// As ``advance``, in the order that suits the compiler here.
INLINE void replay_step(float (&h)[STATE], const float (&A2)[STATE], float dt, float dtu, const float *B) {
    float decay[STATE];
    decays(decay, A2, dt);
#pragma unroll
    for (int n = 0; n < STATE; n += 4) {
        float4 b = *(const float4 *)(B + n);
        h[n] = decay[n] * h[n] + dtu * b.x;
        h[n + 1] = decay[n + 1] * h[n + 1] + dtu * b.y;
        h[n + 2] = decay[n + 2] * h[n + 2] + dtu * b.z;
        h[n + 3] = decay[n + 3] * h[n + 3] + dtu * b.w;
    }
}

// One chunk of the replay, from row first of the segment on; each state goes to slots, one step's ``pitch`` from the next's. A step's
// reads come before the write of the state that it starts from, since the compiler does not know that they are apart.
INLINE void replay_chunk(BackwardShared &s, const Walk &w, float (&h)[STATE], int buffer, int first, saved_t *slots, int pitch, int swap,
                         int gap, int lane) {
    const io_t *u = s.tile[buffer][0] + first * LANES + lane;
    const float *B = s.projections[buffer] + first * 2 * STATE;
    float dt[CHUNK], dtu[CHUNK];
#pragma unroll
    for (int j = 0; j < CHUNK; ++j) {
        dt[j] = size_of(s, buffer, first + j, lane);
        dtu[j] = dt[j] * widen(u[j * LANES]);
    }
#pragma unroll
    for (int j = 0; j < CHUNK; ++j) {
        float B_now[STATE];
#pragma unroll
        for (int n = 0; n < STATE; n += 4) *(float4 *)(B_now + n) = *(const float4 *)(B + j * 2 * STATE + n);
        store_state(slots + j * pitch, pack_state(h), swap, gap);
        replay_step(h, w.A2, dt[j], dtu[j], B_now);
    }
}

// Where this lane's part of the first state of p.earlier lies, and how its halves do: in bf16, so that a warp writes whole lines.
INLINE saved_t *earlier_of(const BackwardArgs &p, int lane) {
    i64 block = ((i64)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    return p.earlier + block * (MERGE - 1) * CHUNK * LANES * STATE + lane * (MATRIX_UNITS ? HALF_STATE : STATE);
}

#define EARLIER_GAP (LANES * HALF_STATE)

// The states of a segment up to chunk ``top``, which go to the slots, and the one after that.
INLINE void replay_segment(BackwardShared &s, const Walk &w, const SavedState &entering, int buffer, int top, saved_t *earlier, int lane) {
    float h[STATE];
    unpack_state(h, entering);
    for (int part = 0; part < top; ++part)
        replay_chunk(s, w, h, buffer, part * CHUNK, earlier + part * CHUNK * LANES * STATE, LANES * STATE, 0, EARLIER_GAP, lane);
    replay_chunk(s, w, h, buffer, top * CHUNK, slot_of(s, 0, lane), LANES * SLOT, lane >> 2 & 1, HALF_STATE, lane);
    store_state(slot_of(s, CHUNK, lane), pack_state(h), lane >> 2 & 1, HALF_STATE);
}

// A chunk's states back into the slots.
INLINE void restore_chunk(BackwardShared &s, const saved_t *earlier, int lane) {
    const int swap = lane >> 2 & 1, together = MATRIX_UNITS ? CHUNK : 1;
    store_state(slot_of(s, CHUNK, lane), fetch_state(slot_of(s, 0, lane), swap, HALF_STATE), swap, HALF_STATE);
#pragma unroll 1
    for (int j = 0; j < CHUNK; j += together) {
        SavedState state[together];
#pragma unroll
        for (int i = 0; i < together; ++i) state[i] = fetch_state(earlier + (j + i) * LANES * STATE, 0, EARLIER_GAP);
#pragma unroll
        for (int i = 0; i < together; ++i) store_state(slot_of(s, j + i, lane), state[i], swap, HALF_STATE);
    }
}

struct Operands {
    SavedState h;
    float dt, u, slope;  // slope: of the step size by its logit
    io_t dy;
};

// Back over one step.
INLINE void walk_step(Walk &w, float (&g)[STATE], const Operands &o, const float *B, bool counts, io_t *du, io_t *ddelta) {
    const float *C = B + STATE;
    float dy = widen(o.dy), h[STATE], decay[STATE], gB = 0.f, Ap = 0.f;
    unpack_state(h, o.h);
    decays(decay, w.A2, o.dt);
#pragma unroll
    for (int n = STATE - 4; n >= 0; n -= 4) {
        float4 c = *(const float4 *)(C + n), b = *(const float4 *)(B + n);
        float bs[4] = {b.x, b.y, b.z, b.w}, cs[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            g[n + k] = cs[k] * dy + w.carry[n + k];
            w.carry[n + k] = decay[n + k] * g[n + k];
            float grad = w.carry[n + k] * h[n + k];
            w.dA[n + k] += o.dt * grad;
            gB += g[n + k] * bs[k];
            Ap += w.A2[n + k] * grad;
        }
    }
    float slope = (o.u * gB + Ap * LN2) * o.slope;
    w.dD += dy * o.u;
    w.dbias += SOFTPLUS || counts ? slope : 0.f;  // past the end the slope of softplus is 0
    store_if(counts, du, narrow(o.dt * gB + w.D * dy));
    store_if(counts, ddelta, narrow(slope));
}

#if MATRIX_UNITS
// What a step gives to dB, summed over the warp's channels.
INLINE float sum_of_step(float dtu, const float (&g)[STATE], const Picks &picks, int lane) {
    float terms[STATE];
#pragma unroll
    for (int n = 0; n < STATE; ++n) terms[n] = dtu * g[n];
    return sum_of_terms(pack_state(terms), picks, lane);
}
#endif

// Back over one chunk, two steps at a time; first is the element of the outputs at time 0. Unrolled further, the kernel outgrows the
// instruction cache.
INLINE void walk_chunk(const BackwardArgs &p, BackwardShared &s, Walk &w, const Gradients &out, i64 first, int buffer,
                       int first_row, Steps steps, int limit, int lane) {
    const int last = CHUNK - 2, swap = lane >> 2 & 1;
    io_t *tile = s.tile[buffer][0] + (first_row + last) * LANES;
    const float *B = s.projections[buffer] + (first_row + last) * 2 * STATE;
#if STEPS_READY
    auto size = [&](int i) { return unpack_step(tile[2 * DY + i * LANES + lane]); };  // of the pair's step i
#else
    const float *step = s.step + (first_row + last) * LANES + lane;
    auto size = [&](int i) { return step[i * LANES]; };
#endif
    saved_t *slot = slot_of(s, last, lane);
    int time = steps.start + (CHUNK - 1) * steps.sign;
    i64 at = first + (i64)time * p.channels, stride = (i64)steps.sign * p.channels;
    io_t *du = out.u + at, *ddelta = out.delta + at;
    Operands operands[2];  // dt and dy, which the arithmetic starts from, are read a pair ahead
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        operands[i].dt = size(i);
        operands[i].dy = tile[DY + i * LANES + lane];
    }
#if MATRIX_UNITS
    const Picks picks = picks_of(s, lane);
    const saved_t *rows = matrix_rows(s, CHUNK - 1, lane);
    __syncwarp();  // the slots are filled
#endif
#pragma unroll 1
    for (int pair = last; pair >= 0; pair -= 2) {
        float g[2][STATE], dtu[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const io_t *u = tile + i * LANES + lane;
            operands[i].h = fetch_state(slot + i * LANES * SLOT, swap, HALF_STATE);
            operands[i].u = widen(*u);
            dtu[i] = operands[i].dt * operands[i].u;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) operands[i].slope = SOFTPLUS ? softplus_slope(operands[i].dt) : 1.f;
        walk_step(w, g[1], operands[1], B + 2 * STATE, time < limit, du, ddelta);
        walk_step(w, g[0], operands[0], B, time - steps.sign < limit, du - stride, ddelta - stride);
        const int back = pair ? 2 : 0;
#if MATRIX_UNITS
        float sum_B2 = sum_of_step(dtu[1], g[1], picks, lane), sum_B = sum_of_step(dtu[0], g[0], picks, lane);
        float sum_C = sums_of_slots(rows, tile + DY, lane);
        rows -= 2 * LANES * SLOT;
#else
#pragma unroll
        for (int i = 1; i >= 0; --i) store_state(slot + (i + 1) * LANES * SLOT, pack_state(g[i]), swap, HALF_STATE);
#endif
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            operands[i].dt = size(i - back);
            operands[i].dy = tile[DY + (i - back) * LANES + lane];
        }
#if MATRIX_UNITS
        __syncwarp();  // slots, dy and deltas of this pair are read: sums may take their place, and other states that of the slots
        put_sums(tile + 2 * DY, lane & 2 ? sum_B2 : sum_B, lane);
        put_sums(tile + DY, sum_C, lane);
#endif
        slot -= 2 * LANES * SLOT;
        tile -= 2 * LANES;
        B -= 4 * STATE;
#if !STEPS_READY
        step -= 2 * LANES;
#endif
        time -= 2 * steps.sign;
        du -= 2 * stride;
        ddelta -= 2 * stride;
    }
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
    stage<SEGMENT>(s.tile[buffer][2], delta.start, 0, delta.pitch, steps, at);
    stage_projections<SEGMENT>(s.raw, d, steps, at);
    stage<SEGMENT>(s.tile[buffer][1], dy.start, 0, dy.pitch, steps, at);
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
#if MATRIX_UNITS
    make_picks(s, lane);
#endif
    __syncthreads();
    stage_backward(s, 0, steps_of(segment * SEGMENT, SEGMENT, backward), place);
    const saved_t *saved = p.states + ((row * segments + segment) * p.channels + (inside ? channel : 0)) * STATE;
    const i64 saved_step = (i64)step * p.channels * STATE;
    SavedState entering = fetch_state(saved, 0, HALF_STATE);
    saved_t *earlier = earlier_of(p, lane);
    for (int left = end - begin; left > 0; --left, segment += step, buffer ^= 1) {
        copy_wait();
        widen_projections<SEGMENT>(s.projections[buffer], s.raw, lane);
        __syncthreads();
        if (left > 1) stage_backward(s, buffer ^ 1, steps_of((segment + step) * SEGMENT, SEGMENT, backward), place);
        Steps steps = steps_of(segment * SEGMENT, SEGMENT, backward);
#if !STEPS_READY
        segment_sizes(s, w.bias, buffer, steps, limit, lane);
#endif
        // Past the end there are no steps: the last chunks of a segment that runs forward, the first of one that runs backward.
        int top = backward ? MERGE - 1 : min(MERGE - 1, (p.length - 1 - segment * SEGMENT) / CHUNK);
        replay_segment(s, w, entering, buffer, top, earlier, lane);
        for (int part = top; part >= 0; --part) {
            int first_row = part * CHUNK, first_time = segment * SEGMENT + (backward ? MERGE - 1 - part : part) * CHUNK;
            if (first_time >= p.length) break;
            Steps chunk = steps_of(first_time, CHUNK, backward);
            if (part < top) restore_chunk(s, earlier + part * CHUNK * LANES * STATE, lane);
#if !MATRIX_UNITS
            for (int j = 0; j < CHUNK; ++j)
                s.dtu[j * LANES + lane] = size_of(s, buffer, first_row + j, lane) * widen(s.tile[buffer][0][(first_row + j) * LANES + lane]);
            block_sums<false>(s, buffer, first_row, p.projections + s.first_sum + STATE, chunk, p.length, lane);
#endif
            walk_chunk(p, s, w, p.gradient[way], first, buffer, first_row, chunk, limit, lane);
#if !MATRIX_UNITS
            block_sums<true>(s, buffer, first_row, p.projections + s.first_sum, chunk, p.length, lane);
#endif
        }
        if (left > 1) entering = fetch_state(saved += saved_step, 0, HALF_STATE);
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
