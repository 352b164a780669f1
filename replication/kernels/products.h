/* The loops of the products over tiles, blocks of outputs and chunks of inputs, for tiles of ELEMENT: after float.h's
 * or bfloat16.h's own to_tile, from_sums, rows and few_gradients, which they call. */
#define PARTS ((int)(TOKENS * sizeof(ELEMENT) / 64)) /* registers of 64 bytes in a tile's row */

TARGET static void NAME(product)(
        int threads, const Structure *w, const void *x, int x_bf16, int64_t x_stride, void *tiles,
        void *y, int y_bf16, int64_t y_stride, int64_t n) {
    int64_t x_size = x_bf16 ? 2 : 4, y_size = y_bf16 ? 2 : 4, groups = w->out / w->group, block = w->block / w->group;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *sums = aligned_alloc(64, (SUMS + PAD) * TOKENS * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t first = 0; first < n; first += TOKENS) {
            int64_t rows = n - first < TOKENS ? n - first : TOKENS;
            ELEMENT *tile = (ELEMENT *)tiles + first / TOKENS * STEP(w->in, sizeof(ELEMENT));
            NAME(to_tile)((const char *)x + first * x_stride * x_size, x_bf16, x_stride, rows, w->in, tile);
            for (int64_t b = 0; b < groups; b += block) {
                int64_t end = b + block < groups ? b + block : groups;
                for (int64_t k = 0, row = 0; k < w->in; k += w->chunk, row += groups) {
#define CASE(g) \
    if (w->group == g) NAME(rows)(w, row + b, row + end, g, k == 0, (const char *)(tile + k * TOKENS), sums, b);
                    CASE(1) CASE(2)
#undef CASE
                }
                NAME(from_sums)(
                    sums, (char *)y + (first * y_stride + b * w->group) * y_size,
                    y_bf16, y_stride, rows, (end - b) * w->group);
            }
        }
        free(sums);
    }
}

/* What `tiles` tiles of tokens add to the gradient of the rows `first` to `last`: the outputs' own tiles stay in
 * registers. */
INLINE void NAME(add_gradient)(
        const Structure *w, int64_t first, int64_t last, const int group, const int tiles,
        const ELEMENT *x, int64_t x_step, const ELEMENT *d, int64_t d_step, float *gradient) {
    const char *tile[4] = {
        (const char *)x, (const char *)(x + x_step), (const char *)(x + 2 * x_step), (const char *)(x + 3 * x_step)};
    for (int64_t r = first; r < last; r++) {
        const ELEMENT *outputs = d + w->order[r] * group * TOKENS;
        PART own[16] = {0}; /* [output][tile][part] */
#define LOAD(q) \
    if (q < PARTS * tiles * group) \
        own[q] = ((const PART *)(outputs + q / PARTS % tiles * d_step + q / (PARTS * tiles) * TOKENS))[q % PARTS];
        EACH16(LOAD)
#undef LOAD
        int32_t p = w->start[r], end = w->start[r + 1];
        for (; p + 4 / group <= end; p += 4 / group)
            NAME(few_gradients)(4, group, tiles, own, tile, w->offset + p, gradient + p * group);
#define REST(num) \
    if ((end - p) * group == num) \
        NAME(few_gradients)(num, group, tiles, own, tile, w->offset + p, gradient + p * group);
        if (group == 1) { REST(1) REST(3) }
        REST(2)
#undef REST
    }
}

/* Outputs are shared out among the threads: each gradient is summed in one order at any number of them. */
TARGET static void NAME(gradient)(
        int threads, const Structure *w, const void *x_tiles, const void *d_tiles, int64_t n, float *gradient) {
    int64_t groups = w->out / w->group, block = w->block / w->group, tiles = (n + TOKENS - 1) / TOKENS;
    int64_t x_step = STEP(w->in, sizeof(ELEMENT)), d_step = STEP(w->out, sizeof(ELEMENT));
    memset(gradient, 0, w->start[(w->in + w->chunk - 1) / w->chunk * groups] * w->group * sizeof(float));
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t b = 0; b < groups; b += block)
        for (int64_t tile = 0, num; tile < tiles; tile += num) {
            int64_t end = b + block < groups ? b + block : groups;
            num = tile + TILES <= tiles ? TILES : 1;
            for (int64_t k = 0, row = 0; k < w->in; k += w->chunk, row += groups) {
                const ELEMENT *x = (const ELEMENT *)x_tiles + tile * x_step + k * TOKENS,
                              *d = (const ELEMENT *)d_tiles + tile * d_step;
#define CASE(g, t) \
    if (w->group == g && num == t) \
        NAME(add_gradient)(w, row + b, row + end, g, t, x, x_step, d, d_step, gradient);
                CASE(1, 1) CASE(1, TILES) CASE(2, 1) CASE(2, TILES)
#undef CASE
            }
        }
}
#undef ELEMENT
#undef PART
#undef PARTS
#undef TILES
