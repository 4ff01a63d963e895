// The depthwise convolutions of a mixer, each followed by SiLU, from one reading of x:
//
//     f_t = bf + sum_k wf_k x_{t-(W-1)+k}      b_t = bb + sum_k wb_k x_{t+(W-1)-k}      zeros outside the sequence
//
// Compile-time: IO, WIDTH W, PACK channels of a thread, COLUMN threads side by side of THREADS, TILE steps of a thread, WAYS with bit 0
// for f and bit 1 for b. A thread walks its steps with the last inputs in registers, AHEAD steps at a time, whose loads are issued
// together, in the backward pass while the steps before them are computed. Steps that reach neither an end of the sequence nor one of
// the tile (INSIDE) need no comparisons. PRODUCT: of a product whose result is added to the gradients of f and b, the numbers of a
// step, or 0 where there is none; it runs on the tensor cores.

#define COUNT (WAYS == 3 ? 2 : 1)

struct ConvArgs {
    const io_t *x;  // (batch, length, channels)
    i64 x_batch, x_time;
    i64 out_batch, out_time;  // of what is written, out or dx
    const float *weight[2], *bias[2];  // of f and b: (channels, WIDTH) and (channels)
    io_t *out[2];                      // (batch, length, channels), alike in strides
    const io_t *dout[2];               // backward only, as all below
    io_t *dx;
    float *parameters;  // (batch * tiles, ways, WIDTH + 1, channels): parts of dw and, last, db
    const io_t *left[2], *right[2];  // of the products, (batch, length, PRODUCT) and (PRODUCT, channels)
    int length, channels, tiles;
};

struct alignas(PACK * sizeof(io_t)) Pack {
    io_t value[PACK];
};

INLINE bool has(int way) { return WAYS >> way & 1; }

INLINE int channel_of() { return (blockIdx.x * COLUMN + threadIdx.x % COLUMN) * PACK; }

// The AHEAD steps from ``time`` on, as they come; what lies outside the sequence is something else.
template <bool INSIDE>
INLINE void load_packs(Pack (&to)[AHEAD], const io_t *base, i64 stride, int time, int length) {
    const io_t *from = base + time * stride;
#pragma unroll
    for (int i = 0; i < AHEAD; ++i, from += stride)
        to[i] = *(const Pack *)(INSIDE ? from : base + min(max(time + i, 0), length - 1) * stride);
}

template <bool INSIDE>
INLINE void widen_pack(float (&to)[PACK], const Pack &pack, int time, int length) {
#pragma unroll
    for (int c = 0; c < PACK; ++c) to[c] = INSIDE || (time >= 0 && time < length) ? widen(pack.value[c]) : 0.f;
}

