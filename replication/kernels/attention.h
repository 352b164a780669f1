/* Causal attention over the pairs of a pattern, forward and backward, for one instruction set (NAME, TARGET, perhaps
 * AVX512: set by sparse.c). Computed in float; activations float or bf16.
 *
 * A block of 32 queries lies across the lanes of registers, so that a softmax is a loop over rows of scores, one a
 * key. Keys that a block shares are multiplied as matrices; those at a fixed distance from each query, the diagonals
 * of a strided pattern, lane by lane, from keys that lie feature-major. */
#define ROWS (LANES == 16 ? 8 : 4) /* of a product that are summed in registers at a time */
#define PARTS (32 / LANES)         /* registers of a block's queries */

typedef float NAME(unaligned) __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t NAME(integers) __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));
#define reg NAME(reg)
#define unaligned NAME(unaligned)
#define integers NAME(integers)

INLINE void NAME(some_rows)(
        const int rows, int64_t depth, const float *a, int64_t a_row, int64_t a_column,
        const float *b, int64_t b_row, float *c, int64_t c_row, int add) {
    reg low[8] = {0}, high[8] = {0};
#define LOAD(r) \
    if (r < rows && add) \
        low[r] = *(const unaligned *)(c + r * c_row), high[r] = *(const unaligned *)(c + r * c_row + LANES);
    EACH8(LOAD)
    for (int64_t k = 0; k < depth; k++, a += a_column, b += b_row) {
        reg left = *(const unaligned *)b, right = *(const unaligned *)(b + LANES);
#define ADD(r) if (r < rows) low[r] += a[r * a_row] * left, high[r] += a[r * a_row] * right;
        EACH8(ADD)
    }
#define STORE(r) if (r < rows) *(unaligned *)(c + r * c_row) = low[r], *(unaligned *)(c + r * c_row + LANES) = high[r];
    EACH8(STORE)
#undef LOAD
#undef ADD
#undef STORE
}

/* C [rows, 32] = A [rows, depth] B [depth, 32], or `add`ed to C; rows and columns of A anywhere. */
INLINE void NAME(multiply)(
        int64_t rows, int64_t depth, const float *a, int64_t a_row, int64_t a_column,
        const float *b, int64_t b_row, float *c, int64_t c_row, int add) {
    for (int part = 0; part < 32; part += 2 * LANES, b += 2 * LANES, c += 2 * LANES) {
        int64_t r = 0;
        for (; r + ROWS <= rows; r += ROWS)
            NAME(some_rows)(ROWS, depth, a + r * a_row, a_row, a_column, b, b_row, c + r * c_row, c_row, add);
        for (; r < rows; r++)
            NAME(some_rows)(1, depth, a + r * a_row, a_row, a_column, b, b_row, c + r * c_row, c_row, add);
    }
}

/* to [columns, rows] = transpose of from [rows, columns], each side a multiple of 16. */
INLINE void NAME(transposed)(
        const float *from, int64_t from_row, int64_t rows, int64_t columns, float *to, int64_t to_row) {
    for (int64_t i = 0; i < rows; i += 16)
        for (int64_t k = 0; k < columns; k += 16) {
#ifdef AVX512
            __m512 r[16];
            for (int j = 0; j < 16; j++) r[j] = _mm512_loadu_ps(from + (i + j) * from_row + k);
            NAME(transpose)(r);
            for (int j = 0; j < 16; j++) _mm512_storeu_ps(to + (k + j) * to_row + i, r[j]);
#else
            for (int64_t a = 0; a < 16; a++)
                for (int64_t b = 0; b < 16; b++) to[(k + b) * to_row + i + a] = from[(i + a) * from_row + k + b];
#endif
        }
}

/* to [PADDED(rows), size] of float = from [rows, size]; zeros beyond. */
INLINE void NAME(take)(const char *from, int bf16, int64_t stride, int64_t rows, int64_t size, float *to) {
    for (int64_t i = 0; i < PADDED(rows); i++, to += size) {
        const char *row = from + i * stride * (bf16 ? 2 : 4);
        if (i >= rows) memset(to, 0, size * sizeof *to);
        else if (bf16) for (int64_t k = 0; k < size; k++) to[k] = NAME(widen)(((const uint16_t *)row)[k]);
        else memcpy(to, row, size * sizeof *to);
    }
}

