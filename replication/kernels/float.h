/* The products with tiles of float, for one instruction set (NAME, TARGET, perhaps AVX512: set by sparse.c);
 * activations float or bf16. */

typedef float NAME(reg) __attribute__((vector_size(4 * LANES), aligned(4 * LANES))); /* a register */

INLINE float NAME(widen)(uint16_t bits) {
    union { uint32_t bits; float value; } u = {(uint32_t)bits << 16};
    return u.value;
}

INLINE uint16_t NAME(narrow)(float value) {
    union { float value; uint32_t bits; } u = {value};
    if ((u.bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(u.bits >> 16 | 64);
    return (uint16_t)((u.bits + 0x7fff + (u.bits >> 16 & 1)) >> 16);
}

#ifdef AVX512
INLINE void NAME(transpose)(__m512 r[16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2)
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    for (int i = 0; i < 16; i += 4) {
        __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]),
                c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c)), r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d)), r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88), t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88),
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88), r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88),
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Row of up to 16 floats from float or bf16. */
INLINE __m512 NAME(load)(const void *from, int bf16, __mmask16 mask) {
    if (!bf16) return _mm512_maskz_loadu_ps(mask, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}

INLINE void NAME(store)(void *to, int bf16, __mmask16 mask, __m512 value) {
    if (!bf16) { _mm512_mask_storeu_ps(to, mask, value); return; }
    __m512i bits = _mm512_castps_si512(value),
            odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    _mm256_mask_storeu_epi16(to, mask, _mm512_cvtepi32_epi16(rounded));
}
#endif

/* tile [PADDED(features), TOKENS] = transpose of x [rows, features]; zeros beyond. */
INLINE void NAME(to_tile)(const char *x, int bf16, int64_t stride, int64_t rows, int64_t features, float *tile) {
    int64_t size = bf16 ? 2 : 4;
    for (int64_t i = 0; i < TOKENS; i += 16)
        for (int64_t k = 0; k < PADDED(features); k += 16) {
            int64_t width = features - k < 0 ? 0 : features - k < 16 ? features - k : 16;
#ifdef AVX512
            __m512 r[16];
            __mmask16 mask = (__mmask16)((1u << width) - 1);
            for (int j = 0; j < 16; j++)
                r[j] = i + j < rows ? NAME(load)(x + ((i + j) * stride + k) * size, bf16, mask) : _mm512_setzero_ps();
            NAME(transpose)(r);
            for (int j = 0; j < 16; j++) _mm512_store_ps(tile + (k + j) * TOKENS + i, r[j]);
#else
            for (int64_t b = 0; b < 16; b++)
                for (int64_t a = 0; a < 16; a++) {
                    const char *at = x + ((i + a) * stride + k + b) * size;
                    tile[(k + b) * TOKENS + i + a] =
                        i + a >= rows || b >= width ? 0
                        : bf16 ? NAME(widen)(*(const uint16_t *)at) : *(const float *)at;
                }
#endif
        }
}

/* y [rows, features] = transpose of sums [PADDED(features), TOKENS]. */
INLINE void NAME(from_sums)(const float *sums, char *y, int bf16, int64_t stride, int64_t rows, int64_t features) {
    int64_t size = bf16 ? 2 : 4;
    for (int64_t i = 0; i < rows; i += 16)
        for (int64_t k = 0; k < features; k += 16) {
            int64_t height = rows - i < 16 ? rows - i : 16, width = features - k < 16 ? features - k : 16;
#ifdef AVX512
            __m512 r[16];
            __mmask16 mask = (__mmask16)((1u << width) - 1);
            for (int j = 0; j < 16; j++) r[j] = _mm512_load_ps(sums + (k + j) * TOKENS + i);
            NAME(transpose)(r);
            for (int j = 0; j < height; j++) NAME(store)(y + ((i + j) * stride + k) * size, bf16, mask, r[j]);
#else
            for (int64_t a = 0; a < height; a++)
                for (int64_t b = 0; b < width; b++) {
                    char *at = y + ((i + a) * stride + k + b) * size;
                    float value = sums[(k + b) * TOKENS + i + a];
                    if (bf16) *(uint16_t *)at = NAME(narrow)(value);
                    else *(float *)at = value;
                }
#endif
        }
}

/* Rows `first` to `last` of a chunk: sums of `group` outputs each, which start at 0 in the first chunk. */
INLINE void NAME(rows)(
        const Structure *w, int64_t first, int64_t last, const int group, int fresh,
        const char *chunk, float *sums, int64_t base) {
    const float *value = w->value;
    const int span = LANES == 16 || group == 2 ? 4 : 8; /* registers of tokens at a time */
    for (int64_t r = first; r < last; r++)
        for (int t = 0; t < TOKENS / LANES; t += span) {
            NAME(reg) *own = (NAME(reg) *)(sums + (w->order[r] - base) * group * TOKENS) + t, s[8] = {0};
#define LOAD(q) if (q < span * group && !fresh) s[q] = own[q / span * (TOKENS / LANES) + q % span];
            EACH8(LOAD)
            for (int32_t p = w->start[r], end = w->start[r + 1]; p < end; p++) {
                const NAME(reg) *x = (const NAME(reg) *)(chunk + w->offset[p]) + t;
#define ADD(q) if (q < span * group) s[q] += value[p * group + q / span] * x[q % span];
                EACH8(ADD)
            }
#define STORE(q) if (q < span * group) own[q / span * (TOKENS / LANES) + q % span] = s[q];
            EACH8(STORE)
#undef LOAD
#undef ADD
#undef STORE
        }
}

/* to[i] += sum of s[i], for i up to `num`. */
INLINE void NAME(add_sums)(vector s[4], float *to, int num) {
#ifdef AVX512
    __m512 a = (__m512)s[0], b = (__m512)s[1], c = (__m512)s[2], d = (__m512)s[3];
    a = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    c = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    a = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(c))),
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(c))));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 sums = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    if (num == 4) _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), sums));
    else
        _mm_mask_storeu_ps(
            to, (__mmask8)((1 << num) - 1), _mm_add_ps(_mm_maskz_loadu_ps((__mmask8)((1 << num) - 1), to), sums));
#else
    for (int i = 0; i < num; i++) {
        NAME(reg) sum = {0};
        for (int part = 0; part < 16 / LANES; part++) sum += ((const NAME(reg) *)&s[i])[part];
        for (int lane = 0; lane < LANES; lane++) to[i] += sum[lane];
    }
#endif
}

/* Adds to `num` gradients, of entries from `offset` on for each of `group` outputs, what `tiles` tiles of tokens
 * give. */
INLINE void NAME(few_gradients)(
        const int num, const int group, const int tiles, const vector own[16], const char *tile[4],
        const uint16_t *offset, float *gradient) {
    vector s[4] = {0};
#define ADD(i, q) \
    if (i < num) \
        s[i] += own[(group - 1) * (i % 2) * 4 * tiles + q] \
            * ((const vector *)(tile[q / 4] + offset[i / group]))[q % 4];
#define ALL(q) if (q < 4 * tiles) { ADD(0, q) ADD(1, q) ADD(2, q) ADD(3, q) }
    EACH8(ALL)
#undef ADD
#undef ALL
    NAME(add_sums)(s, gradient, num);
}

#define ELEMENT float
#define PART vector /* of a tile's tokens */
#define TILES 2      /* whose gradients are summed in registers at a time */
#include "products.h"
