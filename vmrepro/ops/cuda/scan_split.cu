// What lets a scan be cut in time where channels and sequences alone would leave the GPU idle.
//
// A piece of time acts on the state as h -> exp(A sum dt) h + s. scan_summary and scan_summary_gradient give s, from zero, and sum dt of
// each piece, ``finer`` of which make a split; scan_chain then gives the state entering each split. For the gradient the same holds
// backwards, with g -> a (g + C dy).

// Blocks of a summary on a multiprocessor, which bound its registers.
#define SUMMARY_BLOCKS (STATE <= 16 ? 4 : 1)

struct SummaryArgs {
    Direction direction[2];
    const io_t *dy;  // (batch, length, channels), for the gradient
    float *state;    // (directions, pieces, batch, channels, STATE)
    float *time;     // (directions, pieces, batch, channels): sum of dt
    int batch, length, channels, directions, reverse, finer;
    int piece;  // segments of a block; the grid's last axis is (pieces of all splits but one, directions)
};

struct SummaryShared {
    io_t x[2][SEGMENT * LANES], delta[2][SEGMENT * LANES];
    io_t raw[SEGMENT * 2 * STATE];
    float projections[2][SEGMENT * 2 * STATE];
};

template <bool GRADIENT>
INLINE void stage_summary(const SummaryArgs &p, const Direction &d, SummaryShared &s, int buffer, Steps steps, const Place &at) {
    stage_projections<SEGMENT>(s.raw, d, steps, at);
    stage<SEGMENT>(s.delta[buffer], d.delta, d.delta_batch, d.delta_time, steps, at);
    if (GRADIENT) stage<SEGMENT>(s.x[buffer], p.dy, (i64)p.length * p.channels, p.channels, steps, at);
    else stage<SEGMENT>(s.x[buffer], d.u, d.u_batch, d.u_time, steps, at);
}

template <bool GRADIENT>
INLINE void summary(const SummaryArgs &p, SummaryShared &s) {
    int way = blockIdx.z % p.directions, lane = threadIdx.x, pieces = gridDim.z / p.directions + p.finer;
    Place at = {(int)blockIdx.y, (int)blockIdx.x * LANES, lane, p.length, p.channels};
    const Direction &d = p.direction[way];
    int channel = at.first_channel + lane;
    // The gradient runs against the scan.
    bool inside = channel < p.channels, backward = (way == 1 || p.reverse) != GRADIENT;
    int limit = inside ? p.length : 0;
    float h[STATE] = {}, A2[STATE], bias = inside ? d.bias[channel] : 0.f, total = 0.f;
    load_decay_rates(A2, d.A, channel, inside);

    // The split visited last hands nothing on.
    int piece = blockIdx.z / p.directions + (backward ? p.finer : 0), segments = (p.length + SEGMENT - 1) / SEGMENT;
    int begin = piece * p.piece, end = min(begin + p.piece, segments);  // past the last segment there is nothing in a piece
    int segment = backward ? end - 1 : begin, step = backward ? -1 : 1, buffer = 0;
    if (begin < end) stage_summary<GRADIENT>(p, d, s, 0, steps_of(segment * SEGMENT, SEGMENT, backward), at);
    for (int left = end - begin; left > 0; --left, segment += step, buffer ^= 1) {
        copy_wait();
        widen_projections<SEGMENT>(s.projections[buffer], s.raw, lane);
        __syncthreads();
        if (left > 1) stage_summary<GRADIENT>(p, d, s, buffer ^ 1, steps_of((segment + step) * SEGMENT, SEGMENT, backward), at);
        int time = steps_of(segment * SEGMENT, SEGMENT, backward).start;
#pragma unroll (256 / STATE)
        for (int j = 0; j < SEGMENT; ++j, time += step) {
            float dt = step_size(s.delta[buffer][j * LANES + lane], bias, time < limit), x = widen(s.x[buffer][j * LANES + lane]);
            const float *B = s.projections[buffer] + j * 2 * STATE, *C = B + STATE;
            total += dt;
            if (!GRADIENT) {
                advance<8>(h, A2, dt, dt * x, B);
                continue;
            }
            float decay[STATE];
            decays(decay, A2, dt);
#pragma unroll
            for (int n = 0; n < STATE; ++n) h[n] = decay[n] * (h[n] + C[n] * x);
        }
    }
    if (!inside) return;
    i64 row = (((i64)way * pieces + piece) * p.batch + at.batch) * p.channels + channel;
    p.time[row] = total;
#pragma unroll
    for (int n = 0; n < STATE; ++n) p.state[row * STATE + n] = h[n];
}

extern "C" __global__ void __launch_bounds__(LANES, SUMMARY_BLOCKS) scan_summary(const __grid_constant__ SummaryArgs p) {
    extern __shared__ __align__(16) char shared[];
    summary<false>(p, *(SummaryShared *)shared);
}

extern "C" __global__ void __launch_bounds__(LANES, SUMMARY_BLOCKS) scan_summary_gradient(const __grid_constant__ SummaryArgs p) {
    extern __shared__ __align__(16) char shared[];
    summary<true>(p, *(SummaryShared *)shared);
}

#define CHAIN 8  // pieces that a thread reads ahead

struct ChainArgs {
    const float *A[2];          // (channels, STATE) of each direction
    const float *start;         // (batch, channels, STATE): what enters the first split, of one direction; or null for 0
    const float *time, *state;  // as in SummaryArgs
    float *entering;            // (directions, splits, batch, channels, STATE)
    int batch, channels, splits, finer, descending;  // descending: bit w set where direction w visits the last split first
};

extern "C" __global__ void __launch_bounds__(256) scan_chain(const __grid_constant__ ChainArgs p) {
    int i = blockIdx.x * 256 + threadIdx.x, batch = blockIdx.y, way = blockIdx.z;
    if (i >= p.channels * STATE) return;
    bool descending = p.descending >> way & 1;
    float rate = p.A[way][i] * LOG2E, h = p.start ? p.start[(i64)batch * p.channels * STATE + i] : 0.f;
    i64 pitch = (i64)p.batch * p.channels, from = (i64)way * p.splits, to = from + (descending ? p.splits - 1 : 0);
    from = (from * p.finer + (descending ? p.splits * p.finer - 1 : 0)) * pitch + (i64)batch * p.channels;
    to = to * pitch + (i64)batch * p.channels;
    if (descending) pitch = -pitch;
    // What the last split hands on is not known: what is read in its place goes nowhere.
    const int count = (p.splits - 1) * p.finer;
    int left = 0;  // pieces before the next split
    for (int first = 0; first <= count; first += CHAIN) {
        float time[CHAIN], added[CHAIN];
#pragma unroll
        for (int k = 0; k < CHAIN; ++k) {
            i64 row = from + min(k, count - 1 - first) * pitch;
            time[k] = p.time[row + i / STATE];
            added[k] = p.state[row * STATE + i];
        }
#pragma unroll
        for (int k = 0; k < CHAIN; ++k, --left) {
            if (left == 0) {
                p.entering[to * STATE + i] = h;
                to += pitch;
                left = p.finer;
            }
            if (first + k >= count) break;
            h = exp2_fast(rate * time[k]) * h + added[k];
        }
        from += CHAIN * pitch;
    }
}
