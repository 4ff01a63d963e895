// The forward pass of scan_forward.cu with a channel's states spread over eight lanes, so that few long sequences keep the GPU busy
// without cutting time: in bf16, two directions, 16 states, every row of every operand made of aligned 16-byte pieces.
//
// Compile-time besides scan_common.cu: GATE, KEEP as in scan_forward.cu. A block takes LANES channels of one sequence in both
// directions, a warp four of them in one. Tensor cores give dt u B of two steps at once, where the states lie; and, of the h of one step,
// <C, h> with the C of each of eight steps, of which only the step's own counts: it lies in lane 4 t + c for step t, which reads u and z
// and writes y there.

#define WARPS (LANES / SPREAD)  // of a direction
#define CREW (32 * WARPS)       // threads of a direction
#define SPAN (2 * SEGMENT)      // steps staged at a time, aligned in time
#define STAGES 4
#define TILE (SPAN * LANES)
static_assert(MATRIX_UNITS && VECTOR && SEGMENT == 16 && CREW == 4 * SEGMENT * ROW, "a thread copies a piece of a segment");

struct Stage {
    io_t tile[4][TILE];                 // u, delta, z, the other direction's sums
    io_t projections[2][SPAN * STATE];  // B and C
};

struct Results {
    io_t tile[2][TILE];  // y and, where it is kept, y before the gate
};

// What a warp's lanes tell each other about a segment, rows apart so that they lie in different banks.
struct Table {
    float dt[SPREAD][SEGMENT + 4];
    float dtu[2][SPREAD][SEGMENT + 4];  // of even steps with zeros for the odd ones, and the other way round
    float zero[SEGMENT];
};

struct SpreadShared {
    Stage stage[STAGES];
    Results results[2];
    Table table[WARPS][2];
};
static_assert(2 * sizeof(SpreadShared) == SHARED_BYTES, "layout.py counts the bytes of SpreadShared otherwise");

INLINE io_t *spread_sums(const ForwardArgs &p) { return KEEP && GATE ? p.ungated : p.out; }

// One of u, delta, z and the other direction's sums; the latter two in the half that ends in y.
template <bool FINAL>
INLINE Move<const io_t *> move_stream(const ForwardArgs &p, const Direction &d, Steps steps, const Place &at) {
    int tensor = at.lane / (SEGMENT * ROW), piece = at.lane % (SEGMENT * ROW), column = at.first_channel + piece % ROW * 8;
    const io_t *source[4] = {d.u + at.batch * d.u_batch, d.delta + at.batch * d.delta_batch, p.z + at.batch * p.z_batch,
                             spread_sums(p) + (i64)at.batch * p.length * p.channels};
    i64 stride[4] = {d.u_time, d.delta_time, p.z_time, p.channels};
    const io_t *from = source[0];
    i64 pitch = stride[0];
#pragma unroll
    for (int i = 1; i < 4; ++i)
        if (tensor == i) from = source[i], pitch = stride[i];
    bool wanted = column < at.channels && (tensor < 2 || (FINAL && (GATE || tensor == 3)));
    return move_rows(from, pitch, piece / ROW, column, tensor * TILE + piece * 8, wanted, steps, SPAN * steps.sign, at);
}

// Half a row of B or C, by the last threads.
INLINE Move<const io_t *> move_projections(const Direction &d, Steps steps, const Place &at) {
    int piece = CREW - 1 - at.lane, tensor = piece / (2 * SPAN), row = piece % (2 * SPAN) / 2, half = piece % 2;
    const io_t *from = tensor ? d.C + at.batch * d.C_batch : d.B + at.batch * d.B_batch;
    int cell = 4 * TILE + tensor * SPAN * STATE + projection(row, half);
    return move_rows(from, tensor ? d.C_time : d.B_time, row, half * 8, cell, tensor < 2, steps, SPAN * steps.sign, at);
}

