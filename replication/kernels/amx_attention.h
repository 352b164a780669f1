/* Attention in bfloat16 by AMX, forward and backward, over the pairs of a pattern as attention.h has them: a block of
 * 32 queries lies across, scores and weights are rows, one a key, and a softmax is computed in float. Keys that a block
 * shares are multiplied as tiles, in groups of 32 from a multiple of 32 on, those of `columns` as keys of their own
 * that lie behind the sequence; diagonals lane by lane, in pairs of features. After amx_softmax.h. */
#define LEAD 32 /* tokens before each pair of features: diagonals of the first queries reach back beyond it */

/* A head's queries, keys, values, or its output's gradient, [tokens, size], as products take them; zeros beyond. */
typedef struct {
    uint16_t *rows;    /* [tokens, size] */
    uint16_t *across;  /* first operands, 16 features × 32 tokens: [tokens / 32, size / 16] of them */
    uint16_t *couples; /* second operands, 16 couples of tokens × 16 features: as many */
    uint32_t *pairs;   /* [size / 2, row]: two features of a token side by side */
} Side;

typedef struct {
    const Attention *a;
    int64_t padded, tokens, row; /* of the sequence; with the columns; from one pair of features to the next */
    Side q, k, v, d;
    float *key_sums, *value_sums; /* [tokens, size] */
    float *weights, *gradients; /* of the diagonals: [diagonals, row] */
} TileHead;

/* Copies whole registers. */
INLINE void copy(const void *from, void *to, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64)
        _mm512_storeu_si512((char *)to + i, _mm512_loadu_si512((const char *)from + i));
}

/* The block's places for keys: whole groups. */
INLINE Block tile_block(const Attention *a, int64_t first) {
    Block b = block_avx512(a, first);
    b.start = b.start / KEYS * KEYS;
    if (b.near) b.near = first + 32 - b.start;
    b.columns = PADDED(b.columns);
    b.rows = b.near + b.columns + b.last + 1 - a->far;
    return b;
}

/* The first token of a block's group of keys. */
INLINE int64_t group_at(const TileHead *h, const Block *b, int64_t group) {
    return KEYS * group < b->near ? b->start + KEYS * group : h->padded + KEYS * group - b->near;
}

/* A side from its rows in the activations, each form of it that has a place. */
INLINE void take_side(const TileHead *h, const uint16_t *from, int64_t stride, const Side *s) {
    int64_t size = h->a->size, length = h->a->length;
    for (int64_t i = 0; i < h->tokens; i++) {
        int64_t token = i < h->padded ? i : (i - h->padded + 1) * h->a->block - 1;
        if (token < length) copy(from + token * stride, s->rows + i * size, 2 * size);
        else memset(s->rows + i * size, 0, 2 * size);
    }
    for (int64_t i = 0, tile = 0; i < h->tokens; i += 32)
        for (int64_t f = 0; f < size; f += TILE, tile += 512) {
            if (s->across) to_operand(s->rows + i * size + f, size, 32, 1, s->across + tile);
            if (s->couples) to_operand(s->rows + i * size + f, size, 32, 0, s->couples + tile);
        }
    for (int64_t i = 0; s->pairs && i < h->padded; i += 16)
        for (int64_t f = 0; f < size; f += 32) {
            __m512 r[16];
            for (int j = 0; j < 16; j++) r[j] = _mm512_loadu_ps(s->rows + (i + j) * size + f);
            transpose_avx512(r);
            for (int j = 0; j < 16; j++) _mm512_storeu_ps(s->pairs + (f / 2 + j) * h->row + i, r[j]);
        }
}

/* rows [b->rows, 32] = products of keys (or values) with the block's queries (or gradients). */
INLINE void tile_scores(const TileHead *h, const Block *b, const Side *keys, const Side *queries, float *rows) {
    const Attention *a = h->a;
    int64_t size = a->size, groups = (b->near + b->columns) / KEYS;
    uint32_t own[size / 2][32] __attribute__((aligned(64)));
    for (int64_t i = 0; i < size / 2; i++) copy(queries->pairs + i * h->row + b->first, own[i], sizeof own[i]);
    WRITTEN
    for (int64_t g = 0; g < groups; g++, rows += 32 * KEYS) {
        const uint16_t *from = keys->rows + group_at(h, b, g) * size;
        ZERO_SUMS
        for (int64_t f = 0; f < size; f += 32)
            multiply_32(from + f, from + 16 * size + f, 2 * size, own[f / 2], own[f / 2] + 16, 128);
        store_sums(rows, rows + 512, 128);
    }
    for (int64_t m = a->far; m <= b->last; m++, rows += 32) {
        const uint32_t *at = keys->pairs + b->first - m * a->stride;
        __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int64_t i = 0; i < size / 2; i += 2)
            for (int j = 0; j < 4; j++)
                sums[j] = _mm512_dpbf16_ps(
                    sums[j], (__m512bh)_mm512_loadu_ps(own[i + j / 2] + j % 2 * 16),
                    (__m512bh)_mm512_loadu_ps(at + (i + j / 2) * h->row + j % 2 * 16));
        _mm512_store_ps(rows, sums[0] + sums[2]);
        _mm512_store_ps(rows + 16, sums[1] + sums[3]);
    }
}

