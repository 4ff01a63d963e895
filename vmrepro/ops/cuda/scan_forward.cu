// Selective scan, forward: y_t = <C_t, h_t> + D u_t with h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t, summed over directions, gated.
//
// A block takes LANES channels of one sequence, and LANES threads for each direction. Two directions meet in the middle of time:
// each writes its own y of the half it sees first, and adds it to the other's in the half it sees second. So both directions
// cost one launch, and no step is gated or rounded for output twice.
//
// Compile-time besides scan_common.cu: DIRECTIONS 1 or 2, GATE 1 with z, KEEP 1 to save what the backward pass needs, FORWARD_BLOCKS
// on a multiprocessor.

#define GROUP 4  // steps whose step sizes and gates are computed together, to hide each other's latency

struct Tiles {
    io_t u[SEGMENT * LANES], z[SEGMENT * LANES], other[SEGMENT * LANES], delta[SEGMENT * LANES];
    float projections[SEGMENT * 2 * STATE];
};

struct ForwardShared {
    Tiles tiles[2];
    io_t raw[SEGMENT * 2 * STATE];
};
static_assert(DIRECTIONS * sizeof(ForwardShared) == SHARED_BYTES, "layout.py counts the bytes of ForwardShared otherwise");

struct Channel {
    float h[STATE], A2[STATE];
    float D, bias;
};

// Where the first half's partial sums wait for the other direction.
INLINE io_t *partial_sums(const ForwardArgs &p) { return KEEP && GATE ? p.ungated : p.out; }

template <bool FINAL>
INLINE void forward_segment(const ForwardArgs &p, const Tiles &tiles, Channel &c, Steps steps, int limit, int lane, i64 first) {
    int time = steps.start;
    i64 out = first + (i64)time * p.channels, stride = (i64)steps.sign * p.channels;
#pragma unroll 1
    for (int group = 0; group < SEGMENT; group += GROUP) {
        if (min(time, time + (GROUP - 1) * steps.sign) >= p.length) {
            time += GROUP * steps.sign;
            out += GROUP * stride;
            continue;
        }
        float u[GROUP], dt[GROUP], gate[GROUP];
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            int cell = (group + i) * LANES + lane;
            u[i] = widen(tiles.u[cell]);
            dt[i] = step_size(tiles.delta[cell], c.bias, time + i * steps.sign < limit);
            if (FINAL && GATE) {
                float z = widen(tiles.z[cell]);
                gate[i] = z * sigmoid(z);
            }
        }
#pragma unroll
        for (int i = 0; i < GROUP; ++i, time += steps.sign, out += stride) {
            int cell = (group + i) * LANES + lane;
            const float *B = tiles.projections + (group + i) * 2 * STATE, *C = B + STATE;
            advance<8>(c.h, c.A2, dt[i], dt[i] * u[i], B);
            float y = (FINAL && DIRECTIONS == 2 ? widen(tiles.other[cell]) : 0.f) + c.D * u[i], y2 = 0.f;
#pragma unroll
            for (int n = 0; n < STATE; n += 4) {
                float4 g = *(const float4 *)(C + n);
                y += c.h[n] * g.x;
                y2 += c.h[n + 1] * g.y;
                y += c.h[n + 2] * g.z;
                y2 += c.h[n + 3] * g.w;
            }
            y += y2;
            if (FINAL && KEEP && GATE) store_if(time < limit, p.ungated + out, narrow(y));
            if (FINAL && GATE) y *= gate[i];
            store_if(time < limit, (FINAL ? p.out : partial_sums(p)) + out, narrow(y));
        }
    }
}

template <bool FINAL>
INLINE void stage_forward(const ForwardArgs &p, const Direction &d, Tiles &tiles, io_t *raw, Steps steps, const Place &at) {
    stage<SEGMENT>(tiles.u, d.u, d.u_batch, d.u_time, steps, at);
    stage<SEGMENT>(tiles.delta, d.delta, d.delta_batch, d.delta_time, steps, at);
    stage_projections<SEGMENT>(raw, d, steps, at);
    if (FINAL && GATE) stage<SEGMENT>(tiles.z, p.z, p.z_batch, p.z_time, steps, at);
    if (FINAL && DIRECTIONS == 2) stage<SEGMENT>(tiles.other, partial_sums(p), (i64)p.length * p.channels, p.channels, steps, at);
}

