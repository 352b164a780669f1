/* The products of a mask in square blocks of 32 or 16, in bfloat16, by AMX: a tile instruction multiplies 16 rows of up
 * to 32 numbers with 16 columns of them. A block's weights lie packed as the instruction wants its second operand: two
 * neighbouring inputs of an output side by side. Each thread asks for its tiles; `sparse_tiles_allowed` asks whether
 * the system lets it have them. */
#define TILE 16 /* rows of a tile, and float columns of a sum */
#define GROUP 32 /* tokens of a tile, where tokens are what is summed over */
#define CHUNK 8 /* groups of tokens whose tiles stay in the caches */
#define LARGE (1 << 22) /* bytes of an output that no second-level cache holds */

/* Blocks of a mask: those of row r of blocks are others[start[r] : start[r + 1]], and `place` their places in `value`,
 * in which each has the order of the product that they are for. */
typedef struct {
    int64_t in, out, block;
    const int32_t *start, *other, *place;
    const uint16_t *value;
} Blocks;

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((packed)) TileConfig;

#define ZERO_SUMS _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
/* The compiler does not know that a tile is loaded from memory. */
#define WRITTEN __asm__ volatile("" ::: "memory");

/* Tiles 0 to 3 are sums, 4 and 5 first operands, 6 and 7 second ones; `depth` numbers are summed over. */
INLINE void configure_tiles(int depth) {
    TileConfig config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.rows[t] = (uint8_t)(t < 6 ? TILE : depth / 2);
        config.bytes[t] = (uint16_t)(t == 4 || t == 5 ? 2 * depth : 64);
    }
    _tile_loadconfig(&config);
}

/* Sums 0 to 3, of two rows of tiles, to or from rows of `row` bytes; `below` are the second row's. */
INLINE void store_sums(float *to, float *below, int64_t row) {
    _tile_stored(0, to, row); _tile_stored(1, to + TILE, row);
    _tile_stored(2, below, row); _tile_stored(3, below + TILE, row);
}

INLINE void load_sums(const float *from, const float *below, int64_t row) {
    _tile_loadd(0, from, row); _tile_loadd(1, from + TILE, row);
    _tile_loadd(2, below, row); _tile_loadd(3, below + TILE, row);
}

/* Adds to them two first operands times two second ones, each with rows of so many bytes. */
INLINE void multiply_32(
        const void *a, const void *below, int64_t row, const void *b, const void *beside, int64_t b_row) {
    _tile_loadd(4, a, row); _tile_loadd(6, b, b_row);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, beside, b_row);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, below, row);
    _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
}

/* A row of 16 or 32 sums as bfloat16 or float; whole lines, if `past`, past the caches, which would read them first. */
INLINE void put_sums(const float *sums, void *y, int64_t at, int y_bf16, int num, int past) {
    __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + num - 16);
    if (y_bf16 && num == 32) {
        __m512 row = (__m512)_mm512_cvtne2ps_pbh(high, low);
        if (past) _mm512_stream_ps((float *)((uint16_t *)y + at), row);
        else _mm512_storeu_ps((uint16_t *)y + at, row);
    } else if (y_bf16) _mm256_storeu_si256((__m256i *)((uint16_t *)y + at), (__m256i)_mm512_cvtneps_pbh(low));
    else {
        _mm512_storeu_ps((float *)y + at, low);
        if (num == 32) _mm512_storeu_ps((float *)y + at + 16, high);
    }
}

/* 32 tokens × a block of 32 outputs. */
INLINE void sum_32(const Blocks *w, const uint16_t *x, int64_t j, float *sums) {
    ZERO_SUMS WRITTEN
    for (int32_t p = w->start[j]; p < w->start[j + 1]; p++) {
        const uint16_t *a = x + w->other[p] * 32, *b = w->value + (int64_t)w->place[p] * 1024;
        multiply_32(a, a + 16 * w->in, w->in * 2, b, b + 512, 64);
    }
    store_sums(sums, sums + 512, 128);
}

/* 64 tokens × a block of 16 outputs. */
INLINE void sum_16(const Blocks *w, const uint16_t *x, int64_t j, float *sums) {
    ZERO_SUMS WRITTEN
    for (int32_t p = w->start[j]; p < w->start[j + 1]; p++) {
        const uint16_t *a = x + w->other[p] * 16;
        _tile_loadd(6, w->value + (int64_t)w->place[p] * 256, 64);
        _tile_loadd(4, a, w->in * 2); _tile_loadd(5, a + 16 * w->in, w->in * 2);
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(4, a + 32 * w->in, w->in * 2); _tile_loadd(5, a + 48 * w->in, w->in * 2);
        _tile_dpbf16ps(2, 4, 6); _tile_dpbf16ps(3, 5, 6);
    }
    _tile_stored(0, sums, 64); _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64); _tile_stored(3, sums + 768, 64);
}

