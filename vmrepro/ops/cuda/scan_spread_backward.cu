// The backward pass of scan_backward.cu with a channel's states spread over eight lanes, so that few long sequences keep the GPU busy
// without cutting time, no decay is computed twice, and no state goes through memory but for dC: in bf16, 16 states, every row of every
// operand made of aligned 16-byte pieces.
//
// A block takes LANES channels of one sequence and direction. A warp replays a segment's states and walks back over it; tensor cores give
// dt u B and C dy of two steps at once, where the states lie, and <B, g> and <A, p> for the steps that are the lane's own: lane 4 t + c
// has step t of each eight of the warp's channel c. What dB and dC are sums of, g and h, goes to shared memory, from where all warps
// together add it up, two segments later, so that a warp may be a segment ahead of the others: they arrive at a barrier in one segment
// and wait for it in the next.

#define WARPS (LANES / SPREAD)
#define STAGES 6           // segments staged: one walked, two to be added up, three to come
#define BUFFERS 3          // of what is added up
#define PITCH (LANES + 8)  // of a tile's rows, so that a lane's steps lie in different banks
#define TILE (SEGMENT * PITCH)
#define TERMS (SEGMENT * LANES * STATE)
#define ZEROS 40  // after B and after C: a row of eight zeros in either half of the banks
#define ROWS (SEGMENT * STATE + ZEROS)
#define TABLE_ROW 24
#define ODD (8 * SPREAD + 4)  // where a table of pairs has those of odd steps
#define NONE (2 * ODD)        // and zeros
#define PAIRS (NONE + 8 * SPREAD)
static_assert(MATRIX_UNITS && VECTOR && SEGMENT == 16 && LANES == 48, "twelve warps share the sums of a segment");

struct Stage {
    io_t tile[3][TILE];  // u, later dt u; delta; dy
    io_t projections[2][ROWS];
};

// What a warp's lanes tell each other about a segment. dt u and dy come as a product of two steps takes them: of each four steps the
// first of the two even ones and the second as a pair, then zeros; the odd ones likewise, after zeros.
struct Table {
    float dt[SPREAD * TABLE_ROW];
    u32 pairs[2][PAIRS];
};

struct SpreadShared {
    Stage stage[STAGES];
    io_t terms[BUFFERS][2][TERMS];   // g and h of a segment
    io_t results[BUFFERS][2][TILE];  // du and the gradient of delta
    Table table[WARPS];
    TurnBarrier turn;
    float one[8][8];  // row r has 1 where column r is
};
static_assert(sizeof(SpreadShared) == SHARED_BYTES, "layout.py counts the bytes of SpreadShared otherwise");

// Where piece ``piece`` of the halves of a warp's states lies: those that a matrix load takes together in different banks.
INLINE int term(int warp, int piece) { return warp * SPREAD * STATE + (piece ^ (warp & 1) ^ (warp & 2) << 1) * 8; }

// Where in a ring of COUNT something lies.
template <int COUNT>
struct Ring {
    int at;

    INLINE void advance() { at = at + 1 == COUNT ? 0 : at + 1; }
};

struct Lane {
    float carry[2], rate[2], dA[2];  // of its two states
    int step, cell;                  // its own step of eight, and where that and its channel lie in a tile
    float D, bias, dD, dbias;        // of that channel
    float ones[2][4];  // of four steps: which a product keeps in its first rows, the first two, and which in its last
};

// Where a lane tells and hears about a segment: in its warp's table, in a stage, and among the terms of g.
struct Places {
    float *dt_to;
    io_t *pairs_to;
    const float *dt;
    const u32 *pairs;
    int turned[2], rows, terms;
};

struct Walk {
    float decay[SEGMENT][2], h[SEGMENT + 1][2];  // h: before each step, and after the last
    u32 dtu[SEGMENT / 2], dy[SEGMENT / 2];
    u32 B[2][4], C[2][4], rows[4];  // B and C of the first two steps of each four, and of the last two; rows of B
};

