// The depthwise convolutions of a mixer, each followed by SiLU, from one reading of x:
//
//     f_t = bf + sum_k wf_k x_{t-(W-1)+k}      b_t = bb + sum_k wb_k x_{t+(W-1)-k}      zeros outside the sequence
//
// Compile-time: IO, WIDTH W, PACK channels of a thread, THREADS, TILE steps of a thread, WAYS with bit 0 for f and bit 1 for b. A
// thread walks its steps with the last inputs in registers, AHEAD steps at a time, whose loads are issued together. Steps that
// reach neither an end of the sequence nor one of the tile (INSIDE) need no comparisons.

#define AHEAD 8
#define COUNT (WAYS == 3 ? 2 : 1)

struct ConvArgs {
    const io_t *x;  // (batch, length, channels)
    i64 x_batch, x_time;
    const float *weight[2], *bias[2];  // of f and b: (channels, WIDTH) and (channels)
    io_t *out[2];                      // (batch, length, channels)
    const io_t *dout[2];               // backward only, as all below
    io_t *dx;
    float *parameters;  // (batch * tiles, ways, WIDTH + 1, channels): parts of dw and, last, db
    int length, channels;
};

struct alignas(PACK * sizeof(io_t)) Pack {
    io_t value[PACK];
};

INLINE bool has(int way) { return WAYS >> way & 1; }

INLINE void load_pack(float (&to)[PACK], const io_t *base, i64 stride, int time, int length) {
    Pack pack = *(const Pack *)(base + min(max(time, 0), length - 1) * stride);
#pragma unroll
    for (int c = 0; c < PACK; ++c) to[c] = time >= 0 && time < length ? widen(pack.value[c]) : 0.f;
}

// The AHEAD steps from ``time`` on.
template <bool INSIDE>
INLINE void load_packs(float (&to)[AHEAD][PACK], const io_t *base, i64 stride, int time, int length) {
    const io_t *from = base + time * stride;
#pragma unroll
    for (int i = 0; i < AHEAD; ++i, from += stride) {
        if (!INSIDE) {
            load_pack(to[i], base, stride, time + i, length);
            continue;
        }
        Pack pack = *(const Pack *)from;
#pragma unroll
        for (int c = 0; c < PACK; ++c) to[i][c] = widen(pack.value[c]);
    }
}

INLINE void store_pack(io_t *to, const float (&from)[PACK]) {
    Pack pack;
#pragma unroll
    for (int c = 0; c < PACK; ++c) pack.value[c] = narrow(from[c]);
    *(Pack *)to = pack;
}

template <int SIZE>
INLINE void shift(float (&window)[SIZE][PACK], const float (&last)[PACK]) {
#pragma unroll
    for (int c = 0; c < PACK; ++c) {
#pragma unroll
        for (int i = 0; i + 1 < SIZE; ++i) window[i][c] = window[i + 1][c];
        window[SIZE - 1][c] = last[c];
    }
}

struct Taps {
    float weight[2][WIDTH][PACK], bias[2][PACK];
};

INLINE void load_taps(Taps &taps, const ConvArgs &p, int channel) {
#pragma unroll
    for (int way = 0; way < 2; ++way) {
        if (!has(way)) continue;
#pragma unroll
        for (int c = 0; c < PACK; ++c) {
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) taps.weight[way][k][c] = p.weight[way][(channel + c) * WIDTH + k];
            taps.bias[way][c] = p.bias[way][channel + c];
        }
    }
}

// What one thread works on.
struct Tile {
    const io_t *x;
    i64 out;  // where its channels of step 0 lie in the contiguous tensors
    int begin, end;
};

INLINE Tile tile_of(const ConvArgs &p, int channel) {
    int begin = blockIdx.y * TILE;
    return {p.x + blockIdx.z * p.x_batch + channel, (i64)blockIdx.z * p.length * p.channels + channel, begin, min(begin + TILE, p.length)};
}