/* to [size, 16] += sum over `num` diagonals of weights times pairs, of which each next lies a step further. */
INLINE void weigh_diagonals(
        const TileHead *h, int64_t num, const uint32_t *pairs, int64_t step, const float *weights, int64_t weights_step,
        float *to, int64_t to_row) {
    for (int64_t i = 0; i < h->a->size / 2; i += 4) {
        __m512 low[4], high[4];
        for (int j = 0; j < 4; j++) {
            low[j] = _mm512_load_ps(to + (2 * (i + j)) * to_row);
            high[j] = _mm512_load_ps(to + (2 * (i + j) + 1) * to_row);
        }
        for (int64_t m = 0; m < num; m++) {
            __m512 weight = _mm512_loadu_ps(weights + m * weights_step);
            for (int j = 0; j < 4; j++) {
                __m512i pair = _mm512_loadu_si512(pairs + (i + j) * h->row + m * step);
                low[j] += weight * (__m512)_mm512_slli_epi32(pair, 16);
                high[j] += weight * (__m512)_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000));
            }
        }
        for (int j = 0; j < 4; j++) {
            _mm512_store_ps(to + (2 * (i + j)) * to_row, low[j]);
            _mm512_store_ps(to + (2 * (i + j) + 1) * to_row, high[j]);
        }
    }
}

/* to [size, 32] = sums over the block's keys (or values), each weighted by its row. */
INLINE void tile_weighted(
        const TileHead *h, const Block *b, const Side *keys, const uint16_t *coupled, const float *rows, float *to) {
    const Attention *a = h->a;
    int64_t size = a->size, groups = (b->near + b->columns) / KEYS;
    WRITTEN
    for (int64_t f = 0; f < size; f += 32) {
        ZERO_SUMS
        for (int64_t g = 0; g < groups; g++) {
            const uint16_t *from = keys->across + group_at(h, b, g) * size + f * 32, *own = coupled + 1024 * g;
            multiply_32(from, from + 512, 64, own, own + 512, 64);
        }
        store_sums(to + f * 32, to + f * 32 + 512, 128);
    }
    WRITTEN
    for (int part = 0; part < 32 && b->last >= a->far; part += 16)
        weigh_diagonals(
            h, b->last + 1 - a->far, keys->pairs + b->first + part - a->far * a->stride, -a->stride,
            rows + groups * KEYS * 32 + part, 32, to + part, 32);
}

/* Adds to the keys' (or values') gradients: rows [b->rows, 32] times the block's queries (or gradients); those of
 * diagonals are kept, for `close_side`. */
INLINE void tile_add_back(
        const TileHead *h, const Block *b, const Side *queries, const uint16_t *rounded, const float *rows, float *sums,
        float *diagonals) {
    const Attention *a = h->a;
    int64_t size = a->size, groups = (b->near + b->columns) / KEYS;
    WRITTEN
    for (int64_t f = 0; groups && f < size; f += 32) {
        const uint16_t *own = queries->couples + b->first * size + f * 32;
        _tile_loadd(6, own, 64); _tile_loadd(7, own + 512, 64);
        for (int64_t g = 0; g < groups; g++) {
            float *to = sums + group_at(h, b, g) * size + f;
            _tile_loadd(4, rounded + 1024 * g, 64); _tile_loadd(5, rounded + 1024 * g + 512, 64);
            load_sums(to, to + 16 * size, 4 * size);
            _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
            store_sums(to, to + 16 * size, 4 * size);
        }
    }
    WRITTEN
    rows += groups * KEYS * 32;
    for (int64_t m = a->far; m <= b->last; m++, rows += 32)
        copy(rows, diagonals + (m - a->far) * h->row + b->first, 32 * sizeof *rows);
}

