/* The softmax of attention by AMX, and its gradient: from rows of float, one a key, of a block of 32 queries, to the
 * operands in bfloat16 that products take. After amx.h and attention.h. */
#define Block Block_avx512
#define KEYS 32 /* of a group, which a product takes at a time */
#define LOG2_E 1.44269504f

/* 2^x to 4e-6 of it, a thousandth of what rounding to bfloat16 changes. */
INLINE __m512 power_of_2(__m512 x) {
    __m512 whole = _mm512_roundscale_ps(x, 0), r = x - whole;
    __m512 p = 1.0f + r * (0.693122f + r * (0.240237f + r * (0.0559169f + r * 0.0096004f)));
    return _mm512_scalef_ps(p, whole);
}

/* Two rows of 16 as a row of a second operand. */
INLINE void couple(__m512 first, __m512 second, uint16_t *to) {
    const __m512i order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
        16, 0);
    _mm512_store_si512(to, _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(second, first)));
}

/* The rows of scores, hidden but not scaled, become weights e^(scale (score - most)): those of groups of keys as second
 * operands, those of diagonals in place. */
INLINE void tile_softmax(
        const Attention *a, const Block *b, float *rows, float *most, float *share, uint16_t *coupled) {
    int64_t shared = b->near + b->columns;
    __m512 factor = _mm512_set1_ps(a->scale * LOG2_E);
    for (int part = 0; part < 32; part += 16) {
        float *row = rows + part;
        __m512 top = _mm512_load_ps(row), sum = _mm512_setzero_ps(), other = sum;
        for (int64_t i = 1; i < b->rows; i++) top = _mm512_max_ps(_mm512_load_ps(row + 32 * i), top);
        _mm512_storeu_ps(most + part, top);
        top = top * factor;
        for (int64_t i = 0; i < shared; i += 2) {
            __m512 p = power_of_2(_mm512_load_ps(row + 32 * i) * factor - top),
                   q = power_of_2(_mm512_load_ps(row + 32 * i + 32) * factor - top);
            sum += p, other += q;
            couple(p, q, coupled + i / KEYS * 1024 + part * 32 + i % KEYS * 16);
        }
        for (int64_t i = shared; i < b->rows; i++) {
            __m512 p = power_of_2(_mm512_load_ps(row + 32 * i) * factor - top);
            sum += p;
            _mm512_store_ps(row + 32 * i, p);
        }
        _mm512_storeu_ps(share + part, 1.0f / (sum + other));
    }
}

/* Scores become weights again, and dp the scores' gradient, p (dp - sum of p dp) scale: rounded, both as first operands
 * and that also as second ones; of diagonals in place. */
INLINE void tile_softmax_gradient(
        const Attention *a, const Block *b, float *p, float *dp, const float *most, const float *share,
        uint16_t *rounded, uint16_t *d_rounded, uint16_t *d_coupled) {
    int64_t shared = b->near + b->columns;
    __m512 factor = _mm512_set1_ps(a->scale * LOG2_E), sum[2], zero = _mm512_setzero_ps(), top[2], own[2];
    for (int j = 0; j < 2; j++) {
        sum[j] = zero, top[j] = _mm512_loadu_ps(most + 16 * j) * factor, own[j] = _mm512_loadu_ps(share + 16 * j);
    }
    for (int64_t i = 0; i < b->rows; i++) {
        __m512 weight[2];
        for (int j = 0; j < 2; j++) {
            float *at = p + 32 * i + 16 * j;
            weight[j] = power_of_2(_mm512_load_ps(at) * factor - top[j]) * own[j];
            sum[j] += weight[j] * _mm512_load_ps(dp + 32 * i + 16 * j);
            _mm512_store_ps(at, weight[j]);
        }
        if (i < shared) _mm512_store_si512(rounded + 32 * i, (__m512i)_mm512_cvtne2ps_pbh(weight[1], weight[0]));
    }
    for (int64_t i = 0; i < b->rows; i += 2) {
        __m512 d[4];
        for (int j = 0; j < 4; j++)
            d[j] = _mm512_load_ps(p + 32 * i + 16 * j) * a->scale * (_mm512_load_ps(dp + 32 * i + 16 * j) - sum[j % 2]);
        if (i < shared) {
            for (int j = 0; j < 2; j++) {
                _mm512_store_si512(
                    d_rounded + 32 * (i + j), (__m512i)_mm512_cvtne2ps_pbh(d[2 * j + 1], d[2 * j]));
                couple(d[j], d[2 + j], d_coupled + i / KEYS * 1024 + 512 * j + i % KEYS * 16);
            }
        } else for (int j = 0; j < 4; j++) _mm512_store_ps(dp + 32 * i + 16 * j, d[j]);
    }
}