/* Y [n, out] = X [n, in] W, X in bfloat16; rows of blocks are outputs. */
TARGET static void tile_product(int threads, const Blocks *w, const uint16_t *x, void *y, int y_bf16, int64_t n) {
    int64_t block = w->block, tokens = block == 32 ? 32 : 64, stripes = (n + tokens - 1) / tokens;
    /* Outputs whose weights stay in the second-level cache while tokens pass. */
    int64_t rows = w->out / block, each = rows * (1 << 19) / (w->start[rows] * block * block + 1);
    each = each < 1 ? 1 : each > rows ? rows : each;
    int past = n * w->out * 2 > LARGE;
    int64_t ahead = tokens * w->in / 32 / each + 1; /* lines of the next stripe that are fetched with each row */
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float sums[1024] __attribute__((aligned(64)));
        uint16_t *last = aligned_alloc(64, (tokens * w->in * 2 + 63) / 64 * 64);
        configure_tiles((int)block);
        for (int64_t first = 0; first < rows; first += each)
#pragma omp for schedule(static) nowait
            for (int64_t s = 0; s < stripes; s++) {
                const uint16_t *from = x + s * tokens * w->in;
                int64_t valid = n - s * tokens < tokens ? n - s * tokens : tokens;
                if (valid < tokens) {
                    memset(last, 0, tokens * w->in * 2);
                    from = memcpy(last, from, valid * w->in * 2);
                }
                const uint16_t *next = from, *end = s + 1 < stripes ? from + tokens * w->in : from;
                for (int64_t j = first; j < rows && j < first + each; j++) {
                    for (int64_t l = 0; l < ahead && next < end; l++, next += 32)
                        _mm_prefetch((const char *)(next + tokens * w->in), _MM_HINT_T1);
                    if (block == 32) sum_32(w, from, j, sums);
                    else sum_16(w, from, j, sums);
                    for (int64_t r = 0; r < valid; r++)
                        put_sums(sums + r * block, y, (s * tokens + r) * w->out + j * block, y_bf16, (int)block, past);
                }
            }
        _mm_sfence();
        _tile_release();
        free(last);
    }
}

/* Two rows of 16 numbers, side by side. */
INLINE __m512i paired(const uint16_t *a, const uint16_t *b) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)a)),
            high = b ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)b)) : _mm512_setzero_si512();
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/* 32 tokens × 16 features as a tile: pairs of tokens, or, `turned`, features × tokens. Rows beyond `valid` are 0. */
INLINE void to_operand(const uint16_t *from, int64_t stride, int64_t valid, int turned, uint16_t *tile) {
    __m512 rows[16];
    for (int k = 0; k < 16; k++)
        rows[k] = 2 * k >= valid ? _mm512_setzero_ps()
            : (__m512)paired(from + 2 * k * stride, 2 * k + 1 < valid ? from + (2 * k + 1) * stride : 0);
    if (turned) transpose_avx512(rows);
    for (int k = 0; k < 16; k++) _mm512_store_ps(tile + 32 * k, rows[k]);
}

/* sums [blocks, block, block] = Xᵀ D at each block, over the tokens from `begin` to `end`; W's rows of blocks are those
 * of dX = D Wᵀ, whose outputs are X's features. A chunk of tokens at a time is laid out as operands: of 16 features one
 * tile for each of its groups. */
TARGET static void sum_blocks(
        int threads, const Blocks *w, const uint16_t *x, const uint16_t *d, int64_t begin, int64_t end, float *sums) {
    int64_t block = w->block, halves = block / TILE, rows = w->out / block, span = CHUNK * GROUP;
    uint16_t *first = aligned_alloc(64, w->out * span * 2), *second = aligned_alloc(64, w->in * span * 2);
#define AT_TILE(tiles, feature) ((tiles) + (feature) / TILE * CHUNK * 512)
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        configure_tiles(GROUP);
        for (int64_t t = begin; t < end; t += span) {
            int64_t groups = (end - t + GROUP - 1) / GROUP < CHUNK ? (end - t + GROUP - 1) / GROUP : CHUNK;
#pragma omp for schedule(static)
            for (int64_t g = 0; g < groups; g++) { /* by tokens: these lie in pages of their own */
                int64_t token = t + g * GROUP;
                for (int64_t f = 0; f < w->out; f += TILE)
                    to_operand(x + token * w->out + f, w->out, end - token, 1, AT_TILE(first, f) + g * 512);
                for (int64_t f = 0; f < w->in; f += TILE)
                    to_operand(d + token * w->in + f, w->in, end - token, 0, AT_TILE(second, f) + g * 512);
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t r = 0; r < rows; r++)
                for (int32_t p = w->start[r]; p < w->start[r + 1]; p++) {
                    float *to = sums + (int64_t)w->place[p] * block * block;
                    const uint16_t *a = AT_TILE(first, r * block), *b = AT_TILE(second, w->other[p] * block);
                    WRITTEN
                    if (t == begin) {
                        ZERO_SUMS
                    } else if (halves == 1) {
                        _tile_loadd(0, to, 64);
                    } else {
                        load_sums(to, to + 512, 128);
                    }
                    for (int64_t g = 0; g < groups; g++, a += 512, b += 512) {
                        if (halves == 2) {
                            multiply_32(a, a + CHUNK * 512, 64, b, b + CHUNK * 512, 64);
                        } else {
                            _tile_loadd(4, a, 64); _tile_loadd(6, b, 64);
                            _tile_dpbf16ps(0, 4, 6);
                        }
                    }
                    if (halves == 1) {
                        _tile_stored(0, to, 64);
                    } else {
                        store_sums(to, to + 512, 128);
                    }
                }
        }
        _tile_release();
    }
