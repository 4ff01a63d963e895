// Of out = ungated * SiLU(z): d(ungated) and dz from d(out), all (batch, length, channels); out once more where it is wanted.
struct GateArgs {
    const io_t *dout, *z, *ungated;
    i64 z_batch, z_time;
    io_t *dungated, *dz;
    i64 dz_batch, dz_time;
    io_t *out;  // or null
    i64 count;
    int length, channels;
};

extern "C" __global__ void __launch_bounds__(256) gate_backward(const __grid_constant__ GateArgs p) {
    const int width = VECTOR ? 16 / sizeof(io_t) : 1;
    i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * width;
    if (i >= p.count) return;
    i64 row = i / p.channels, sample = row / p.length, time = row % p.length, channel = i % p.channels;
    const io_t *gate = p.z + sample * p.z_batch + time * p.z_time + channel;
    io_t *slope = p.dz + sample * p.dz_batch + time * p.dz_time + channel;
    __align__(16) io_t dout[width], z[width], ungated[width], dungated[width], dz[width], out[width];
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
        float x = widen(z[k]), s = sigmoid(x), d = widen(dout[k]), y = widen(ungated[k]);
        dungated[k] = narrow(d * x * s);
        dz[k] = narrow(d * y * s * (1.f + x * (1.f - s)));
        out[k] = narrow(y * x * s);
    }
#if VECTOR
    *(uint4 *)(p.dungated + i) = *(uint4 *)dungated;
    *(uint4 *)slope = *(uint4 *)dz;
    if (p.out) *(uint4 *)(p.out + i) = *(uint4 *)out;
#else
    p.dungated[i] = dungated[0];
    *slope = dz[0];
    if (p.out) p.out[i] = out[0];
#endif
}
