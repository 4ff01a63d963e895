// Of out = ungated * SiLU(z): d(ungated) and dz from d(out), all (batch, length, channels).
struct GateArgs {
    const io_t *dout, *z, *ungated;
    i64 z_batch, z_time;
    io_t *dungated, *dz;
    i64 count;
    int length, channels;
};

extern "C" __global__ void __launch_bounds__(256) gate_backward(const __grid_constant__ GateArgs p) {
    const int width = VECTOR ? 16 / sizeof(io_t) : 1;
    i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * width;
    if (i >= p.count) return;
    i64 row = i / p.channels;
    const io_t *gate = p.z + row / p.length * p.z_batch + row % p.length * p.z_time + i % p.channels;
    __align__(16) io_t dout[width], z[width], ungated[width], dungated[width], dz[width];
#if VECTOR
    *(uint4 *)dout = *(const uint4 *)(p.dout + i);
    *(uint4 *)z = *(const uint4 *)gate;
    *(uint4 *)ungated = *(const uint4 *)(p.ungated + i);
#else
    dout[0] = p.dout[i];
    z[0] = *gate;
    ungated[0] = p.ungated[i];
#endif
#pragma unroll
    for (int k = 0; k < width; ++k) {
        float x = widen(z[k]), s = sigmoid(x), d = widen(dout[k]);
        dungated[k] = narrow(d * x * s);
        dz[k] = narrow(d * widen(ungated[k]) * s * (1.f + x * (1.f - s)));
    }
#if VECTOR
    *(uint4 *)(p.dungated + i) = *(uint4 *)dungated;
    *(uint4 *)(p.dz + i) = *(uint4 *)dz;
#else
    p.dungated[i] = dungated[0];
    p.dz[i] = dz[0];
#endif
}
