// The parts of dB and dC, which each block of channels left, added up where the product that takes them wants them.
//
// Compile-time: IO as in io.cu, STATE.

struct JoinArgs {
    const float *parts;  // (count, directions, rows, 2, STATE)
    io_t *target[2];     // of each direction: rows of 2 STATE, pitch apart
    i64 rows, pitch;
    int count;
};

struct alignas(4 * sizeof(io_t)) Quad {
    io_t value[4];
};

extern "C" __global__ void __launch_bounds__(256) join_projections(const __grid_constant__ JoinArgs p) {
    const int quads = 2 * STATE / 4;
    i64 i = (i64)blockIdx.x * 256 + threadIdx.x, row = i / quads, next = gridDim.y * p.rows * quads;
    if (row >= p.rows) return;
    const float4 *part = (const float4 *)p.parts + blockIdx.y * p.rows * quads + i;
    float4 sum = *part;
    for (int k = 1; k < p.count; ++k) {
        part += next;
        sum = make_float4(sum.x + part->x, sum.y + part->y, sum.z + part->z, sum.w + part->w);
    }
    Quad quad = {{narrow(sum.x), narrow(sum.y), narrow(sum.z), narrow(sum.w)}};
    *(Quad *)(p.target[blockIdx.y] + row * p.pitch + i % quads * 4) = quad;
}
