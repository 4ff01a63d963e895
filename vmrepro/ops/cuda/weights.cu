// The parameters of a block as its kernels and products want them, and the gradients of the matrices on their way back.
//
// Six matrices lie one after another, in the type of the products; two of them have rows and two have columns of zeros from ``rank``
// on, which the parameters do not have. The first of the six, in_proj, takes the weight w of the norm before it into its columns:
// what is packed is W = in_proj * w, and from its gradient come
//
//     d(in_proj)_ij = dW_ij w_j      dw_j = sum_i dW_ij in_proj_ij
//
// Compile-time: IO.

#define ROWS 8  // of in_proj, in a part of dw

struct Matrix {
    float *plain;  // without the gap
    i64 first;     // where it begins among the packed ones
    int rows, columns, row_gap, column_gap;
};

struct WeightsArgs {
    Matrix matrix[6];
    io_t *packed;
    const float *A_log[2];  // of each direction
    float *A;               // (2, rates)
    const float *norm_weight;  // w
    const float *in_proj;   // for dw
    float *parts;           // (parts, columns): of dw, to be added
    int rank, rates;
};

// Where an index lies without the gap, or -1 for one in it.
INLINE int without(int index, int begin, int gap) { return index < begin ? index : index < begin + gap ? -1 : index - gap; }

template <bool PACK>
INLINE void convert(const WeightsArgs &p) {
    const Matrix &m = p.matrix[blockIdx.y];
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= m.rows * m.columns) return;
    int row = without(i / m.columns, p.rank, m.row_gap), column = without(i % m.columns, p.rank, m.column_gap);
    bool present = row >= 0 && column >= 0;
    i64 at = present ? (i64)row * (m.columns - m.column_gap) + column : 0;
    float factor = PACK && blockIdx.y == 0 ? p.norm_weight[column] : 1.f;
    if (PACK) p.packed[m.first + i] = narrow(present ? m.plain[at] * factor : 0.f);
    else if (present) m.plain[at] = widen(p.packed[m.first + i]);
}

// The gradient of in_proj, a thread ROWS rows of a column, and with it a part of dw.
INLINE void unpack_in_proj(const WeightsArgs &p) {
    const Matrix &m = p.matrix[0];
    int i = blockIdx.x * 256 + threadIdx.x, column = i % m.columns, first = i / m.columns * ROWS;
    if (first >= m.rows) return;
    float weight = p.norm_weight[column], sum = 0.f;
#pragma unroll
    for (int row = first; row < first + ROWS; ++row) {
        if (row >= m.rows) break;
        i64 at = (i64)row * m.columns + column;
        float d = widen(p.packed[m.first + at]);
        m.plain[at] = d * weight;
        sum += d * p.in_proj[at];
    }
    p.parts[i] = sum;
}

extern "C" __global__ void __launch_bounds__(256) pack_weights(const __grid_constant__ WeightsArgs p) {
    if (blockIdx.y < 6) return convert<true>(p);
    int i = blockIdx.x * 256 + threadIdx.x, way = blockIdx.y - 6;
    if (i < p.rates) p.A[way * p.rates + i] = -expf(p.A_log[way][i]);
}

extern "C" __global__ void __launch_bounds__(256) unpack_weights(const __grid_constant__ WeightsArgs p) {
    if (blockIdx.y == 0) unpack_in_proj(p);
    else convert<false>(p);
}