// Each lane's own steps of a segment to the warp; returns their u.
INLINE float2 tell(Stage &stage, const Places &at_table, const Lane &c, Steps steps, const Place &at) {
    io_t *tile = stage.tile[0] + c.cell;
    float u[2];
#pragma unroll
    for (int o = 0; o < 2; ++o) {
        io_t *own = tile + 8 * o * PITCH, dy = own[2 * TILE];
        u[o] = widen(*own);
        float dt = step_size(own[TILE], c.bias, steps.start + (8 * o + c.step) * steps.sign < at.length);
        io_t dtu = narrow(dt * u[o]);
        at_table.dt_to[8 * o] = dt;
        at_table.pairs_to[8 * o] = dtu;
        at_table.pairs_to[8 * o + 2 * PAIRS] = dy;
        *own = dtu;
    }
    return make_float2(u[0], u[1]);
}

// Eight steps of a table's row.
INLINE void hear(float *to, const float *row) {
    float4 a = *(const float4 *)row, b = *(const float4 *)(row + 4);
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

INLINE void hear(u32 (&to)[SEGMENT / 2], const u32 *row) {
    uint4 a = *(const uint4 *)row, b = *(const uint4 *)(row + 4);
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

// From the state before a segment to those in it. Half of the decays come at a time: all at once keep too many registers waiting.
INLINE void replay(Walk &w, const Lane &c, u32 entering, const float *dts, io_t *terms) {
    w.h[0][0] = low_bf16(entering);
    w.h[0][1] = high_bf16(entering);
#pragma unroll
    for (int octet = 0; octet < SEGMENT; octet += 8) {
        float dt[8];
        hear(dt, dts + octet);
#pragma unroll
        for (int t = 0; t < 8; ++t) {
            w.decay[octet + t][0] = exp2_fast(dt[t] * c.rate[0]);
            w.decay[octet + t][1] = exp2_fast(dt[t] * c.rate[1]);
        }
#pragma unroll
        for (int t = octet; t < octet + 8; t += 2) {
            float added[4] = {};
            multiply_bf16(added, w.dtu[t / 4 * 2], w.dtu[t / 4 * 2 + 1], w.B[t / 2 % 2][t / 4]);
#pragma unroll
            for (int i = t; i < t + 2; ++i) {
#pragma unroll
                for (int n = 0; n < 2; ++n) w.h[i + 1][n] = w.decay[i][n] * w.h[i][n] + added[2 * (i - t) + n];
                *(u32 *)(terms + i * LANES * STATE) = floats_to_bf16x2(w.h[i + 1][0], w.h[i + 1][1]);
            }
        }
    }
}

// Back over one step, of whose g all but the carry is ``added``: <B, g> if the step is the lane's own, and the lane's part of <A, p>.
INLINE float walk_step(const Walk &w, Lane &c, int t, float dt, const float *added, float &gB, io_t *terms) {
    float g[2] = {added[0] + c.carry[0], added[1] + c.carry[1]}, grad[2], sums[4] = {};
    u32 pair = floats_to_bf16x2(g[0], g[1]);
    multiply_bf16(sums, w.rows[t / 8 * 2], w.rows[t / 8 * 2 + 1], pair);
    if (c.step == t % 8) gB = sums[0] + sums[3];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
        c.carry[n] = w.decay[t][n] * g[n];
        grad[n] = c.carry[n] * w.h[t][n];
        c.dA[n] += dt * grad[n];
    }
    *(u32 *)(terms + t * LANES * STATE) = pair;
    return c.rate[0] * grad[0] + c.rate[1] * grad[1];
}

// Back over eight steps, of which the lane's own has ``u``.
INLINE void walk_octet(const Walk &w, Lane &c, int octet, float u, const Places &at_table, const io_t *dy_own, io_t *terms, io_t *results) {
    float gB = 0.f, Ap[2][4] = {}, dts[8];
    hear(dts, at_table.dt + octet);
#pragma unroll
    for (int t = 6; t >= 0; t -= 2) {
        int step = octet + t;
        float added[4] = {};
        multiply_bf16(added, w.dy[step / 4 * 2], w.dy[step / 4 * 2 + 1], w.C[t / 2 % 2][step / 4]);
        float odd = walk_step(w, c, step + 1, dts[t + 1], added + 2, gB, terms), even = walk_step(w, c, step, dts[t], added, gB, terms);
        multiply_tf32(Ap[t / 2 % 2], c.ones[t / 4], even, odd);
    }
    float dt = at_table.dt_to[octet], dy = widen(dy_own[octet * PITCH]), sum = (Ap[0][0] + Ap[0][1]) + (Ap[1][2] + Ap[1][3]);
    float slope = (u * gB + sum * LN2) * (SOFTPLUS ? softplus_slope(dt) : 1.f);
    c.dD += dy * u;
    c.dbias += slope;
    results += c.cell + octet * PITCH;
    results[0] = narrow(dt * gB + c.D * dy);
    results[TILE] = narrow(slope);
}

// Three steps of dB or dC of a segment, summed over the block's channels: each warp has a third of an eight of one of them.
struct Adder {
    int terms, factors;  // where its first step's begin, among the terms of a segment and in a stage
    int steps;           // three or, of the last third, two
    float *to;
    int left;  // steps before the end
};

INLINE Adder begin_adder(float *sums, Steps steps, const Place &at) {
    int lane = at.lane % 32, warp = at.lane / 32, kind = warp / 6, first = warp % 3 * 3, row = warp / 3 % 2 * 8 + first, quarter = lane % 4;
    int piece = 2 * (lane % 2 + lane / 16 * 2) + lane / 8 % 2, time = steps.start + (row + quarter) * steps.sign;
    bool wanted = quarter < 3 && first + quarter < 8;
    return {kind * TERMS + row * LANES * STATE + term(lane % 8 / 2, piece), kind * 2 * TILE + row * PITCH + 4 * quarter, min(3, 8 - first),
            sums + (i64)time * 2 * STATE + kind * STATE + lane / 4, wanted ? at.length - time : NEVER};
}

// The factors are the columns of these products, all alike, so that every lane has the sums of every step.
INLINE void add_terms(Adder &a, const io_t *terms, const Stage &stage, int sign, int quarter) {
    const io_t *factors = (const io_t *)&stage + a.factors;
    float low = 0.f, high = 0.f;
    terms += a.terms;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        if (i == 2 && a.steps == 2) break;
        float sum[4] = {};
#pragma unroll
        for (int k = 0; k < LANES; k += 16) {
            u32 matrices[4];
            load_matrices_transposed(matrices, terms + i * LANES * STATE + k * STATE);
            uint2 pairs = *(const uint2 *)(factors + i * PITCH + k);
            multiply_bf16(sum, matrices, pairs.x, pairs.y);
        }
        if (quarter == i) low = sum[0], high = sum[2];
    }
    store_if(a.left > 0, a.to, low);
    store_if(a.left > 0, a.to + 8, high);
    a.left += SEGMENT * sign;
    a.to -= SEGMENT * 2 * STATE * sign;
}