INLINE void NAME(give)(const float *from, char *to, int bf16, int64_t stride, int64_t rows, int64_t size) {
    for (int64_t i = 0; i < rows; i++, from += size) {
        char *row = to + i * stride * (bf16 ? 2 : 4);
        if (bf16) for (int64_t k = 0; k < size; k++) ((uint16_t *)row)[k] = NAME(narrow)(from[k]);
        else memcpy(row, from, size * sizeof *from);
    }
}

/* e to the x, for x up to 0; 0 from -80 down; no number for what is none, or more than any. */
INLINE reg NAME(exponential)(reg x) {
    /* to a whole number, which the low bits hold */
    reg shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    reg r = x - n * 0.693145752f - n * 1.42860677e-6f;
    reg p = 1.0f + r * (1.0f + r * (0.5f + r * (0.166666667f + r * (
            0.0416666667f + r * (0.00833333333f + r * 0.00138888889f)))));
    integers power = (((integers)shifted) << 23) + 0x3f800000;
    return (reg)((integers)(p * (reg)power) & ~(integers)(x <= -80.0f));
}

/* One sequence and head: its own rows of the activations as floats, feature-major too where diagonals need them. */
typedef struct {
    const Attention *a;
    int64_t row; /* of what lies feature-major */
    float *k, *v, *k_lanes, *v_lanes;
} NAME(Head);
#define Head NAME(Head)

/* The keys of 32 queries from `first` on: `near` of them from `start` on, `columns`, and diagonals from a->far to
 * `last`. */
typedef struct {
    int64_t first, start, near, columns, last, rows;
} NAME(Block);
#define Block NAME(Block)

INLINE int64_t NAME(least)(const Attention *a, int64_t query) { /* the nearest keys of a query begin here */
    if (a->block) return query / a->block * a->block;
    int64_t least = a->window ? query - a->window + 1 : query + 1;
    return least < 0 ? 0 : least;
}

INLINE Block NAME(block)(const Attention *a, int64_t first) {
    int64_t end = first + 32 < a->length ? first + 32 : a->length;
    Block b = {.first = first, .start = NAME(least)(a, first), .last = a->far - 1};
    b.near = a->window || a->block ? end - b.start : 0;
    if (a->block) b.columns = (end - 1) / a->block;
    if (a->stride && (end - 1) / a->stride > b.last) b.last = (end - 1) / a->stride;
    b.rows = b.near + b.columns + b.last + 1 - a->far;
    return b;
}

/* rows [b->rows, 32] = products of the block's keys (or values) with queries (or gradients) [size, 32]. */
INLINE void NAME(scores)(
        const Head *h, const Block *b, const float *keys, const float *across, const float *queries, float *rows) {
    const Attention *a = h->a;
    int64_t size = a->size;
    NAME(multiply)(b->near, size, keys + b->start * size, size, 1, queries, 32, rows, 32, 0);
    rows += b->near * 32;
    NAME(multiply)(b->columns, size, keys + (a->block - 1) * size, a->block * size, 1, queries, 32, rows, 32, 0);
    rows += b->columns * 32;
    for (int64_t m = a->far; m <= b->last; m++, rows += 32) {
        const float *at = across + b->first - m * a->stride;
        for (int part = 0; part < 32; part += LANES) {
            reg sum = {0};
            for (int64_t d = 0; d < size; d++)
                sum += *(const reg *)(queries + d * 32 + part) * *(const unaligned *)(at + d * h->row + part);
            *(reg *)(rows + part) = sum;
        }
    }
}

/* to [size, 32] = sums over the block's keys (or values), each weighted by its row. */
INLINE void NAME(weighted)(
        const Head *h, const Block *b, const float *keys, const float *across, const float *rows, float *to) {
    const Attention *a = h->a;
    int64_t size = a->size;
    NAME(multiply)(size, b->near, keys + b->start * size, 1, size, rows, 32, to, 32, 0);
    rows += b->near * 32;
    if (b->columns)
        NAME(multiply)(size, b->columns, keys + (a->block - 1) * size, 1, a->block * size, rows, 32, to, 32, 1);
    rows += b->columns * 32;
    for (int64_t m = a->far; m <= b->last; m++, rows += 32) {
        const float *at = across + b->first - m * a->stride;
        for (int64_t d = 0; d < size; d++)
            for (int part = 0; part < 32; part += LANES)
                *(reg *)(to + d * 32 + part) +=
                    *(const reg *)(rows + part) * *(const unaligned *)(at + d * h->row + part);
    }
}