INLINE void load_pack(float (&to)[PACK], const io_t *base, i64 stride, int time, int length) {
    widen_pack<false>(to, *(const Pack *)(base + min(max(time, 0), length - 1) * stride), time, length);
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

// What one thread works on; nothing where it begins past the end.
struct Tile {
    const io_t *x;
    i64 out, dout;  // where its channels of step 0 lie in what is written, and in dout, which is contiguous
    int begin, end;
};

INLINE Tile tile_of(const ConvArgs &p, int channel) {
    int begin = (blockIdx.y * (THREADS / COLUMN) + threadIdx.x / COLUMN) * TILE;
    i64 out = blockIdx.z * p.out_batch + channel, dout = (i64)blockIdx.z * p.length * p.channels + channel;
    return {p.x + blockIdx.z * p.x_batch + channel, out, dout, begin, min(begin + TILE, p.length)};
}

template <bool INSIDE>
INLINE void forward_steps(const ConvArgs &p, const Tile &tile, const Taps &taps, float (&window)[2 * WIDTH - 1][PACK], int first) {
    Pack later[AHEAD];
    load_packs<INSIDE>(later, tile.x, p.x_time, first + WIDTH - 1, p.length);
    i64 out = tile.out + first * p.out_time;
#pragma unroll
    for (int i = 0; i < AHEAD; ++i, out += p.out_time) {
        float x[PACK];
        widen_pack<INSIDE>(x, later[i], first + i + WIDTH - 1, p.length);
        shift(window, x);
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
    int channel = channel_of();
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

#if !PRODUCT
struct ConvShared {};
#else
static_assert(IO == 0 && PACK == 2 && WAYS == 3, "a warp takes 64 channels in bf16");

#define STEPS 16                                   // of one product
#define DEPTH ((PRODUCT + 15) / 16 * 16)           // filled up with zeros
#define RIGHT_PITCH (COLUMN * PACK + 8)            // of rows in shared memory, in numbers: eight of them then lie in different banks
#define SUM_PITCH (32 * PACK + 8)

struct ConvShared {
    io_t right[2][DEPTH * RIGHT_PITCH], sum[THREADS / 32][2][STEPS * SUM_PITCH];
};
static_assert(sizeof(ConvShared) == SHARED_BYTES, "fused.py counts the bytes of ConvShared otherwise");

INLINE void stage_right(const ConvArgs &p, ConvShared &s) {
    const int pieces = COLUMN * PACK / 8, piece = threadIdx.x % pieces * 8;
#pragma unroll
    for (int way = 0; way < 2; ++way)
        for (int row = threadIdx.x / pieces; row < DEPTH; row += THREADS / pieces) {
            bool valid = row < PRODUCT;
            const io_t *from = p.right[way] + (i64)(valid ? row : 0) * p.channels + blockIdx.x * COLUMN * PACK + piece;
            copy_async(s.right[way] + row * RIGHT_PITCH + piece, from, valid);
        }
    copy_wait();
    __syncthreads();
}

// What is added to the gradients of STEPS steps, in 64 channels, those of f from step ``first`` on and those of b as much later as
// backward_steps reads them; 0 outside the sequence.
INLINE void multiply_steps(const ConvArgs &p, ConvShared &s, int first) {
    const int lane = threadIdx.x % 32, column = threadIdx.x % COLUMN / 32 * 32 * PACK;
    __syncwarp();
#pragma unroll 1
    for (int way = 0; way < 2; ++way) {
        const int time = first - (way ? WIDTH - 1 : 0) + lane / 4;
        const io_t *left = p.left[way] + ((i64)blockIdx.z * p.length + time) * PRODUCT + lane % 4 * 2;
        const io_t *right = s.right[way] + (lane / 8 % 2 * 8 + lane % 8) * RIGHT_PITCH + column + lane / 16 * 8;
        io_t *to = s.sum[threadIdx.x / 32][way] + lane / 4 * SUM_PITCH + lane % 4 * 2;
        u32 a[DEPTH / 16][4];
#pragma unroll
        for (int k = 0; k < DEPTH / 16; ++k) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int at = time + i % 2 * 8;
                bool valid = at >= 0 && at < p.length && k * 16 + i / 2 * 8 < PRODUCT;
                a[k][i] = valid ? *(const u32 *)(left + i % 2 * 8 * PRODUCT + k * 16 + i / 2 * 8) : 0;
            }
        }
#pragma unroll
        for (int j = 0; j < 4 * PACK; j += 2) {
            float sum[2][4] = {};
#pragma unroll
            for (int k = 0; k < DEPTH / 16; ++k) {
                u32 b[4];
                load_matrices_transposed(b, right + k * 16 * RIGHT_PITCH + j * 8);
                multiply_bf16(sum[0], a[k], b[0], b[1]);
                multiply_bf16(sum[1], a[k], b[2], b[3]);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
                *(u32 *)(to + i % 2 * 8 * SUM_PITCH + (j + i / 2) * 8) = floats_to_bf16x2(sum[i / 2][i % 2 * 2], sum[i / 2][i % 2 * 2 + 1]);
        }
    }
    __syncwarp();
}

// Adds the product of row ``row``.
INLINE void add_product(float (&d)[PACK], const ConvShared &s, int way, int row) {
    Pack pack = *(const Pack *)(s.sum[threadIdx.x / 32][way] + row * SUM_PITCH + threadIdx.x % 32 * PACK);
#pragma unroll
    for (int c = 0; c < PACK; ++c) d[c] += widen(pack.value[c]);
}
#endif

// The last inputs, and the last gradients before SiLU of each direction.
struct Windows {
    float x[WIDTH][PACK], g[2][WIDTH][PACK];
};

// What AHEAD steps read: inputs, and gradients of f and, earlier by WIDTH - 1, of b.
struct Reads {
    Pack x[AHEAD], d[2][AHEAD];
};

template <bool INSIDE>
INLINE void load_reads(Reads &reads, const ConvArgs &p, const Tile &tile, int first) {
    load_packs<INSIDE>(reads.x, tile.x, p.x_time, first, p.length);
#pragma unroll
    for (int way = 0; way < 2; ++way)
        if (has(way)) load_packs<INSIDE>(reads.d[way], p.dout[way] + tile.dout, p.channels, way ? first - (WIDTH - 1) : first, p.length);
}

// Whether the AHEAD steps from ``first`` on reach neither an end of the sequence nor one of the tile.
INLINE bool inside(const Tile &tile, int first) { return first > tile.begin && first + AHEAD <= tile.end; }

// At a step, ``now``, the gradients before SiLU become known there (forward) and at t = now - (W - 1) (backward), and with them dx_t.
template <bool INSIDE>
INLINE void backward_steps(const ConvArgs &p, const ConvShared &s, const Tile &tile, const Taps &taps, Windows &last, Taps &grad,
                           const Reads &reads, int first) {
    i64 out = tile.out + (first - (WIDTH - 1)) * p.out_time;
#pragma unroll
    for (int i = 0; i < AHEAD; ++i, out += p.out_time) {
        int now = first + i, t = now - (WIDTH - 1);
        bool own_t = INSIDE || (t >= tile.begin && t < tile.end);
        float dx[PACK] = {}, x[PACK];
        widen_pack<INSIDE>(x, reads.x[i], now, p.length);
        shift(last.x, x);
#pragma unroll
        for (int way = 0; way < 2; ++way) {
            if (!has(way)) continue;
            bool own = INSIDE || (way ? own_t : now < tile.end);
            float d[PACK];
            widen_pack<INSIDE>(d, reads.d[way][i], way ? t : now, p.length);
#if PRODUCT
            add_product(d, s, way, (first - tile.begin) % STEPS + i);
#endif
#pragma unroll
            for (int c = 0; c < PACK; ++c) {
                float y = taps.bias[way][c];
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) y += taps.weight[way][k][c] * last.x[way ? WIDTH - 1 - k : k][c];
                d[c] *= silu_slope(y);
            }
            shift(last.g[way], d);
#pragma unroll
            for (int c = 0; c < PACK; ++c) {
                float g = own ? d[c] : 0.f;
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

extern "C" __global__ void __launch_bounds__(THREADS, IO ? 1 : 512 / THREADS) conv_backward(const __grid_constant__ ConvArgs p) {
    extern __shared__ __align__(16) char shared[];
    ConvShared &s = *(ConvShared *)shared;
    int channel = channel_of();
#if PRODUCT
    stage_right(p, s);
#endif
    Tile tile = tile_of(p, channel);
    if (channel >= p.channels || tile.begin >= p.length) return;
    Taps taps, grad = {};
    load_taps(taps, p, channel);
    Windows last = {};
#pragma unroll
    for (int i = 1; i < WIDTH; ++i) load_pack(last.x[i], tile.x, p.x_time, tile.begin - WIDTH + i, p.length);
    Reads reads, next;
    load_reads<false>(reads, p, tile, tile.begin);
    for (int first = tile.begin; first < tile.end + WIDTH - 1; first += AHEAD) {
        // What comes next is read while these steps are computed.
        if (inside(tile, first + AHEAD)) load_reads<true>(next, p, tile, first + AHEAD);
        else load_reads<false>(next, p, tile, first + AHEAD);
#if PRODUCT
        if ((first - tile.begin) % STEPS == 0) multiply_steps(p, s, first);
#endif
        if (inside(tile, first)) backward_steps<true>(p, s, tile, taps, last, grad, reads, first);
        else backward_steps<false>(p, s, tile, taps, last, grad, reads, first);
        reads = next;
    }
    float *parameters = p.parameters + ((i64)blockIdx.z * p.tiles + tile.begin / TILE) * COUNT * (WIDTH + 1) * p.channels + channel;
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
