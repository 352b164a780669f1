/* The products of a mask whose groups of 32 outputs share their inputs, in bfloat16, by AMX (amx.h). A strip is 32
 * tokens feature-major, so that a group's inputs are gathered as rows of a cache line each. Two interleaved rows are a
 * row of a second operand, whose two tiles then have the strip's tokens in the order `TOKEN`. Source: ours. */
#define AHEAD 128           /* entries gathered before they are multiplied: a tile waits for its stores */
#define RING 8              /* such operands, of 32 entries each */
#define PENDING 4           /* products that wait to be added, till they have left the tiles */
#define INPUTS 256          /* whose sums over a strip stay in the first-level cache */
#define GATHERED (1 << 20)  /* bytes of strips that stay in the second-level cache */
#define TOKEN(column, half) (8 * ((column) / 4) + (column) % 4 + 4 * (half))

/* The active inputs of group j are input[start[j] : start[j + 1]], rising, then padded to a multiple of 32 with the
 * number `in`: a strip's row of zeros. Their weights are by_input [., 32 outputs], and each 32 of them by_output
 * [32 outputs, 32]. */
typedef struct {
    int64_t in, out;
    const int32_t *start, *input;
    uint16_t *by_input, *by_output;
} Groups;

/* y [token, 32 features from `at` on] = sums [32 features, 32 tokens], whose order is `TOKEN`. */
INLINE void put_turned(const float *sums, void *y, int y_bf16, int64_t at, int64_t stride, int64_t valid) {
    uint16_t order[32];
    for (int i = 0; i < 32; i++) order[i] = (uint16_t)(i / 2 + i % 2 * 16);
    __m512i pairs = _mm512_loadu_si512(order);
    for (int half = 0; half < 2; half++) {
        __m512 low[16], high[16];
        for (int k = 0; k < 16 && y_bf16; k++) {
            const float *from = sums + 64 * k + 16 * half;
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(from + 32), _mm512_load_ps(from));
            low[k] = (__m512)_mm512_permutexvar_epi16(pairs, both);
        }
        for (int k = 0; k < 16 && !y_bf16; k++) {
            low[k] = _mm512_load_ps(sums + 32 * k + 16 * half);
            high[k] = _mm512_load_ps(sums + 32 * (k + 16) + 16 * half);
        }
        transpose_avx512(low);
        if (!y_bf16) transpose_avx512(high);
        for (int k = 0; k < 16; k++) {
            int64_t token = TOKEN(k, half), to = at + token * stride;
            if (token >= valid) continue;
            if (y_bf16) {
                _mm512_storeu_ps((uint16_t *)y + to, low[k]);
            } else {
                _mm512_storeu_ps((float *)y + to, low[k]);
                _mm512_storeu_ps((float *)y + to + 16, high[k]);
            }
        }
    }
}

/* Entries p to p + 31 as second operands, in their place of `ring`. */
INLINE void gather_pairs(const Groups *w, const uint16_t *strip, int32_t p, uint16_t *ring) {
    uint16_t *b = ring + p / 32 % RING * 1024;
    for (int k = 0; k < 16; k++) {
        __m512i even = _mm512_load_si512(strip + w->input[p + 2 * k] * 32),
                odd = _mm512_load_si512(strip + w->input[p + 2 * k + 1] * 32);
        _mm512_store_si512(b + 32 * k, _mm512_unpacklo_epi16(even, odd));
        _mm512_store_si512(b + 512 + 32 * k, _mm512_unpackhi_epi16(even, odd));
    }
}

/* Y [n, out] = X [n, in] W; leaves X as strips [strips, in + 1, 32], for `group_gradient`. */
TARGET static void group_product(
        int threads, const Groups *w, const uint16_t *x, uint16_t *strips, void *y, int y_bf16, int64_t n) {
    int64_t size = (w->in + 1) * 32, groups = w->out / 32;
    int32_t entries = w->start[groups];
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float sums[2048] __attribute__((aligned(64)));
        uint16_t ring[RING * 1024] __attribute__((aligned(64)));
        configure_tiles(GROUP);
#pragma omp for schedule(static)
        for (int64_t s = 0; s < (n + GROUP - 1) / GROUP; s++) {
            uint16_t *strip = strips + s * size;
            for (int64_t f = 0; f < w->in; f += TILE)
                to_operand(x + s * GROUP * w->in + f, w->in, n - s * GROUP, 1, strip + f * 32);
            memset(strip + w->in * 32, 0, 64);
            for (int32_t p = 0; p < entries && p < AHEAD; p += 32) gather_pairs(w, strip, p, ring);
            for (int64_t j = 0; j <= groups; j++) {
                float *own = sums + j % 2 * 1024, *last = sums + (j + 1) % 2 * 1024;
                if (j < groups) {
                    ZERO_SUMS
                    for (int32_t p = w->start[j]; p < w->start[j + 1]; p += 32) {
                        const uint16_t *a = w->by_output + (int64_t)p * 32, *b = ring + p / 32 % RING * 1024;
                        if (p + AHEAD < entries) gather_pairs(w, strip, p + AHEAD, ring);
                        WRITTEN
                        multiply_32(a, a + 512, 64, b, b + 512, 64);
                    }
                    store_sums(own, own + 512, 128);
                }
                if (j) put_turned(last, y, y_bf16, s * GROUP * w->out + (j - 1) * 32, w->out, n - s * GROUP);
            }
        }
        _tile_release();
    }
}