/* Adds to the keys' (or values') gradients: rows [b->rows, 32] times the queries, which lie both ways. */
INLINE void NAME(add_back)(
        const Head *h, const Block *b, const float *rows, const float *tokens, const float *queries,
        float *keys, float *across) {
    const Attention *a = h->a;
    int64_t size = a->size;
    for (int64_t d = 0; d < size; d += 32)
        NAME(multiply)(b->near, 32, rows, 32, 1, tokens + d, size, keys + b->start * size + d, size, 1);
    rows += b->near * 32;
    for (int64_t d = 0; d < size; d += 32)
        NAME(multiply)(
            b->columns, 32, rows, 32, 1, tokens + d, size, keys + (a->block - 1) * size + d, a->block * size, 1);
    rows += b->columns * 32;
    for (int64_t m = a->far; m <= b->last; m++, rows += 32) {
        float *at = across + b->first - m * a->stride;
        for (int64_t d = 0; d < size; d++)
            for (int part = 0; part < 32; part += LANES)
                *(unaligned *)(at + d * h->row + part) +=
                    *(const reg *)(rows + part) * *(const reg *)(queries + d * 32 + part);
    }
}

INLINE reg NAME(larger)(reg a, reg b) {
    integers first = a > b;
    return (reg)(((integers)a & first) | ((integers)b & ~first));
}

/* Scales the scores and hides what the pattern leaves out, by scores that no exponential survives. */
INLINE void NAME(hide)(const Attention *a, const Block *b, float scale, float *rows) {
    for (int part = 0; part < 32; part += LANES) {
        integers query, least;
        for (int i = 0; i < LANES; i++)
            query[i] = (int32_t)b->first + part + i, least[i] = (int32_t)NAME(least)(a, query[i]);
        reg *row = (reg *)(rows + part);
#define HIDE(visible) { \
    integers kept = (visible); \
    *row = (reg)(((integers)(*row * scale) & kept) | ((integers)((reg){0} - 1e30f) & ~kept)); \
    row += PARTS; \
}
        for (int64_t i = 0; i < b->near; i++) {
            int32_t key = (int32_t)(b->start + i);
            if (key <= b->first && key >= least[LANES - 1]) { *row *= scale; row += PARTS; }
            else HIDE((query >= key) & (least <= key))
        }
        for (int64_t i = 0; i < b->columns; i++) HIDE(least > (int32_t)((i + 1) * a->block - 1))
        for (int64_t m = a->far; m <= b->last; m++) HIDE(query >= (int32_t)(m * a->stride))
#undef HIDE
    }
}

/* The rows of scores become weights: exp(score - most) · share; `fresh`: and most and share, the reciprocal of the
 * sum, are theirs. */
INLINE void NAME(softmax)(float *rows, int64_t num, float *most, float *share, int fresh) {
    for (int part = 0; part < 32; part += LANES) {
        reg *row = (reg *)(rows + part), top = *row, sum = {0};
        if (fresh) {
            for (int64_t i = 1; i < num; i++) top = NAME(larger)(top, row[PARTS * i]);
            *(reg *)(most + part) = top;
        } else top = *(const reg *)(most + part);
        reg factor = *(const reg *)(share + part);
        for (int64_t i = 0; i < num; i++) {
            reg p = NAME(exponential)(row[PARTS * i] - top);
            sum += p;
            row[PARTS * i] = fresh ? p : p * factor;
        }
        if (fresh) *(reg *)(share + part) = 1.0f / sum;
    }
}

