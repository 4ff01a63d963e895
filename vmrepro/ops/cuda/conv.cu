// Both depthwise convolutions of a mixer, each followed by SiLU, from one reading of x:
//
//     f_t = bf + sum_k wf_k x_{t-(W-1)+k}      b_t = bb + sum_k wb_k x_{t+(W-1)-k}      zeros outside the sequence
//
// Compile-time: IO, WIDTH W, PACK channels of a thread, THREADS, TILE steps of a thread. A thread walks its steps with the last
// inputs in registers; loads of AHEAD steps are issued together.

#define AHEAD 8

struct ConvArgs {
    const io_t *x;  // (batch, length, channels)
    i64 x_batch, x_time;
    const float *weight_f, *bias_f, *weight_b, *bias_b;  // (channels, WIDTH) and (channels)
    io_t *out_f, *out_b;                                 // (batch, length, channels)
    const io_t *dout_f, *dout_b;                         // backward only, as all below
    io_t *dx;
    float *parameters;  // (batch * tiles, 2 * (WIDTH + 1), channels): parts of dwf, dbf, dwb, dbb
    int length, channels;
};

struct alignas(PACK * sizeof(io_t)) Pack {
    io_t value[PACK];
};

INLINE void load_pack(float (&to)[PACK], const io_t *base, i64 stride, int time, int length) {
    Pack pack = *(const Pack *)(base + min(max(time, 0), length - 1) * stride);
#pragma unroll
    for (int c = 0; c < PACK; ++c) to[c] = time >= 0 && time < length ? widen(pack.value[c]) : 0.f;
}

INLINE void store_pack(io_t *base, i64 stride, int time, const float (&from)[PACK]) {
    Pack pack;
#pragma unroll
    for (int c = 0; c < PACK; ++c) pack.value[c] = narrow(from[c]);
    *(Pack *)(base + time * stride) = pack;
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
    float f[WIDTH][PACK], b[WIDTH][PACK], bias_f[PACK], bias_b[PACK];
};

INLINE void load_taps(Taps &taps, const ConvArgs &p, int channel) {
#pragma unroll
    for (int c = 0; c < PACK; ++c) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            taps.f[k][c] = p.weight_f[(channel + c) * WIDTH + k];
            taps.b[k][c] = p.weight_b[(channel + c) * WIDTH + k];
        }
        taps.bias_f[c] = p.bias_f[channel + c];
        taps.bias_b[c] = p.bias_b[channel + c];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) conv_forward(const __grid_constant__ ConvArgs p) {
    int channel = (blockIdx.x * THREADS + threadIdx.x) * PACK, begin = blockIdx.y * TILE, end = min(begin + TILE, p.length);
    if (channel >= p.channels) return;
    const io_t *x = p.x + blockIdx.z * p.x_batch + channel;
    i64 out = (i64)blockIdx.z * p.length * p.channels + channel;
    Taps taps;
    load_taps(taps, p, channel);
    float window[2 * WIDTH - 1][PACK];  // x from t - (W - 1) to t + (W - 1)
#pragma unroll
    for (int i = 1; i < 2 * WIDTH - 1; ++i) load_pack(window[i], x, p.x_time, begin - WIDTH + i, p.length);
    for (int first = begin; first < end; first += AHEAD) {
        float later[AHEAD][PACK];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) load_pack(later[i], x, p.x_time, first + i + WIDTH - 1, p.length);
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            shift(window, later[i]);
            if (first + i >= end) continue;
            float f[PACK], b[PACK];
#pragma unroll
            for (int c = 0; c < PACK; ++c) {
                f[c] = taps.bias_f[c];
                b[c] = taps.bias_b[c];
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) {
                    f[c] += taps.f[k][c] * window[k][c];
                    b[c] += taps.b[k][c] * window[2 * (WIDTH - 1) - k][c];
                }
                f[c] *= sigmoid(f[c]);
                b[c] *= sigmoid(b[c]);
            }
            store_pack(p.out_f + out, p.channels, first + i, f);
            store_pack(p.out_b + out, p.channels, first + i, b);
        }
    }
}

// The derivative of SiLU at x.
INLINE float silu_slope(float x) {
    float s = sigmoid(x);
    return s * (1.f + x * (1.f - s));
}

// At step s the gradients before SiLU become known at s (forward) and t = s - (W - 1) (backward), and with them dx_t.
extern "C" __global__ void __launch_bounds__(THREADS) conv_backward(const __grid_constant__ ConvArgs p) {
    int channel = (blockIdx.x * THREADS + threadIdx.x) * PACK, begin = blockIdx.y * TILE, end = min(begin + TILE, p.length);
    if (channel >= p.channels) return;
    const io_t *x = p.x + blockIdx.z * p.x_batch + channel;
    i64 out = (i64)blockIdx.z * p.length * p.channels + channel;
    Taps taps, grad = {};
    load_taps(taps, p, channel);
    float window[WIDTH][PACK] = {}, gf[WIDTH][PACK] = {}, gb[WIDTH][PACK] = {};
#pragma unroll
    for (int i = 1; i < WIDTH; ++i) load_pack(window[i], x, p.x_time, begin - WIDTH + i, p.length);
    for (int first = begin; first < end + WIDTH - 1; first += AHEAD) {
        float later[AHEAD][PACK], df[AHEAD][PACK], db[AHEAD][PACK];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            load_pack(later[i], x, p.x_time, first + i, p.length);
            load_pack(df[i], p.dout_f + out, p.channels, first + i, p.length);
            load_pack(db[i], p.dout_b + out, p.channels, first + i - (WIDTH - 1), p.length);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            int s = first + i, t = s - (WIDTH - 1);
            shift(window, later[i]);
            float dx[PACK];
#pragma unroll
            for (int c = 0; c < PACK; ++c) {
                float f = taps.bias_f[c], b = taps.bias_b[c];
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) {
                    f += taps.f[k][c] * window[k][c];
                    b += taps.b[k][c] * window[WIDTH - 1 - k][c];
                }
                df[i][c] *= silu_slope(f);
                db[i][c] *= silu_slope(b);
            }
            shift(gf, df[i]);
            shift(gb, db[i]);
#pragma unroll
            for (int c = 0; c < PACK; ++c) {
                float own_f = s < end ? df[i][c] : 0.f, own_b = t >= begin && t < end ? db[i][c] : 0.f;
                dx[c] = 0.f;
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) {
                    dx[c] += taps.f[k][c] * gf[WIDTH - 1 - k][c] + taps.b[k][c] * gb[k][c];
                    grad.f[k][c] += own_f * window[k][c];
                    grad.b[k][c] += own_b * window[WIDTH - 1 - k][c];
                }
                grad.bias_f[c] += own_f;
                grad.bias_b[c] += own_b;
            }
            if (t >= begin && t < end) store_pack(p.dx + out, p.channels, t, dx);
        }
    }
    float *parameters = p.parameters + ((i64)blockIdx.z * gridDim.y + blockIdx.y) * 2 * (WIDTH + 1) * p.channels + channel;
#pragma unroll
    for (int c = 0; c < PACK; ++c) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            parameters[(i64)k * p.channels + c] = grad.f[k][c];
            parameters[(i64)(WIDTH + 1 + k) * p.channels + c] = grad.b[k][c];
        }
        parameters[(i64)WIDTH * p.channels + c] = grad.bias_f[c];
        parameters[(i64)(2 * WIDTH + 1) * p.channels + c] = grad.bias_b[c];
    }
}