// ``count`` segments of one direction, from ``segment`` on.
template <int WAY, bool FINAL>
INLINE void forward_phase(const ForwardArgs &p, ForwardShared &s, Channel &c, int segment, int count, bool backward, int limit, const Place &at) {
    const Direction &d = p.direction[WAY];
    int channel = at.first_channel + at.lane, segments = (p.length + SEGMENT - 1) / SEGMENT, step = backward ? -1 : 1, buffer = 0;
    i64 out = (i64)at.batch * p.length * p.channels + channel;
    if (count > 0) stage_forward<FINAL>(p, d, s.tiles[0], s.raw, steps_of(segment * SEGMENT, SEGMENT, backward), at);
    for (int round = 0; round < count; ++round, segment += step, buffer ^= 1) {
        Tiles &tiles = s.tiles[buffer];
        copy_wait();
        widen_projections<SEGMENT>(tiles.projections, s.raw, at.lane);
        group_barrier(1 + WAY, LANES);
        if (round + 1 < count)
            stage_forward<FINAL>(p, d, s.tiles[buffer ^ 1], s.raw, steps_of((segment + step) * SEGMENT, SEGMENT, backward), at);
        if (KEEP && limit > 0) {
            i64 row = ((i64)WAY * p.batch + at.batch) * segments + segment;
            store_state(p.states + (row * p.channels + channel) * STATE, pack_state(c.h), 0, HALF_STATE);
        }
        forward_segment<FINAL>(p, tiles, c, steps_of(segment * SEGMENT, SEGMENT, backward), limit, at.lane, out);
    }
}

// What the lane of a direction begins with.
template <int WAY>
INLINE Channel begin_direction(const ForwardArgs &p, ForwardShared &s, const Place &at) {
    const Direction &d = p.direction[WAY];
    int channel = at.first_channel + at.lane;
    bool inside = channel < p.channels;
    Channel c;
    load_decay_rates(c.A2, d.A, channel, inside);
    c.D = inside ? d.D[channel] : 0.f;
    c.bias = inside ? d.bias[channel] : 0.f;
    const float *initial = p.initial + (((i64)WAY * gridDim.z + blockIdx.z) * p.batch + at.batch) * p.channels * STATE;
#pragma unroll
    for (int n = 0; n < STATE; ++n) c.h[n] = p.initial && inside ? initial[(i64)channel * STATE + n] : 0.f;
    return c;
}

extern "C" __global__ void __launch_bounds__(DIRECTIONS * LANES, FORWARD_BLOCKS) scan_forward(const __grid_constant__ ForwardArgs p) {
    extern __shared__ __align__(16) char shared[];
    ForwardShared *s = (ForwardShared *)shared;
    Place at = {(int)blockIdx.y, (int)blockIdx.x * LANES, (int)threadIdx.x % LANES, p.length, p.channels};
    int channel = at.first_channel + at.lane, limit = channel < p.channels ? p.length : 0;  // without a channel no steps, nothing written
    int segments = (p.length + SEGMENT - 1) / SEGMENT, begin = blockIdx.z * p.split, end = min(begin + p.split, segments);
#if DIRECTIONS == 2
    const bool first = threadIdx.x < LANES;
    const int middle = begin + (end - begin + 1) / 2, half = middle - begin, rest = end - middle;
    Channel c = first ? begin_direction<0>(p, s[0], at) : begin_direction<1>(p, s[1], at);
    if (first) forward_phase<0, false>(p, s[0], c, begin, half, false, limit, at);
    else forward_phase<1, false>(p, s[1], c, end - 1, rest, true, limit, at);
    // What the other threads of this block wrote is read from here on.
    __threadfence();
    __syncthreads();
    if (first) forward_phase<0, true>(p, s[0], c, middle, rest, false, limit, at);
    else forward_phase<1, true>(p, s[1], c, middle - 1, half, true, limit, at);
#else
    Channel c = begin_direction<0>(p, s[0], at);
    forward_phase<0, true>(p, s[0], c, p.reverse ? end - 1 : begin, end - begin, p.reverse, limit, at);
    if (p.last && limit > 0 && blockIdx.z == (p.reverse ? 0 : gridDim.z - 1)) {
#pragma unroll
        for (int n = 0; n < STATE; ++n) p.last[((i64)at.batch * p.channels + channel) * STATE + n] = c.h[n];
    }
#endif
}