template <bool INSIDE>
INLINE void forward_steps(const ConvArgs &p, const Tile &tile, const Taps &taps, float (&window)[2 * WIDTH - 1][PACK], int first) {
    float later[AHEAD][PACK];
    load_packs<INSIDE>(later, tile.x, p.x_time, first + WIDTH - 1, p.length);
    i64 out = tile.out + (i64)first * p.channels;
#pragma unroll
    for (int i = 0; i < AHEAD; ++i, out += p.channels) {
        shift(window, later[i]);
        if (!INSIDE && first + i >= tile.end) continue;
#pragma unroll
        for (int way = 0; way < 2; ++way) {
            if (!has(way)) continue;
            float y[PACK];
#pragma unroll
            for (int c = 0; c < PACK; ++c) {
                y[c] = taps.bias[way][c];
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) y[c] += taps.weight[way][k][c] * window[way ? 2 * (WIDTH - 1) - k : k][c];
                y[c] *= sigmoid(y[c]);
            }
            store_pack(p.out[way] + out, y);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) conv_forward(const __grid_constant__ ConvArgs p) {
    int channel = (blockIdx.x * THREADS + threadIdx.x) * PACK;
    if (channel >= p.channels) return;
    Tile tile = tile_of(p, channel);
    Taps taps;
    load_taps(taps, p, channel);
    float window[2 * WIDTH - 1][PACK];  // x from t - (W - 1) to t + (W - 1)
#pragma unroll
    for (int i = 1; i < 2 * WIDTH - 1; ++i) load_pack(window[i], tile.x, p.x_time, tile.begin - WIDTH + i, p.length);
    for (int first = tile.begin; first < tile.end; first += AHEAD) {
        if (first + AHEAD <= tile.end && first + AHEAD + WIDTH - 1 <= p.length) forward_steps<true>(p, tile, taps, window, first);
        else forward_steps<false>(p, tile, taps, window, first);
    }
}

// The derivative of SiLU at x.
INLINE float silu_slope(float x) {
    float s = sigmoid(x);
    return s * (1.f + x * (1.f - s));
}

// The last inputs, and the last gradients before SiLU of each direction.
struct Windows {
    float x[WIDTH][PACK], g[2][WIDTH][PACK];
};

// At step s the gradients before SiLU become known at s (forward) and t = s - (W - 1) (backward), and with them dx_t.
template <bool INSIDE>
INLINE void backward_steps(const ConvArgs &p, const Tile &tile, const Taps &taps, Windows &last, Taps &grad, int first) {
    float later[AHEAD][PACK], d[2][AHEAD][PACK];
    load_packs<INSIDE>(later, tile.x, p.x_time, first, p.length);
#pragma unroll
    for (int way = 0; way < 2; ++way)
        if (has(way)) load_packs<INSIDE>(d[way], p.dout[way] + tile.out, p.channels, way ? first - (WIDTH - 1) : first, p.length);
    i64 out = tile.out + (i64)(first - (WIDTH - 1)) * p.channels;
#pragma unroll
    for (int i = 0; i < AHEAD; ++i, out += p.channels) {
        int s = first + i, t = s - (WIDTH - 1);
        bool own_t = INSIDE || (t >= tile.begin && t < tile.end);
        float dx[PACK] = {};
        shift(last.x, later[i]);
#pragma unroll
        for (int way = 0; way < 2; ++way) {
            if (!has(way)) continue;
            bool own = INSIDE || (way ? own_t : s < tile.end);
#pragma unroll
            for (int c = 0; c < PACK; ++c) {
                float y = taps.bias[way][c];
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) y += taps.weight[way][k][c] * last.x[way ? WIDTH - 1 - k : k][c];
                d[way][i][c] *= silu_slope(y);
            }
            shift(last.g[way], d[way][i]);
#pragma unroll
            for (int c = 0; c < PACK; ++c) {
                float g = own ? d[way][i][c] : 0.f;
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) {
                    dx[c] += taps.weight[way][k][c] * last.g[way][way ? k : WIDTH - 1 - k][c];
                    grad.weight[way][k][c] += g * last.x[way ? WIDTH - 1 - k : k][c];
                }
                grad.bias[way][c] += g;
            }
        }
        if (own_t) store_pack(p.dx + out, dx);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) conv_backward(const __grid_constant__ ConvArgs p) {
    int channel = (blockIdx.x * THREADS + threadIdx.x) * PACK;
    if (channel >= p.channels) return;
    Tile tile = tile_of(p, channel);
    Taps taps, grad = {};
    load_taps(taps, p, channel);
    Windows last = {};
#pragma unroll
    for (int i = 1; i < WIDTH; ++i) load_pack(last.x[i], tile.x, p.x_time, tile.begin - WIDTH + i, p.length);
    for (int first = tile.begin; first < tile.end + WIDTH - 1; first += AHEAD) {
        if (first > tile.begin && first + AHEAD <= tile.end) backward_steps<true>(p, tile, taps, last, grad, first);
        else backward_steps<false>(p, tile, taps, last, grad, first);
    }
    float *parameters = p.parameters + ((i64)blockIdx.z * gridDim.y + blockIdx.y) * COUNT * (WIDTH + 1) * p.channels + channel;
#pragma unroll
    for (int way = 0; way < 2; ++way) {
        if (!has(way)) continue;
#pragma unroll
        for (int c = 0; c < PACK; ++c) {
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) parameters[(i64)k * p.channels + c] = grad.weight[way][k][c];
            parameters[(i64)WIDTH * p.channels + c] = grad.bias[way][c];
        }
        parameters += (WIDTH + 1) * p.channels;
    }
}