/* Adds part [16 inputs, 32 tokens] to the inputs' own sums. */
INLINE void add_rows(const int32_t *input, const float *part, float *sums) {
    for (int k = 0; k < TILE; k++, part += 32) {
        float *to = sums + input[k] * 32;
        _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), _mm512_load_ps(part)));
        _mm512_store_ps(to + 16, _mm512_add_ps(_mm512_load_ps(to + 16), _mm512_load_ps(part + 16)));
    }
}

/* sums [in + 1, 32 tokens] of the strip whose pairs of outputs are `pairs`; `next`: room for a place in each group. */
INLINE void sum_inputs(const Groups *w, const uint16_t *pairs, int32_t *next, float *sums) {
    int64_t groups = w->out / 32, num = 0;
    float ring[PENDING * 512] __attribute__((aligned(64)));
    const int32_t *input[PENDING];
    memset(sums, 0, w->in * 32 * sizeof *sums);
    memcpy(next, w->start, groups * sizeof *next);
    for (int64_t end = INPUTS; end < w->in + INPUTS; end += INPUTS)
        for (int64_t j = 0; j < groups; j++) {
            WRITTEN
            _tile_loadd(6, pairs + j * 1024, 64); _tile_loadd(7, pairs + j * 1024 + 512, 64);
            int64_t limit = end < w->in ? end : w->in; /* padding is beyond it */
            for (; next[j] < w->start[j + 1] && w->input[next[j]] < limit; next[j] += TILE, num++) {
                float *part = ring + num % PENDING * 512;
                if (num >= PENDING) add_rows(input[num % PENDING], part, sums);
                _tile_zero(0); _tile_zero(1);
                _tile_loadd(4, w->by_input + (int64_t)next[j] * 32, 64);
                _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
                _tile_stored(0, part, 128); _tile_stored(1, part + 16, 128);
                input[num % PENDING] = w->input + next[j];
            }
        }
    for (int64_t i = num > PENDING ? num - PENDING : 0; i < num; i++)
        add_rows(input[i % PENDING], ring + i % PENDING * 512, sums);
}

/* dX [n, in] = D [n, out] Wᵀ; leaves D as second operands [strips, out / 16, 16 pairs of tokens, 16, 2], for
 * `group_gradient`. */
TARGET static void group_product_back(
        int threads, const Groups *w, const uint16_t *d, uint16_t *operands, void *dx, int dx_bf16, int64_t n) {
    int64_t groups = w->out / 32;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *sums = aligned_alloc(64, (w->in + 1) * 32 * sizeof *sums);
        uint16_t *pairs = aligned_alloc(64, w->out * 64); /* of outputs: [groups, 2, 16 pairs, 16 tokens, 2] */
        int32_t *next = malloc(groups * sizeof *next);
        configure_tiles(GROUP);
#pragma omp for schedule(static)
        for (int64_t s = 0; s < (n + GROUP - 1) / GROUP; s++) {
            int64_t valid = n - s * GROUP;
            const uint16_t *from = d + s * GROUP * w->out;
            for (int64_t f = 0; f < w->out; f += 32) {
                to_operand(from + f, w->out, valid, 0, operands + (s * w->out + f) * 32);
                to_operand(from + f + 16, w->out, valid, 0, operands + (s * w->out + f + 16) * 32);
                for (int half = 0; half < 2; half++) {
                    __m512 rows[16];
                    for (int k = 0; k < 16; k++)
                        rows[k] = TOKEN(k, half) < valid
                            ? _mm512_loadu_ps(from + f + TOKEN(k, half) * w->out) : _mm512_setzero_ps();
                    transpose_avx512(rows);
                    for (int k = 0; k < 16; k++) _mm512_store_ps(pairs + f * 32 + half * 512 + k * 32, rows[k]);
                }
            }
            sum_inputs(w, pairs, next, sums);
            for (int64_t f = 0; f < w->in; f += 32)
                put_turned(sums + f * 32, dx, dx_bf16, s * GROUP * w->in + f, w->in, valid);
        }
        _tile_release();
        free(sums), free(pairs), free(next);
    }
}

