/* The products with tiles of bfloat16 and the processor's own bfloat16 dot products, summed in float (AVX512-BF16).
 *
 * A dot product takes two inputs of one token from neighbouring lanes, so the products interleave two entries' inputs
 * as they load them. Interleaving within 128-bit lanes leaves the 32 tokens of a register as two registers of sums,
 * `LOW` and HIGH: lane i of the first is token 8·(i / 4) + i % 4, of the second that plus 4. */
#define AT(i, high) (8 * ((i) / 4) + (i) % 4 + 4 * (high))

/* Up to 32 features of a token as bfloat16, from bfloat16 or float. */
INLINE __m512 NAME(load)(const void *from, int bf16, __mmask32 mask) {
    if (bf16) return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, from));
    __m512 low = _mm512_maskz_loadu_ps((__mmask16)mask, from),
           high = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), (const float *)from + 16);
    return (__m512)_mm512_cvtne2ps_pbh(high, low);
}

/* tile [PADDED(features), TOKENS] = transpose of x [rows, features]; zeros beyond. */
INLINE void NAME(to_tile)(const char *x, int bf16, int64_t stride, int64_t rows, int64_t features, uint16_t *tile) {
    int64_t size = bf16 ? 2 : 4;
    uint16_t even[32], odd[32];
    for (int i = 0; i < 32; i++) even[i] = (uint16_t)(2 * i), odd[i] = (uint16_t)(2 * i + 1);
    __m512i evens = _mm512_loadu_si512(even), odds = _mm512_loadu_si512(odd);
    for (int64_t i = 0; i < TOKENS; i += 32)
        for (int64_t k = 0; k < PADDED(features); k += 32) {
            __mmask32 mask = features - k >= 32 ? 0xffffffff : ((__mmask32)1 << (features - k)) - 1;
            __m512 a[16], b[16]; /* [feature pair][token] */
            const char *from = x + (i * stride + k) * size;
            for (int j = 0; j < 16; j++)
                a[j] = i + j < rows ? NAME(load)(from + j * stride * size, bf16, mask) : _mm512_setzero_ps();
            for (int j = 0; j < 16; j++)
                b[j] = i + 16 + j < rows
                    ? NAME(load)(from + (16 + j) * stride * size, bf16, mask) : _mm512_setzero_ps();
            transpose_avx512(a);
            transpose_avx512(b);
            for (int j = 0; j < 16; j++) {
                _mm512_store_si512(
                    tile + (k + 2 * j) * TOKENS + i,
                    _mm512_permutex2var_epi16(_mm512_castps_si512(a[j]), evens, _mm512_castps_si512(b[j])));
                _mm512_store_si512(
                    tile + (k + 2 * j + 1) * TOKENS + i,
                    _mm512_permutex2var_epi16(_mm512_castps_si512(a[j]), odds, _mm512_castps_si512(b[j])));
            }
        }
}

/* y [rows, features] = transpose of sums [PADDED(features), 4 registers]. */
INLINE void NAME(from_sums)(const float *sums, char *y, int bf16, int64_t stride, int64_t rows, int64_t features) {
    for (int part = 0; part < 4; part++)
        for (int64_t k = 0; k < features; k += 32) {
            __mmask32 mask = features - k >= 32 ? 0xffffffff : ((__mmask32)1 << (features - k)) - 1;
            __m512 low[16], high[16]; /* [token][feature] */
            for (int j = 0; j < 16; j++) low[j] = _mm512_load_ps(sums + (k + j) * TOKENS + 16 * part);
            for (int j = 0; j < 16; j++) high[j] = _mm512_load_ps(sums + (k + 16 + j) * TOKENS + 16 * part);
            transpose_avx512(low);
            transpose_avx512(high);
            for (int j = 0; j < 16; j++) {
                int64_t token = 32 * (part / 2) + AT(j, part % 2), at = token * stride + k;
                if (token >= rows) continue;
                if (bf16)
                    _mm512_mask_storeu_epi16((uint16_t *)y + at, mask, (__m512i)_mm512_cvtne2ps_pbh(high[j], low[j]));
                else {
                    _mm512_mask_storeu_ps((float *)y + at, (__mmask16)mask, low[j]);
                    _mm512_mask_storeu_ps((float *)y + at + 16, (__mmask16)(mask >> 16), high[j]);
                }
            }
        }
}