/* dp becomes the scores' gradient: p (dp - sum of p dp) scale. */
INLINE void NAME(score_gradient)(const float *p, float *dp, int64_t num, float scale) {
    for (int part = 0; part < 32; part += LANES) {
        const reg *weight = (const reg *)(p + part);
        reg *row = (reg *)(dp + part), sum = {0};
        for (int64_t i = 0; i < num; i++) sum += weight[PARTS * i] * row[PARTS * i];
        for (int64_t i = 0; i < num; i++) row[PARTS * i] = weight[PARTS * i] * (row[PARTS * i] - sum) * scale;
    }
}

INLINE void NAME(open)(Head *h, const char *k, const char *v, int bf16, int64_t stride) {
    const Attention *a = h->a;
    NAME(take)(k, bf16, stride, a->length, a->size, h->k);
    NAME(take)(v, bf16, stride, a->length, a->size, h->v);
    if (!a->stride) return;
    NAME(transposed)(h->k, a->size, PADDED(a->length), a->size, h->k_lanes, h->row);
    NAME(transposed)(h->v, a->size, PADDED(a->length), a->size, h->v_lanes, h->row);
}

/* Gives the sums, those of the diagonals added, which lie feature-major. */
INLINE void NAME(close)(const Head *h, float *sums, const float *across, char *to, int bf16, int64_t stride) {
    const Attention *a = h->a;
    for (int64_t i = 0; a->stride && i < PADDED(a->length); i += 16)
        for (int64_t d = 0; d < a->size; d += 16) {
            float square[256] __attribute__((aligned(64)));
            NAME(transposed)(across + d * h->row + i, h->row, 16, 16, square, 16);
            for (int64_t j = 0; j < 256; j += LANES)
                *(unaligned *)(sums + (i + j / 16) * a->size + d + j % 16) += *(const reg *)(square + j);
        }
    NAME(give)(sums, to, bf16, stride, a->length, a->size);
}

/* Where a head's rows lie: of the activations with strides of [batch, head, token], or of a contiguous
 * [batch, token, head, size]. */
INLINE int64_t NAME(strided)(const Attention *a, int64_t n, const int64_t *strides) {
    return n / a->heads * strides[0] + n % a->heads * strides[1];
}
INLINE int64_t NAME(contiguous)(const Attention *a, int64_t n) {
    return (n / a->heads * a->length * a->heads + n % a->heads) * a->size;
}

#define LEAD 32 /* floats before each feature: diagonals of the first queries reach back beyond it */

TARGET static void NAME(attention)(
        int threads, const Attention *a, const char *q, const char *k, const char *v, int bf16, const int64_t *strides,
        char *out, float *most, float *share) {
    int64_t size = a->size, padded = PADDED(a->length), row = padded + LEAD + 16, bytes = bf16 ? 2 : 4;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        unsigned mode = flush_tiny();
        float *buffer = calloc(2 * (padded + row + 32) * size + 64 * padded + 2048 + 16, sizeof(float)),
              *next = (float *)(((uintptr_t)buffer + 63) / 64 * 64);
#define TAKE(name, floats) float *name = next; next += (floats);
        TAKE(keys, padded * size) TAKE(values, padded * size) TAKE(key_lanes, row * size) TAKE(value_lanes, row * size)
        TAKE(tokens, 32 * size) TAKE(queries, 32 * size) TAKE(rows, 64 * padded + 2048)
        Head h = {a, row, keys, values, key_lanes + LEAD, value_lanes + LEAD};
#pragma omp for schedule(static)
        for (int64_t n = 0; n < a->batch * a->heads; n++) {
            int64_t from = NAME(strided)(a, n, strides) * bytes;
            NAME(open)(&h, k + from, v + from, bf16, strides[2]);
            for (int64_t first = 0; first < a->length; first += 32) {
                Block b = NAME(block)(a, first);
                int64_t valid = a->length - first < 32 ? a->length - first : 32;
                float *own_most = most + n * padded + first, *own_share = share + n * padded + first;
                NAME(take)(q + from + first * strides[2] * bytes, bf16, strides[2], valid, size, tokens);
                NAME(transposed)(tokens, size, 32, size, queries, 32);
                NAME(scores)(&h, &b, keys, h.k_lanes, queries, rows);
                NAME(hide)(a, &b, a->scale, rows);
                NAME(softmax)(rows, b.rows, own_most, own_share, 1);
                NAME(weighted)(&h, &b, values, h.v_lanes, rows, queries);
                for (int64_t d = 0; d < PARTS * size; d++) ((reg *)queries)[d] *= ((const reg *)own_share)[d % PARTS];
                NAME(transposed)(queries, 32, size, 32, tokens, size);
                NAME(give)(
                    tokens, out + (NAME(contiguous)(a, n) + first * a->heads * size) * bytes,
                    bf16, a->heads * size, valid, size);
            }
        }
        free(buffer);
        as_before(mode);
    }
}