#undef AT_TILE
    free(first), free(second);
}

/* gradient [blocks, block, block] = Xᵀ D at each block. Each thread takes tokens of its own, so that no operand is laid
 * out by one core and read by another; where all their sums would be larger than X and D, all take the same tokens. */
TARGET static void tile_gradient(
        int threads, const Blocks *w, const uint16_t *x, const uint16_t *d, int64_t n, float *gradient) {
    int64_t size = w->start[w->out / w->block] * w->block * w->block, groups = (n + GROUP - 1) / GROUP;
    int64_t each = (groups + threads - 1) / threads * GROUP, parts = n ? (n + each - 1) / each : 0;
    if (parts < 2 || parts * size * 2 > n * (w->in + w->out)) {
        sum_blocks(threads, w, x, d, 0, n, gradient);
        return;
    }
    float *sums = aligned_alloc(64, parts * size * sizeof *sums);
#pragma omp parallel for num_threads(parts) schedule(static)
    for (int64_t i = 0; i < parts; i++)
        sum_blocks(1, w, x, d, i * each, (i + 1) * each < n ? (i + 1) * each : n, sums + i * size);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t i = 0; i < size; i += 16) {
        __m512 sum = _mm512_load_ps(sums + i);
        for (int64_t k = 1; k < parts; k++) sum = _mm512_add_ps(sum, _mm512_load_ps(sums + k * size + i));
        _mm512_storeu_ps(gradient + i, sum);
    }
    free(sums);
}

/* The blocks at corner[b] of a float matrix with rows of `stride`, as second operands. `across`: what is summed over
 * runs along the matrix's rows. */
TARGET static void tile_pack(
        int threads, const float *weight, int64_t stride, const int64_t *corner, int64_t num, int64_t block, int across,
        uint16_t *value) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t b = 0; b < num; b++)
        for (int64_t c = 0; c < block; c += TILE) {
            uint16_t *tile = value + b * block * block + c * block;
            __m512 rows[16];
            for (int k = 0; k < 16; k++) {
                const float *from = weight + corner[b];
                __m512 low, high = _mm512_setzero_ps();
                if (across) { /* row c + k of the block: its pairs are neighbours already */
                    low = _mm512_loadu_ps(from + (c + k) * stride);
                    if (block == 32) high = _mm512_loadu_ps(from + (c + k) * stride + 16);
                    rows[k] = (__m512)_mm512_cvtne2ps_pbh(high, low);
                } else if (2 * k < block) {
                    from += 2 * k * stride + c;
                    low = _mm512_loadu_ps(from), high = _mm512_loadu_ps(from + stride);
                    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
                    __m512i even = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both)),
                            odd = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
                    rows[k] = (__m512)_mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
                }
            }
            if (across) transpose_avx512(rows);
            for (int k = 0; k < block / 2; k++) _mm512_storeu_ps(tile + 32 * k, rows[k]);
        }
}

/* [from, to) = values, or zeros, past the caches. */
INLINE void stream(float *from, const float *to, const float *values) {
    for (; from < to; from += 16, values += values ? 16 : 0)
        _mm512_stream_ps(from, values ? _mm512_loadu_ps(values) : _mm512_setzero_ps());
}

/* The gradients of W's blocks as a dense float matrix, 0 elsewhere, whose rows are W's outputs. It is read when all
 * layers' gradients are there: till then the caches are for others. */
TARGET static void tile_scatter(int threads, const Blocks *w, const float *gradient, float *dense) {
    int64_t block = w->block;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < w->out; row++) {
            float *begin = dense + row * w->in, *to = begin;
            for (int32_t p = w->start[row / block]; p < w->start[row / block + 1]; p++) {
                float *next = begin + w->other[p] * block;
                stream(to, next, 0);
                to = next + block;
                stream(next, to, gradient + (w->place[p] * block + row % block) * block);
            }
            stream(to, begin + w->in, 0);
        }
        _mm_sfence();
    }
}
