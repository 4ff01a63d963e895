// Element type of the operands, chosen at compile time: IO 0 bf16, 1 fp16, 2 fp32. Arithmetic is always in fp32.

#if IO == 0
typedef u16 io_t;
INLINE float widen(io_t x) { return bf16_to_float(x); }
INLINE io_t narrow(float x) { return float_to_bf16(x); }
#elif IO == 1
typedef u16 io_t;
INLINE float widen(io_t x) { return half_to_float(x); }
INLINE io_t narrow(float x) { return float_to_half(x); }
#else
typedef float io_t;
INLINE float widen(io_t x) { return x; }
INLINE io_t narrow(float x) { return x; }
#endif

typedef long long i64;

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

INLINE float sigmoid(float x) { return reciprocal(1.f + exp2_fast(-x * LOG2E)); }
