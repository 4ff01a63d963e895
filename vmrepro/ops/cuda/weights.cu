// The parameters of a block as its kernels and products want them, and the gradients of the matrices on their way back.
//
// Six matrices lie one after another, in the type of the products; two of them have rows and two have columns of zeros from ``rank``
// on, which the parameters do not have. Compile-time: IO.

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
    if (PACK) p.packed[m.first + i] = narrow(present ? m.plain[at] : 0.f);
    else if (present) m.plain[at] = widen(p.packed[m.first + i]);
}

extern "C" __global__ void __launch_bounds__(256) pack_weights(const __grid_constant__ WeightsArgs p) {
    if (blockIdx.y < 6) return convert<true>(p);
    int i = blockIdx.x * 256 + threadIdx.x, way = blockIdx.y - 6;
    if (i < p.rates) p.A[way * p.rates + i] = -expf(p.A_log[way][i]);
}

extern "C" __global__ void __launch_bounds__(256) unpack_weights(const __grid_constant__ WeightsArgs p) { convert<false>(p); }