template <bool FINAL>
INLINE Move<io_t *> move_results(const ForwardArgs &p, Steps steps, const Place &at) {
    int tensor = at.lane / (SPAN * ROW), piece = at.lane % (SPAN * ROW), column = at.first_channel + piece % ROW * 8;
    io_t *to = !FINAL ? spread_sums(p) : tensor ? p.ungated : p.out;
    bool wanted = column < at.channels && tensor <= (FINAL && KEEP && GATE);
    return move_rows(to + (i64)at.batch * p.length * p.channels, (i64)p.channels, piece / ROW, column, at.lane * 8, wanted, steps, SPAN * steps.sign, at);
}

struct Lane {
    float h[2], rate[2];    // of its two states
    int channel;            // theirs, of the warp's four
    int step, gated, cell;  // its step of eight, the channel it has there, and where they lie in a tile
    float D, bias;          // of that channel
};

// What a lane has of its own steps of a segment.
struct Own {
    io_t u[2], delta[2], z[2], other[2];
    float du[2];  // D u
};

// What a lane needs to walk a segment.
struct Walk {
    float4 dt[4], dtu[4];
    u32 B[4], C[4];
};

// u and delta of a segment, the first or second of a span.
INLINE void fetch(Own &own, const Stage &stage, const Lane &c, int segment) {
    const io_t *u = stage.tile[0] + c.cell + segment * SEGMENT * LANES, *delta = u + TILE;
#pragma unroll
    for (int o = 0; o < 2; ++o) {
        own.u[o] = u[8 * o * LANES];
        own.delta[o] = delta[8 * o * LANES];
    }
}

// z and the other direction's sums.
INLINE void fetch_gates(Own &own, const Stage &stage, const Lane &c, int segment) {
    const io_t *z = stage.tile[2] + c.cell + segment * SEGMENT * LANES, *other = z + TILE;
#pragma unroll
    for (int o = 0; o < 2; ++o) {
        own.z[o] = GATE ? z[8 * o * LANES] : 0;
        own.other[o] = other[8 * o * LANES];
    }
}

// Each lane's steps of a segment, which begins ``first`` steps into the span, to the warp.
INLINE void tell(Own &own, Table &table, const Lane &c, int first, Steps steps, const Place &at) {
#pragma unroll
    for (int o = 0; o < 2; ++o) {
        int step = 8 * o + c.step;
        float u = widen(own.u[o]), dt = step_size(own.delta[o], c.bias, steps.start + (first + step) * steps.sign < at.length);
        table.dt[c.gated][step] = dt;
        table.dtu[step % 2][c.gated][step] = round_tf32(dt * u);
        own.du[o] = c.D * u;
    }
    __syncwarp();
}

INLINE void listen(Walk &w, const Stage &stage, const Table &table, const Lane &c, int segment, const Place &at) {
    int lane = at.lane % 32, quarter = lane % 4, half = lane / 4 % 2, group = lane / 8, row = segment * SEGMENT;
    // Rows of B as products of two steps take them, (step, half), those of two such products in turn.
    load_matrices_transposed(w.B, stage.projections[0] + projection(row + 4 * group + lane % 2 * 2 + lane / 4 % 2, lane / 2 % 2));
    load_matrices(w.C, stage.projections[1] + projection(row + group / 2 * 8 + lane % 8, group % 2));
    const float4 *dt = (const float4 *)table.dt[c.channel];
    const float4 *dtu = (const float4 *)(quarter % 2 == half ? table.dtu[quarter / 2][c.channel] : table.zero);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        w.dt[i] = dt[i];
        w.dtu[i] = dtu[i];
    }
}