/* Gives a side's gradient: its sums, those of the columns' and of diagonals added. */
INLINE void close_side(
        const TileHead *h, const Side *queries, float *sums, const float *diagonals, uint16_t *to, int64_t stride) {
    const Attention *a = h->a;
    int64_t size = a->size, num = a->stride ? (a->length - 1) / a->stride + 1 - a->far : 0;
    float own[size][16] __attribute__((aligned(64)));
    for (int64_t i = h->padded; i < h->tokens; i++) {
        int64_t token = (i - h->padded + 1) * a->block - 1;
        for (int64_t f = 0; token < a->length && f < size; f++) sums[token * size + f] += sums[i * size + f];
    }
    for (int64_t i = 0; num > 0 && i < a->length; i += 16) {
        int64_t query = i + a->far * a->stride, reached = (a->length - 1 - query) / a->stride + 1;
        if (query >= a->length) break;
        memset(own, 0, sizeof own);
        weigh_diagonals(
            h, reached < num ? reached : num, queries->pairs + query, a->stride, diagonals + query, h->row + a->stride,
            own[0], 16);
        for (int64_t f = 0; f < size; f += 16) {
            __m512 r[16];
            for (int j = 0; j < 16; j++) r[j] = _mm512_load_ps(own[f + j]);
            transpose_avx512(r);
            for (int j = 0; j < 16; j++) {
                float *at = sums + (i + j) * size + f;
                _mm512_storeu_ps(at, _mm512_loadu_ps(at) + r[j]);
            }
        }
    }
    for (int64_t i = 0; i < a->length; i++)
        for (int64_t f = 0; f < size; f += 32) {
            const float *at = sums + i * size + f;
            _mm512_storeu_si512(
                to + i * stride + f, (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(at + 16), _mm512_load_ps(at)));
        }
}

/* Room for what a head needs, zeros; `backward`: for its gradients too. */
INLINE char *open_head(TileHead *h, const Attention *a, int backward) {
    int64_t columns = a->block ? (a->length - 1) / a->block : 0, size = a->size,
            diagonals = a->stride ? (a->length - 1) / a->stride + 1 : 0;
    *h = (TileHead){.a = a, .padded = PADDED(a->length)};
    h->tokens = h->padded + PADDED(columns), h->row = LEAD + h->padded + 32;
    const int shared = a->window || a->block;
    int64_t matrix = h->tokens * size * 2, pairs = size / 2 * h->row * 4;
    char *buffer = calloc(1, 13 * matrix + 4 * pairs + 2 * (diagonals * h->row * 4 + 64) + 64),
         *next = (char *)(((uintptr_t)buffer + 63) / 64 * 64);
#define PLACE(what, condition, bytes) if (condition) what = (void *)next, next += ((bytes) + 63) / 64 * 64;
    Side *sides[] = {&h->q, &h->k, &h->v, &h->d};
    for (int i = 0; i < 3 + backward; i++) {
        const int is_key = i == 1, is_value = i == 2;
        PLACE(sides[i]->rows, 1, matrix)
        PLACE(sides[i]->across, shared && (is_key ? backward : is_value && !backward), matrix)
        PLACE(sides[i]->couples, shared && backward && !is_key && !is_value, matrix)
        PLACE(sides[i]->pairs, a->stride || !(is_key || is_value), pairs)
        if (sides[i]->pairs) sides[i]->pairs += LEAD;
    }
    PLACE(h->key_sums, backward, 2 * matrix)
    PLACE(h->value_sums, backward, 2 * matrix)
    PLACE(h->weights, backward, diagonals * h->row * 4)
    PLACE(h->gradients, backward, diagonals * h->row * 4)
#undef PLACE
    return buffer;
}

/* to [tokens, size] = transpose of sums [size, 32], in bf16. */
INLINE void give_block(const float *sums, uint16_t *to, int64_t stride, int64_t valid, int64_t size) {
    for (int64_t i = 0; i < valid; i += 16)
        for (int64_t f = 0; f < size; f += 16) {
            __m512 r[16];
            for (int j = 0; j < 16; j++) r[j] = _mm512_load_ps(sums + (f + j) * 32 + i);
            transpose_avx512(r);
            for (int j = 0; j < 16 && i + j < valid; j++)
                _mm256_storeu_si256(
                    (__m256i *)(to + (i + j) * stride + f), (__m256i)_mm512_cvtneps_pbh(r[j]));
        }
}

#define ROOM (64 * h.tokens + 4096) /* floats of a block's rows: its keys, and as many diagonals at most */

