// Residual sum and RMSNorm in one reading: stream = residual + hidden, xhat = stream * scale with
// scale = 1 / sqrt(mean(stream^2) + eps), normed = xhat * weight. With v = weight * dnormed, the gradient of the stream is
//
//     scale * (v - xhat * mean(v * xhat)) + dstream
//
// Hidden may be scaled, sample by sample, before it is added: stochastic depth.
//
// Compile-time: IO, PIECES of 128 channels in a row, QUADS 1 where a lane takes four neighbouring channels, else strided ones;
// WEIGHTED 1 where the weight is the norm's affair, and the backward pass reads the stream, 0 where the product that follows has
// it: then normed is xhat, which the backward pass reads instead. A warp takes a row; WARPS warps a block.

#define WARPS 8

struct NormArgs {
    const io_t *hidden;     // (rows, channels)
    const float *residual;  // (rows, channels) or null
    const float *weight;    // (channels), only if WEIGHTED
    const float *keep;      // (samples): factor of hidden, or null for 1
    i64 sample_rows;        // rows of a sample
    io_t *normed;           // (rows, channels)
    float *stream;  // (rows, channels), or null where it is hidden unchanged
    float *scale;   // (rows)
    const io_t *dnormed;   // backward only, as all below
    const float *dstream;  // (rows, channels) or null
    io_t *dhidden;
    float *dresidual;  // or null
    float *dweight;    // (blocks, channels): parts, only if WEIGHTED
    i64 rows;
    float eps;
    int channels;
};

INLINE int channel_of(int piece, int k, int lane) { return piece * 128 + (QUADS ? lane * 4 + k : k * 32 + lane); }

template <typename Element>
struct alignas(4 * sizeof(Element)) Four {
    Element value[4];
};

INLINE float as_float(io_t x) { return widen(x); }
#if IO != 2
INLINE float as_float(float x) { return x; }
INLINE void from_float(io_t &to, float x) { to = narrow(x); }
#endif
INLINE void from_float(float &to, float x) { to = x; }

template <typename Element>
INLINE void load_row(float (&row)[PIECES][4], const Element *from, int channels, int lane) {
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) {
        if (QUADS) {
            Four<Element> four = {};
            if (channel_of(piece, 0, lane) < channels) four = *(const Four<Element> *)(from + channel_of(piece, 0, lane));
#pragma unroll
            for (int k = 0; k < 4; ++k) row[piece][k] = as_float(four.value[k]);
        } else {
#pragma unroll
            for (int k = 0; k < 4; ++k) row[piece][k] = channel_of(piece, k, lane) < channels ? as_float(from[channel_of(piece, k, lane)]) : 0.f;
        }
    }
}

template <typename Element>
INLINE void store_row(Element *to, const float (&row)[PIECES][4], int channels, int lane) {
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) {
        Four<Element> four;
#pragma unroll
        for (int k = 0; k < 4; ++k) from_float(four.value[k], row[piece][k]);
        if (QUADS) {
            if (channel_of(piece, 0, lane) < channels) *(Four<Element> *)(to + channel_of(piece, 0, lane)) = four;
        } else {
#pragma unroll
            for (int k = 0; k < 4; ++k)
                if (channel_of(piece, k, lane) < channels) to[channel_of(piece, k, lane)] = four.value[k];
        }
    }
}

INLINE float warp_sum(float x) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) norm_forward(const __grid_constant__ NormArgs p) {
    int lane = threadIdx.x % 32;
    i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / 32, at = row * p.channels;
    if (row >= p.rows) return;
    float x[PIECES][4], other[PIECES][4], squares = 0.f;
    load_row(x, p.hidden + at, p.channels, lane);
    if (p.residual) load_row(other, p.residual + at, p.channels, lane);
    float keep = p.keep ? p.keep[row / p.sample_rows] : 1.f;
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            x[piece][k] *= keep;
            if (p.residual) x[piece][k] += other[piece][k];
            squares += x[piece][k] * x[piece][k];
        }
    if (p.stream) store_row(p.stream + at, x, p.channels, lane);
    if (WEIGHTED) load_row(other, p.weight, p.channels, lane);
    float scale = rsqrtf(warp_sum(squares) / p.channels + p.eps);
    if (lane == 0) p.scale[row] = scale;
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece)
#pragma unroll
        for (int k = 0; k < 4; ++k) x[piece][k] *= WEIGHTED ? scale * other[piece][k] : scale;
    store_row(p.normed + at, x, p.channels, lane);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) norm_backward(const __grid_constant__ NormArgs p) {
    extern __shared__ __align__(16) char shared[];
    float *parts = (float *)shared;  // (WARPS, channels)
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float weight[PIECES][4], dweight[PIECES][4] = {};
    if (WEIGHTED) load_row(weight, p.weight, p.channels, lane);
    for (i64 row = (i64)blockIdx.x * WARPS + warp; row < p.rows; row += (i64)gridDim.x * WARPS) {
        i64 at = row * p.channels;
        float x[PIECES][4], d[PIECES][4], scale = p.scale[row], product = 0.f;
        if (WEIGHTED) load_row(x, p.stream + at, p.channels, lane);
        else load_row(x, p.normed + at, p.channels, lane);
        load_row(d, p.dnormed + at, p.channels, lane);
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece)
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                if (WEIGHTED) {
                    x[piece][k] *= scale;
                    dweight[piece][k] += d[piece][k] * x[piece][k];
                    d[piece][k] *= weight[piece][k];
                }
                product += d[piece][k] * x[piece][k];
            }
        product = warp_sum(product) / p.channels;
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece)
#pragma unroll
            for (int k = 0; k < 4; ++k) d[piece][k] = scale * (d[piece][k] - x[piece][k] * product);
        if (p.dstream) {
            load_row(x, p.dstream + at, p.channels, lane);
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece)
#pragma unroll
                for (int k = 0; k < 4; ++k) d[piece][k] += x[piece][k];
        }
        if (p.dresidual) store_row(p.dresidual + at, d, p.channels, lane);
        if (p.keep) {
            float keep = p.keep[row / p.sample_rows];
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece)
#pragma unroll
                for (int k = 0; k < 4; ++k) d[piece][k] *= keep;
        }
        store_row(p.dhidden + at, d, p.channels, lane);
    }
    if (!WEIGHTED) return;
    store_row(parts + warp * p.channels, dweight, p.channels, lane);
    __syncthreads();
    for (int c = threadIdx.x; c < p.channels; c += 32 * WARPS) {
        float sum = 0.f;
        for (int w = 0; w < WARPS; ++w) sum += parts[w * p.channels + c];
        p.dweight[(i64)blockIdx.x * p.channels + c] = sum;
    }
}