// u, delta, dy; half a row of B or C; or, for the last threads, nothing.
INLINE Move<const io_t *> move_operands(const BackwardArgs &p, const Direction &d, Steps steps, const Place &at) {
    const int pieces = SEGMENT * ROW, shift = -SEGMENT * steps.sign;
    int tensor = min(at.lane / pieces, 3), piece = at.lane % pieces, row = piece / ROW, column = piece % ROW * 8;
    const io_t *source[3] = {d.u + at.batch * d.u_batch, d.delta + at.batch * d.delta_batch, p.dy + (i64)at.batch * p.length * p.channels};
    i64 stride[3] = {d.u_time, d.delta_time, p.channels};
    const io_t *from = source[0];
    i64 pitch = stride[0];
#pragma unroll
    for (int i = 1; i < 3; ++i)
        if (tensor == i) from = source[i], pitch = stride[i];
    if (tensor < 3) {
        bool wanted = at.first_channel + column < at.channels;
        return move_rows(from, pitch, row, at.first_channel + column, tensor * TILE + row * PITCH + column, wanted, steps, shift, at);
    }
    int kind = piece / (2 * SEGMENT);
    row = piece % (2 * SEGMENT) / 2;
    from = kind ? d.C + at.batch * d.C_batch : d.B + at.batch * d.B_batch;
    int cell = kind < 2 ? 3 * TILE + kind * ROWS + projection(row, piece % 2) : (int)(sizeof(Stage) / sizeof(io_t));
    return move_rows(from, kind ? d.C_time : d.B_time, row, piece % 2 * 8, cell, kind < 2, steps, shift, at);
}