TARGET static void NAME(attention_gradient)(
        int threads, const Attention *a, const char *q, const char *k, const char *v, int bf16, const int64_t *strides,
        const char *d_out, const int64_t *d_strides, const float *most, const float *share,
        char *dq, char *dk, char *dv) {
    int64_t size = a->size, padded = PADDED(a->length), row = padded + LEAD + 16, bytes = bf16 ? 2 : 4,
            width = a->heads * size;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        unsigned mode = flush_tiny();
        float *buffer = malloc(
                  (4 * (padded + row) * size + 5 * 32 * size + 2 * (64 * padded + 2048) + 16) * sizeof(float)),
              *next = (float *)(((uintptr_t)buffer + 63) / 64 * 64);
        TAKE(keys, padded * size) TAKE(values, padded * size) TAKE(key_lanes, row * size) TAKE(value_lanes, row * size)
        TAKE(key_sums, padded * size) TAKE(value_sums, padded * size)
        TAKE(key_lane_sums, row * size) TAKE(value_lane_sums, row * size)
        TAKE(tokens, 32 * size) TAKE(queries, 32 * size)
        TAKE(d_tokens, 32 * size) TAKE(d, 32 * size) TAKE(sums, 32 * size)
        TAKE(p, 64 * padded + 2048) TAKE(dp, 64 * padded + 2048)
        Head h = {a, row, keys, values, key_lanes + LEAD, value_lanes + LEAD};
        memset(key_lanes, 0, 2 * row * size * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t n = 0; n < a->batch * a->heads; n++) {
            int64_t from = NAME(strided)(a, n, strides) * bytes, d_from = NAME(strided)(a, n, d_strides) * bytes,
                    to = NAME(contiguous)(a, n) * bytes;
            NAME(open)(&h, k + from, v + from, bf16, strides[2]);
            memset(key_sums, 0, 2 * (padded + row) * size * sizeof(float));
            for (int64_t first = 0; first < a->length; first += 32) {
                Block b = NAME(block)(a, first);
                int64_t valid = a->length - first < 32 ? a->length - first : 32;
                NAME(take)(q + from + first * strides[2] * bytes, bf16, strides[2], valid, size, tokens);
                NAME(take)(d_out + d_from + first * d_strides[2] * bytes, bf16, d_strides[2], valid, size, d_tokens);
                NAME(transposed)(tokens, size, 32, size, queries, 32);
                NAME(transposed)(d_tokens, size, 32, size, d, 32);
                NAME(scores)(&h, &b, keys, h.k_lanes, queries, p);
                NAME(hide)(a, &b, a->scale, p);
                NAME(softmax)(p, b.rows, (float *)most + n * padded + first, (float *)share + n * padded + first, 0);
                NAME(scores)(&h, &b, values, h.v_lanes, d, dp);
                NAME(add_back)(&h, &b, p, d_tokens, d, value_sums, value_lane_sums + LEAD);
                NAME(score_gradient)(p, dp, b.rows, a->scale);
                NAME(add_back)(&h, &b, dp, tokens, queries, key_sums, key_lane_sums + LEAD);
                NAME(weighted)(&h, &b, keys, h.k_lanes, dp, sums);
                NAME(transposed)(sums, 32, size, 32, tokens, size);
                NAME(give)(tokens, dq + to + first * width * bytes, bf16, width, valid, size);
            }
            NAME(close)(&h, key_sums, key_lane_sums + LEAD, dk + to, bf16, width);
            NAME(close)(&h, value_sums, value_lane_sums + LEAD, dv + to, bf16, width);
        }
        free(buffer);
        as_before(mode);
    }
#undef TAKE
}
#undef Head
#undef Block
#undef reg
#undef unaligned
#undef integers
#undef LEAD
#undef ROWS
#undef PARTS
