// Step sizes from their logits, the slope for the way back, and how a step size lies in memory.

// log(1 + exp(x)), to the relative accuracy that small step sizes need.
INLINE float softplus(float x) {
    float e = exp2_fast(-fabsf(x) * LOG2E);
    float series = e * (1.f - e * (0.5f - e * (1.f / 3.f - e * 0.25f)));
    return fmaxf(x, 0.f) + (e < 0.03125f ? series : log2_fast(1.f + e) * LN2);
}

// The derivative of softplus where it took the value y: 1 - exp(-y).
INLINE float softplus_slope(float y) {
    float series = y * (1.f - y * (0.5f - y * (1.f / 6.f - y * (1.f / 24.f))));
    return y < 0.0625f ? series : 1.f - exp2_fast(-y * LOG2E);
}

// A step size in 16 bits: a bf16 number has a sign, which a step size does not need, and here its place is another digit's.
INLINE u32 pack_step(float dt) { return (min(__float_as_uint(dt), 0x7fffbfffu) + 0x4000) >> 15; }  // NaN stays NaN

INLINE float unpack_step(u32 packed) { return __uint_as_float(packed << 15); }
