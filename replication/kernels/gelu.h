/* GELU in its tanh form, x / (1 + e^-z) with z = 2 sqrt(2/pi) (x + 0.044715 x^3), and its gradient; computed in float
 * from and to float or bf16. For one instruction set: after attention.h, whose exponential it takes. */
#define GELU_A 1.59576912f
#define GELU_B 0.0713548163f

INLINE NAME(reg) NAME(logistic)(NAME(reg) z, NAME(reg) *rest) { /* 1 / (1 + e^-z), and 1 minus that */
    NAME(integers) negative = z < 0.0f;
    NAME(reg) e = NAME(exponential)((NAME(reg))((NAME(integers))z | (int32_t)0x80000000)),
              larger = 1.0f / (1.0f + e), smaller = e * larger;
    *rest = (NAME(reg))(((NAME(integers))larger & negative) | ((NAME(integers))smaller & ~negative));
    return (NAME(reg))(((NAME(integers))smaller & negative) | ((NAME(integers))larger & ~negative));
}

INLINE NAME(reg) NAME(fetch)(const void *from, int bf16, int64_t num) { /* up to LANES, zeros beyond */
#ifdef AVX512
    return (NAME(reg))NAME(load)(from, bf16, (__mmask16)((1u << num) - 1));
#else
    NAME(reg) to = {0};
    for (int64_t i = 0; i < num; i++)
        to[i] = bf16 ? NAME(widen)(((const uint16_t *)from)[i]) : ((const float *)from)[i];
    return to;
#endif
}

INLINE void NAME(put)(NAME(reg) from, void *to, int bf16, int64_t num) {
#ifdef AVX512
    NAME(store)(to, bf16, (__mmask16)((1u << num) - 1), (__m512)from);
#else
    for (int64_t i = 0; i < num; i++)
        if (bf16) ((uint16_t *)to)[i] = NAME(narrow)(from[i]);
        else ((float *)to)[i] = from[i];
#endif
}

/* y = gelu(x), or, where d is given, y = d gelu'(x). */
INLINE void NAME(gelu_of)(const void *x, const void *d, void *y, int bf16, int64_t num) {
    NAME(reg) v = NAME(fetch)(x, bf16, num), square = v * v, rest;
    NAME(reg) s = NAME(logistic)(v * (GELU_A + GELU_B * square), &rest);
    if (d) NAME(put)(NAME(fetch)(d, bf16, num) * s * (1.0f + v * rest * (GELU_A + 3 * GELU_B * square)), y, bf16, num);
    else NAME(put)(v * s, y, bf16, num);
}

TARGET static void NAME(gelu)(int threads, const char *x, const char *d, char *y, int bf16, int64_t num) {
    int64_t bytes = bf16 ? 2 : 4;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        unsigned mode = flush_tiny();
#define AT(p) (p ? p + i * bytes : NULL)
#pragma omp for schedule(static)
        for (int64_t i = 0; i < num; i += LANES) {
            if (num - i < LANES) NAME(gelu_of)(AT(x), AT(d), AT(y), bf16, num - i);
            else if (d) NAME(gelu_of)(AT(x), AT(d), AT(y), bf16, LANES);
            else NAME(gelu_of)(AT(x), NULL, AT(y), bf16, LANES);
        }
#undef AT
        as_before(mode);
    }
}
#undef GELU_A
#undef GELU_B