INLINE Move<io_t *> move_results(const BackwardArgs &p, int way, Steps steps, const Place &at) {
    const int pieces = SEGMENT * ROW;
    int tensor = at.lane / pieces, piece = at.lane % pieces, row = piece / ROW, column = piece % ROW * 8;
    io_t *to = (tensor ? p.gradient[way].delta : p.gradient[way].u) + (i64)at.batch * p.length * p.channels;
    bool wanted = tensor < 2 && at.first_channel + column < at.channels;
    int cell = min(tensor, 1) * TILE + row * PITCH + column;
    return move_rows(to, (i64)p.channels, row, at.first_channel + column, cell, wanted, steps, -SEGMENT * steps.sign, at);
}

INLINE void clear(SpreadShared &s, int thread) {
    for (u32 i = thread; i < sizeof s.table / 4; i += 32 * WARPS) ((u32 *)s.table)[i] = 0;
    for (int i = thread; i < STAGES * 2 * ZEROS; i += 32 * WARPS)
        s.stage[i / (2 * ZEROS)].projections[i / ZEROS % 2][SEGMENT * STATE + i % ZEROS] = 0;
    if (thread < 64) s.one[thread / 8][thread % 8] = thread / 8 == thread % 8;
    if (thread == 0) s.turn.begin(32 * WARPS);
}

INLINE Places begin_places(SpreadShared &s, const Lane &c, int lane, int warp) {
    int quarter = lane % 4, half = lane / 4 % 2, group = lane / 8;
    Table &table = s.table[warp];
    Places places = {table.dt + quarter * TABLE_ROW + c.step,
                     (io_t *)(table.pairs[0] + c.step % 2 * (ODD + 1) + quarter * 8 + c.step / 4 * 2) + c.step / 2 % 2,
                     table.dt + group * TABLE_ROW,
                     table.pairs[0] + group * 8 + (quarter % 2 != half ? NONE : quarter / 2 * ODD)};
    // Rows as products of two steps take them, (step, half), with zeros for the steps of the next two, and the other way round.
    int two = projection(4 * group + lane % 2 * 2 + half, lane / 2 % 2);
#pragma unroll
    for (int i = 0; i < 2; ++i) places.turned[i] = 3 * TILE + (lane % 2 == i ? two : SEGMENT * STATE + (i ? 0 : 32));
    places.rows = 3 * TILE + projection(group / 2 * 8 + lane % 8, group % 2);
    places.terms = term(warp, lane / 4) + quarter * 2;
    return places;
}

INLINE Lane begin_lane(const SpreadShared &s, const Direction &d, const Place &at) {
    int lane = at.lane % 32, warp = at.lane / 32, first = at.first_channel + warp * SPREAD;
    Lane c = {};
    c.step = lane / 4;
    c.cell = c.step * PITCH + warp * SPREAD + lane % 4;
    int channel = first + lane / 8, own = first + lane % 4;
#pragma unroll
    for (int n = 0; n < 2; ++n) c.rate[n] = channel < at.channels ? d.A[(i64)channel * STATE + lane % 8 * 2 + n] * LOG2E : 0.f;
    c.D = own < at.channels ? d.D[own] : 0.f;
    c.bias = own < at.channels ? d.bias[own] : 0.f;
    // Read from shared memory: the compiler would make them anew before every product if it knew what they are.
#pragma unroll
    for (int i = 0; i < 8; ++i) c.ones[i / 4][i % 4] = s.one[c.step][i / 4 * 4 + i % 2 * 2 + i / 2 % 2];
    return c;
}

INLINE void end_lane(const Lane &c, float *parameters, const Place &at) {
    int lane = at.lane % 32, first = at.first_channel + at.lane / 32 * SPREAD, channel = first + lane / 8, own = first + lane % 4;
    float dD = c.dD, dbias = c.dbias;
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) {
        dD += shuffle_xor(dD, mask);
        dbias += shuffle_xor(dbias, mask);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) store_if(channel < at.channels, parameters + (i64)(lane % 8 * 2 + n) * at.channels + channel, c.dA[n]);
    store_if(own < at.channels && lane < SPREAD, parameters + (i64)STATE * at.channels + own, dD);
    store_if(own < at.channels && lane < SPREAD, parameters + (i64)(STATE + 1) * at.channels + own, dbias);
}