// Eight steps: <C, h> of the lane's own.
INLINE float walk(const Walk &w, int octet, Lane &c) {
    const float4 *v = w.dtu + 2 * octet, *d = w.dt + 2 * octet;
    const u32 *half = w.C + 2 * octet;
    float dtu[8] = {v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w};
    float dt[8] = {d[0].x, d[0].y, d[0].z, d[0].w, d[1].x, d[1].y, d[1].z, d[1].w};
    float C[4] = {low_bf16(half[0]), low_bf16(half[1]), high_bf16(half[0]), high_bf16(half[1])}, decay[8][2], y = 0.f;
#pragma unroll
    for (int t = 0; t < 8; ++t) {
        decay[t][0] = exp2_fast(dt[t] * c.rate[0]);
        decay[t][1] = exp2_fast(dt[t] * c.rate[1]);
    }
#pragma unroll
    for (int t = 0; t < 8; t += 2) {
        u32 B = w.B[2 * octet + t / 4];
        float added[4] = {}, pair[2] = {dtu[t], dtu[t + 1]};
        multiply_tf32(added, pair, t % 4 ? high_bf16(B) : low_bf16(B));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float sums[4] = {};
            c.h[0] = decay[t + i][0] * c.h[0] + added[2 * i];
            c.h[1] = decay[t + i][1] * c.h[1] + added[2 * i + 1];
            multiply_tf32(sums, C, c.h[0], c.h[1]);
            if (c.step == t + i) y = sums[0] + sums[3];
        }
    }
    return y;
}

template <bool FINAL>
INLINE void finish(io_t *to, float y, const Own &own, int octet) {
    y += own.du[octet] + (FINAL ? widen(own.other[octet]) : 0.f);
    float z = widen(own.z[octet]);
    if (FINAL && KEEP && GATE) to[TILE] = narrow(y);
    *to = narrow(FINAL && GATE ? y * (z * sigmoid(z)) : y);
}

// Walks segment ``segment`` of a span, whose ``w`` and ``own`` are known, while those of the segment after it are made ready.
template <bool FINAL>
INLINE void spread_segment(const Stage &stage, Results &results, int segment, const Walk &w, Own &own, Lane &c, const Stage &stage_after,
                           Table &table, Walk &w_after, Own &own_after, Steps steps_after, const Place &at) {
    const int after = 1 - segment;
    io_t *to = results.tile[0] + c.cell + segment * SEGMENT * LANES;
    fetch(own_after, stage_after, c, after);
    tell(own_after, table, c, after * SEGMENT, steps_after, at);
    if (FINAL) fetch_gates(own, stage, c, segment);
    float first = walk(w, 0, c);
    listen(w_after, stage_after, table, c, after, at);
    finish<FINAL>(to, first, own, 0);
    float second = walk(w, 1, c);
    finish<FINAL>(to + 8 * LANES, second, own, 1);
}