INLINE __m512 NAME(dot)(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

/* Adds two entries to the sums of `group` outputs. */
INLINE void NAME(two_entries)(
        const char *chunk, const uint16_t *offset, const int32_t *value, const int group, __m512 s[8]) {
    const __m512i *a = (const __m512i *)(chunk + offset[0]), *b = (const __m512i *)(chunk + offset[1]);
    __m512i x[4] = {
        _mm512_unpacklo_epi16(a[0], b[0]), _mm512_unpackhi_epi16(a[0], b[0]),
        _mm512_unpacklo_epi16(a[1], b[1]), _mm512_unpackhi_epi16(a[1], b[1])};
#define ADD(q) if (q < 4 * group) s[q] = NAME(dot)(s[q], x[q % 4], _mm512_set1_epi32(value[q / 4]));
    EACH8(ADD)
#undef ADD
}

INLINE void NAME(rows)(
        const Structure *w, int64_t first, int64_t last, const int group, int fresh,
        const char *chunk, float *sums, int64_t base) {
    const int32_t *value = w->value;
    for (int64_t r = first; r < last; r++) {
        __m512 *own = (__m512 *)(sums + (w->order[r] - base) * group * TOKENS), s[8] = {0}, more[8] = {0};
#define LOAD(q) if (q < 4 * group && !fresh) s[q] = own[q];
        EACH8(LOAD)
        int32_t p = w->start[r], end = w->start[r + 1];
        for (; group == 1 && p + 2 < end; p += 4) { /* two chains of sums, or each dot product waits for the last */
            NAME(two_entries)(chunk, w->offset + p, value + p / 2, group, s);
            NAME(two_entries)(chunk, w->offset + p + 2, value + p / 2 + 1, group, more);
        }
        for (; p < end; p += 2) NAME(two_entries)(chunk, w->offset + p, value + p / 2 * group, group, s);
#define STORE(q) if (q < 4 * group) own[q] = group == 1 ? _mm512_add_ps(s[q], more[q]) : s[q];
        EACH8(STORE)
#undef LOAD
#undef STORE
    }
}

/* Adds to `num` gradients, of entries from `offset` on for each of `group` outputs, what `tiles` tiles of tokens
 * give. */
INLINE void NAME(few_gradients)(
        const int num, const int group, const int tiles, const __m512i own[16], const char *tile[4],
        const uint16_t *offset, float *gradient) {
    __m512 s[8] = {0}; /* two chains of each, or a dot product would wait for the last */
#define ADD(i, q) \
    if (i < num) \
        s[2 * i + q % 2] = NAME(dot)( \
            s[2 * i + q % 2], own[(group - 1) * (i % 2) * 2 * tiles + q], \
            ((const __m512i *)(tile[q / 2] + offset[i / group]))[q % 2]);
#define ALL(q) if (q < 2 * tiles) { ADD(0, q) ADD(1, q) ADD(2, q) ADD(3, q) }
    EACH8(ALL)
#undef ADD
#undef ALL
    vector sums[4] = {
        (vector)_mm512_add_ps(s[0], s[1]), (vector)_mm512_add_ps(s[2], s[3]),
        (vector)_mm512_add_ps(s[4], s[5]), (vector)_mm512_add_ps(s[6], s[7])};
    add_sums_avx512(sums, gradient, num);
}

#define ELEMENT uint16_t
#define PART __m512i /* of a tile's tokens */
#define TILES 4       /* whose gradients are summed in registers at a time */
#include "products.h"
#undef AT