// What the products of a segment take, but for rows.
INLINE void hear_segment(Walk &w, const Stage &stage, const Places &places) {
    hear(w.dtu, places.pairs);
#pragma unroll
    for (int i = 0; i < 2; ++i) load_matrices_transposed(w.B[i], (const io_t *)&stage + places.turned[i]);
#pragma unroll
    for (int i = 0; i < 2; ++i) load_matrices_transposed(w.C[i], (const io_t *)&stage + ROWS + places.turned[i]);
    hear(w.dy, places.pairs + PAIRS);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) scan_spread_backward(const __grid_constant__ BackwardArgs p) {
    extern __shared__ __align__(16) char shared[];
    SpreadShared &s = *(SpreadShared *)shared;
    Place at = {(int)blockIdx.y, (int)blockIdx.x * LANES, (int)threadIdx.x, p.length, p.channels};
    const int way = blockIdx.z, warp = at.lane / 32, lane = at.lane % 32, segments = (p.length + SEGMENT - 1) / SEGMENT;
    const Direction &d = p.direction[way];
    const bool backward = way == 1 || p.reverse;
    const i64 row = (i64)way * p.batch + at.batch;
    Steps steps = steps_of(backward ? 0 : (segments - 1) * SEGMENT, SEGMENT, backward);
    Move<const io_t *> operands = move_operands(p, d, steps, at);
    Move<io_t *> results = move_results(p, way, steps, at);
    Ring<STAGES> now = {0}, fed = {0}, done = {0};
    Ring<BUFFERS> made = {0}, added = {0};
    auto feed = [&](int round) {
        if (round < segments && operands.cell < (int)(sizeof(Stage) / sizeof(io_t)))
            copy_async((io_t *)&s.stage[fed.at] + operands.cell, operands.at, operands.left > 0);
        operands.advance();
        fed.advance();
        copy_commit();
    };
    for (int round = 0; round < 3; ++round) feed(round);
    int channel = min(at.first_channel + warp * SPREAD + lane / 8, p.channels - 1);
    const saved_t *state = p.states + ((row * segments + (backward ? 0 : segments - 1)) * p.channels + channel) * STATE + lane % 8 * 2;
    u32 entering = *(const u32 *)state;
    Adder adder = begin_adder(p.projections + ((i64)blockIdx.x * p.directions * p.batch + row) * p.length * 2 * STATE, steps, at);
    auto finish = [&] {
        add_terms(adder, s.terms[added.at][0], s.stage[done.at], steps.sign, lane % 4);
        store_if(results.left > 0, (uint4 *)results.at, *(const uint4 *)(s.results[added.at][0] + results.cell));
        results.advance();
        done.advance();
        added.advance();
    };
    clear(s, at.lane);
    copy_wait_but<2>();
    __syncthreads();
    Lane c = begin_lane(s, d, at);
    const Places places = begin_places(s, c, lane, warp);
#pragma unroll 1
    for (int round = 0; round < segments; ++round) {
        // All warps have begun the round before: what they made in the one before that is there, and what this one takes the place of
        // has been added up.
        if (round > 0) s.turn.wait(round - 1);
        __syncwarp();  // the table has been read
        Stage &stage = s.stage[now.at];
        const float2 u = tell(stage, places, c, steps, at);
        feed(round + 3);
        if (round > 1) finish();
        copy_wait_but<2>();
        __syncwarp();
        s.turn.arrive();
        Walk w;
        io_t *terms = s.terms[made.at][0] + places.terms, *made_now = s.results[made.at][0];
        hear_segment(w, stage, places);
        replay(w, c, entering, places.dt, terms + TERMS);
        if (round + 1 < segments) entering = *(const u32 *)(state -= (i64)steps.sign * p.channels * STATE);
        load_matrices(w.rows, (const io_t *)&stage + places.rows);
        walk_octet(w, c, 8, u.y, places, stage.tile[2] + c.cell, terms, made_now);
        walk_octet(w, c, 0, u.x, places, stage.tile[2] + c.cell, terms, made_now);
        now.advance();
        made.advance();
        steps.start -= SEGMENT * steps.sign;
    }
    __syncthreads();
    if (segments > 1) finish();
    finish();
    end_lane(c, p.parameters + ((i64)at.batch * p.directions + way) * (STATE + 2) * p.channels, at);
}