TARGET static void tile_attention(
        int threads, const Attention *a, const uint16_t *q, const uint16_t *k, const uint16_t *v,
        const int64_t *strides, uint16_t *out, float *most, float *share) {
    int64_t size = a->size, width = a->heads * size;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        unsigned mode = flush_tiny();
        TileHead h;
        char *buffer = open_head(&h, a, 0);
        float *rows = aligned_alloc(64, ROOM * sizeof *rows), *sums = aligned_alloc(64, 32 * size * sizeof *sums);
        uint16_t *coupled = aligned_alloc(64, ROOM * sizeof *coupled);
        configure_tiles(32);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < a->batch * a->heads; n++) {
            int64_t from = strided_avx512(a, n, strides);
            take_side(&h, q + from, strides[2], &h.q);
            take_side(&h, k + from, strides[2], &h.k);
            take_side(&h, v + from, strides[2], &h.v);
            for (int64_t first = 0; first < a->length; first += 32) {
                Block b = tile_block(a, first);
                int64_t valid = a->length - first < 32 ? a->length - first : 32;
                float *own_share = share + n * h.padded + first;
                tile_scores(&h, &b, &h.k, &h.q, rows);
                hide_avx512(a, &b, 1, rows);
                tile_softmax(a, &b, rows, most + n * h.padded + first, own_share, coupled);
                tile_weighted(&h, &b, &h.v, coupled, rows, sums);
                for (int64_t f = 0; f < 32 * size; f += 16)
                    _mm512_store_ps(sums + f, _mm512_load_ps(sums + f) * _mm512_loadu_ps(own_share + f % 32));
                give_block(sums, out + contiguous_avx512(a, n) + first * width, width, valid, size);
            }
        }
        _tile_release();
        free(buffer), free(rows), free(sums), free(coupled);
        as_before(mode);
    }
}

TARGET static void tile_attention_gradient(
        int threads, const Attention *a, const uint16_t *q, const uint16_t *k, const uint16_t *v,
        const int64_t *strides, const uint16_t *d, const int64_t *d_strides, const float *most, const float *share,
        uint16_t *dq, uint16_t *dk, uint16_t *dv) {
    int64_t size = a->size, width = a->heads * size;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        unsigned mode = flush_tiny();
        TileHead h;
        char *buffer = open_head(&h, a, 1);
        float *p = aligned_alloc(64, 2 * ROOM * sizeof *p), *dp = p + ROOM,
              *sums = aligned_alloc(64, 32 * size * sizeof *sums);
        uint16_t *rounded = aligned_alloc(64, 3 * ROOM * sizeof *rounded), *d_rounded = rounded + ROOM,
                 *d_coupled = d_rounded + ROOM;
        configure_tiles(32);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < a->batch * a->heads; n++) {
            int64_t from = strided_avx512(a, n, strides), to = contiguous_avx512(a, n);
            take_side(&h, q + from, strides[2], &h.q);
            take_side(&h, k + from, strides[2], &h.k);
            take_side(&h, v + from, strides[2], &h.v);
            take_side(&h, d + strided_avx512(a, n, d_strides), d_strides[2], &h.d);
            memset(h.key_sums, 0, 2 * h.tokens * size * sizeof(float));
            for (int64_t first = 0; first < a->length; first += 32) {
                Block b = tile_block(a, first);
                int64_t valid = a->length - first < 32 ? a->length - first : 32;
                tile_scores(&h, &b, &h.k, &h.q, p);
                tile_scores(&h, &b, &h.v, &h.d, dp);
                hide_avx512(a, &b, 1, p);
                int64_t at = n * h.padded + first;
                tile_softmax_gradient(a, &b, p, dp, most + at, share + at, rounded, d_rounded, d_coupled);
                tile_add_back(&h, &b, &h.d, rounded, p, h.value_sums, h.weights);
                tile_add_back(&h, &b, &h.q, d_rounded, dp, h.key_sums, h.gradients);
                tile_weighted(&h, &b, &h.k, d_coupled, dp, sums);
                give_block(sums, dq + to + first * width, width, valid, size);
            }
            close_side(&h, &h.q, h.key_sums, h.gradients, dk + to, width);
            close_side(&h, &h.d, h.value_sums, h.weights, dv + to, width);
        }
        _tile_release();
        free(buffer), free(p), free(sums), free(rounded);
        as_before(mode);
    }
}
#undef Block
#undef KEYS
#undef LEAD
#undef ROOM
#undef LOG2_E