// ``count`` spans of one direction, from ``span`` on.
template <int WAY, bool FINAL>
INLINE void spread_phase(const ForwardArgs &p, SpreadShared &s, Lane &c, int span, int count, const Place &at) {
    const Direction &d = p.direction[WAY];
    const int sign = WAY ? -1 : 1;
    Steps steps = steps_of(span * SPAN, SPAN, WAY);
    Move<const io_t *> stream = move_stream<FINAL>(p, d, steps, at), rows = move_projections(d, steps, at);
    Move<io_t *> results = move_results<FINAL>(p, steps, at);
    auto feed = [&](int round) {
        io_t *stage = (io_t *)&s.stage[round % STAGES];
        if (round < count) {
            copy_async(stage + stream.cell, stream.at, stream.left > 0);
            copy_async(stage + stream.cell + SEGMENT * LANES, stream.at + stream.step / 2, stream.left + stream.change / 2 > 0);
            if (rows.cell < sizeof(Stage) / sizeof(io_t)) copy_async(stage + rows.cell, rows.at, rows.left > 0);
        }
        stream.advance();
        rows.advance();
        copy_commit();
    };
    auto written = [&](int round) { return *(const uint4 *)((const io_t *)&s.results[round % 2] + results.cell); };
    int segments = (p.length + SEGMENT - 1) / SEGMENT, segment = 2 * span + WAY, channel = at.first_channel + at.lane / 32 * SPREAD + c.channel;
    saved_t *state = p.states + ((((i64)WAY * p.batch + at.batch) * segments + segment) * p.channels + channel) * STATE + at.lane % 8 * 2;
    auto save = [&] {
        if (KEEP && channel < p.channels && segment < segments) *(u32 *)state = floats_to_bf16x2(c.h[0], c.h[1]);
        state += (i64)sign * p.channels * STATE;
        segment += sign;
    };

    for (int round = 0; round < STAGES - 1; ++round) feed(round);
    copy_wait_but<STAGES - 2>();
    group_barrier(1 + WAY, CREW);
    Table *table = s.table[at.lane / 32];
    Own own[2];
    Walk w[2];
    fetch(own[0], s.stage[0], c, 0);
    tell(own[0], table[0], c, 0, steps, at);
    listen(w[0], s.stage[0], table[0], c, 0, at);
#pragma unroll 1
    for (int round = 0; round < count; ++round) {
        Stage &stage = s.stage[round % STAGES];
        copy_wait_but<STAGES - 3>();  // the span after this one is there, too
        group_barrier(1 + WAY, CREW);
        feed(round + STAGES - 1);
        uint4 before = written(round + 1);
        save();
        spread_segment<FINAL>(stage, s.results[round % 2], 0, w[0], own[0], c, stage, table[1], w[1], own[1], steps, at);
        if (round > 0) {
            store_if(results.left > 0, (uint4 *)results.at, before);
            results.advance();
        }
        steps.start += SPAN * sign;
        save();
        const Stage &after = s.stage[(round + 1) % STAGES];
        spread_segment<FINAL>(stage, s.results[round % 2], 1, w[1], own[1], c, after, table[0], w[0], own[0], steps, at);
    }
    group_barrier(1 + WAY, CREW);
    if (count > 0) store_if(results.left > 0, (uint4 *)results.at, written(count + 1));
}

// What the lane of a direction begins with.
INLINE Lane begin_lane(const Direction &d, const Place &at) {
    int lane = at.lane % 32, warp = at.lane / 32, first = at.first_channel + warp * SPREAD;
    Lane c = {};
    c.channel = lane / 8;
    c.step = lane / 4;
    c.gated = lane % 4;
    c.cell = c.step * LANES + warp * SPREAD + c.gated;
    int channel = first + c.channel, gated = first + c.gated;
#pragma unroll
    for (int n = 0; n < 2; ++n) c.rate[n] = channel < at.channels ? d.A[(i64)channel * STATE + lane % 8 * 2 + n] * LOG2E : 0.f;
    c.D = gated < at.channels ? d.D[gated] : 0.f;
    c.bias = gated < at.channels ? d.bias[gated] : 0.f;
    return c;
}

extern "C" __global__ void __launch_bounds__(2 * CREW, 1) scan_spread(const __grid_constant__ ForwardArgs p) {
    extern __shared__ __align__(16) char shared[];
    SpreadShared *s = (SpreadShared *)shared;
    Place at = {(int)blockIdx.y, (int)blockIdx.x * LANES, (int)threadIdx.x % CREW, p.length, p.channels};
    const bool first = threadIdx.x < CREW;
    Lane c = begin_lane(p.direction[first ? 0 : 1], at);
    float *tables = (float *)s[first ? 0 : 1].table[at.lane / 32];
    for (u32 i = at.lane % 32; i < 2 * sizeof(Table) / sizeof(float); i += 32) tables[i] = 0.f;
    int spans = (p.length + SPAN - 1) / SPAN, half = (spans + 1) / 2, rest = spans - half;
    if (first) spread_phase<0, false>(p, s[0], c, 0, half, at);
    else spread_phase<1, false>(p, s[1], c, spans - 1, rest, at);
    // What the other threads of this block wrote is read from here on.
    __threadfence();
    __syncthreads();
    if (first) spread_phase<0, true>(p, s[0], c, half, rest, at);
    else spread_phase<1, true>(p, s[1], c, half - 1, half, at);
}
