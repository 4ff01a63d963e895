// The gradients of small parameters from the parts that other kernels left, several parameters at once.
//
// A block adds 32 columns of one row: each warp every WARPS-th part, then the warps' sums, always in the same order.

#define WARPS 16
#define MOST 13

struct Sum {
    const float *parts;   // count parts, pitch apart, each (rows, columns)
    const float *factor;  // (columns, rows), or null for 1
    float *out;           // (columns, rows)
    i64 pitch;
    int count, rows, columns;
};

struct SumArgs {
    Sum sum[MOST];
};

extern "C" __global__ void __launch_bounds__(512) sum_parts(const __grid_constant__ SumArgs p) {
    extern __shared__ __align__(16) char shared[];
    float *sums = (float *)shared;  // (WARPS, 32)
    int row = blockIdx.y, index = 0, lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    while (row >= p.sum[index].rows) row -= p.sum[index++].rows;
    const Sum &s = p.sum[index];
    float sum = 0.f;
    if (column < s.columns) {
        const float *part = s.parts + (i64)row * s.columns + column;
#pragma unroll 4
        for (int k = warp; k < s.count; k += WARPS) sum += part[k * s.pitch];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || column >= s.columns) return;
    for (int w = 1; w < WARPS; ++w) sum += sums[w * 32 + lane];
    i64 at = (i64)column * s.rows + row;
    s.out[at] = s.factor ? sum * s.factor[at] : sum;
}