/* gradient [active inputs, 32 outputs] = Xᵀ D, in the order of `input`. */
TARGET static void group_gradient(
        int threads, const Groups *w, const uint16_t *strips, const uint16_t *operands, int64_t n, float *gradient) {
    int64_t size = (w->in + 1) * 32, num = (n + GROUP - 1) / GROUP, span = GATHERED / (size * 2) + 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        uint16_t room[2048] __attribute__((aligned(64)));
        configure_tiles(GROUP);
        for (int64_t first = 0; first < num; first += span)
#pragma omp for schedule(dynamic, 1)
            for (int64_t j = 0; j < w->out / 32; j++)
                for (int32_t p = w->start[j]; p < w->start[j + 1]; p += 32) {
                    float *to = gradient + (int64_t)p * 32;
                    WRITTEN
                    if (first) {
                        load_sums(to, to + 512, 128);
                    } else {
                        ZERO_SUMS
                    }
                    for (int64_t s = first; s < num && s < first + span; s++) {
                        const uint16_t *b = operands + (s * w->out + j * 32) * 32;
                        uint16_t *a = room + s % 2 * 1024;
                        for (int k = 0; k < 32; k++)
                            _mm512_store_si512(a + 32 * k, _mm512_load_si512(strips + s * size + w->input[p + k] * 32));
                        WRITTEN
                        multiply_32(a, a + 512, 64, b, b + 512, 64);
                    }
                    store_sums(to, to + 512, 128);
                }
        _tile_release();
    }
}

/* The active weights of a float matrix [in, out], or [out, in] if `out_first`. */
TARGET static void group_pack(int threads, const Groups *w, const float *weight, int out_first) {
    int32_t place[16];
    for (int k = 0; k < 16; k++) place[k] = (int32_t)(k * w->in);
    __m512i places = _mm512_loadu_si512(place);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t j = 0; j < w->out / 32; j++)
        for (int32_t p = w->start[j]; p < w->start[j + 1]; p++) {
            __m512 low = _mm512_setzero_ps(), high = low;
            if (w->input[p] < w->in && out_first) {
                const float *from = weight + j * 32 * w->in + w->input[p];
                low = _mm512_i32gather_ps(places, from, 4), high = _mm512_i32gather_ps(places, from + 16 * w->in, 4);
            } else if (w->input[p] < w->in) {
                const float *from = weight + w->input[p] * w->out + j * 32;
                low = _mm512_loadu_ps(from), high = _mm512_loadu_ps(from + 16);
            }
            uint16_t *to = w->by_input + (int64_t)p * 32;
            _mm512_store_ps(to, (__m512)_mm512_cvtne2ps_pbh(high, low));
            if (p % 32 < 31) continue;
            int64_t first = (int64_t)(p - 31) * 32;
            to_operand(w->by_input + first, 32, 32, 1, w->by_output + first);
            to_operand(w->by_input + first + 16, 32, 32, 1, w->by_output + first + 512);
        }
}

/* `group_gradient`'s as a dense float matrix [in, out], or [out, in] if `out_first`, 0 elsewhere; past the caches, as
 * `tile_scatter`'s. */
TARGET static void group_scatter(int threads, const Groups *w, const float *gradient, int out_first, float *dense) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t j = 0; j < w->out / 32; j++) {
            int32_t p = w->start[j];
            for (int64_t i = 0; i < w->in; i += 16) {
                __m512 low[16], high[16];
                for (int k = 0; k < 16; k++) {
                    int active = p < w->start[j + 1] && w->input[p] == i + k;
                    const float *from = gradient + (int64_t)p * 32;
                    low[k] = active ? _mm512_loadu_ps(from) : _mm512_setzero_ps();
                    high[k] = active ? _mm512_loadu_ps(from + 16) : _mm512_setzero_ps();
                    p += active;
                }
                int64_t stride = out_first ? w->in : w->out, half = 16 * (out_first ? stride : 1);
                float *to = dense + (out_first ? j * 32 * stride + i : i * stride + j * 32);
                if (out_first) transpose_avx512(low), transpose_avx512(high);
                for (int k = 0; k < 16; k++) {
                    _mm512_stream_ps(to + k * stride, low[k]);
                    _mm512_stream_ps(to + k * stride + half, high[k]);
                }
            }
        }
        _mm_sfence();
    }
}
