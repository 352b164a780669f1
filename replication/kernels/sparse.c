/* Products of a sparse weight matrix for training: Y = X W, dX = dY Wᵀ (the same product the other way round), and dW
 * at the active weights only; and what else takes long in a step: attention over a pattern's pairs (attention.inc),
 * GELU (gelu.inc), and the loss (softmax.inc).
 * A plain C interface, which library.py calls. Source: ours.
 *
 * Activations come and go token-major, as torch has them. Inside, a tile holds 64 tokens feature-major, so that one
 * active weight multiplies 64 neighbours at once while a row of sums stays in registers. A product walks the inputs in
 * chunks that fit the first-level cache. products_float.inc, products_bfloat16.inc and products.inc hold the products.
 * Each .inc is compiled here for the instruction set that NAME and TARGET say, some once for every one; `kind` says
 * which to use: the caller takes the best that the processor has, or bfloat16 where it is to round.
 *
 * What returns int gives 0; or 1 where there was no memory, and nothing was written.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TOKENS 64 /* of a tile */
#define PAD 32 /* a tile's features are padded to a multiple of this, with zeros */
#define SUMS 512 /* outputs whose sums stay in the second-level cache, during a product */
#define PADDED(features) (((features) + PAD - 1) / PAD * PAD)
/* From tile to tile, in elements: off a multiple of 4 KiB, or tiles would share cache sets. */
#define STEP(features, size) (PADDED(features) * TOKENS + 2048 / (size))

/* Where the active weights are, in the order in which the kernels read them; made by `sparse_structure`.
 * Row r of `start` is a chunk of inputs and a group of neighbouring outputs that share their inputs (1 or 2 of them):
 * r = chunk index * groups + rank, where rank orders the groups of a block of outputs by falling number of entries, so
 * that loops over rows are predictable; order[r] is the group. An entry is an input: its place in the chunk, in
 * bytes. */
typedef struct {
    int64_t in, out, group, chunk, block;
    const int32_t *start, *order;
    const uint16_t *offset;
    const void *value; /* of each entry its `group` weights; bfloat16: of each two entries, a pair for each output */
} Structure;

/* Which keys a query sees, none after itself: the last `window`; or those of its own of the blocks of `block`, and
 * each earlier block's last (either may be 0); and those `far` and more times `stride` before it (0: none). */
typedef struct {
    int64_t batch, heads, length, size, window, block, stride, far; /* size, of a head: a multiple of 32 */
    float scale;
} Attention;

/* Unrolled by the preprocessor, so that arrays with these indices are registers. */
#define EACH8(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7)
#define EACH16(f) EACH8(f) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15)
#define INLINE static inline __attribute__((always_inline)) TARGET
typedef float vector __attribute__((vector_size(64), aligned(64)));

/* Room of so many bytes, in whole lines of the cache, for each thread; null where there is no memory. It is taken
 * before they start, as none of them could leave a parallel region. */
#define LINES(bytes) (((bytes) + 63) / 64 * 64)
static void *take_room(int threads, int64_t bytes) { return aligned_alloc(64, threads * LINES(bytes)); }
static void *own_room(void *room, int64_t bytes) { return (char *)room + omp_get_thread_num() * LINES(bytes); }

/* Numbers too small for a normal float are 0 on this thread till `as_before`: each would take as long as a hundred
 * others, and the weights of a sharp softmax, or their gradients, are full of them. */
#if defined(__x86_64__)
#include <immintrin.h>
static inline unsigned flush_tiny(void) {
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
    return before;
}
static inline void as_before(unsigned mode) { _mm_setcsr(mode); }
#else
static inline unsigned flush_tiny(void) { return 0; }
static inline void as_before(unsigned mode) { (void)mode; }
#endif

#if defined(__x86_64__)
#define NAME(name) name##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#define AVX512
#define LANES 16
#include "products_float.inc"
#include "attention.inc"
#include "gelu.inc"
#include "softmax.inc"
#undef NAME
#undef TARGET
#define NAME(name) name##_bf16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,avx512bf16")))
#include "products_bfloat16.inc"
#undef NAME
#undef TARGET
#if defined(__linux__) && (__clang_major__ >= 12 || (!defined(__clang__) && __GNUC__ >= 11))
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,avx512bf16,amx-tile,amx-bf16")))
#define AMX
#include "amx.inc"
#include "amx_rows.inc"
#include "amx_softmax.inc"
#include "amx_attention.inc"
#undef TARGET
#endif
#undef AVX512
#undef LANES
#define NAME(name) name##_avx2
#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#include "products_float.inc"
#include "attention.inc"
#include "gelu.inc"
#include "softmax.inc"
#undef NAME
#undef TARGET
#endif
#undef LANES
#define NAME(name) name##_generic
#define LANES 4
#define TARGET
#include "products_float.inc"
#include "attention.inc"
#include "gelu.inc"
#include "softmax.inc"
#undef NAME
#undef TARGET

enum { GENERIC, AVX2, AVX512, BFLOAT16, TILES }; /* TILES, by AMX: of bf16 attention alone */

/* The best kind that this processor runs. */
int sparse_kind(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512) return __builtin_cpu_supports("avx512bf16") ? BFLOAT16 : AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return GENERIC;
}

#if defined(__x86_64__)
#define DISPATCH(name, ...) \
    (kind == BFLOAT16     ? name##_bf16(__VA_ARGS__) \
         : kind == AVX512 ? name##_avx512(__VA_ARGS__) \
         : kind == AVX2   ? name##_avx2(__VA_ARGS__) \
                          : name##_generic(__VA_ARGS__))
#else
#define DISPATCH(name, ...) ((void)kind, name##_generic(__VA_ARGS__))
#endif

/* Y [n, out] = X [n, in] W; also leaves X as tiles, for `sparse_gradient`. Each is bfloat16 or float; strides of rows
 * in elements. */
int sparse_product(
    int kind, int threads, const Structure *w, const void *x, int x_bf16, int64_t x_stride, void *tiles, void *y,
    int y_bf16, int64_t y_stride, int64_t n) {
    return DISPATCH(product, threads, w, x, x_bf16, x_stride, tiles, y, y_bf16, y_stride, n);
}

/* gradient [entries, group] = sum over tokens of X[token, input] · D[token, output], from both as tiles. */
void sparse_gradient(
    int kind, int threads, const Structure *w, const void *x_tiles, const void *d_tiles, int64_t n, float *gradient) {
    DISPATCH(gradient, threads, w, x_tiles, d_tiles, n, gradient);
}

/* Bytes of the tiles of n tokens. */
int64_t sparse_tiles(int kind, int64_t n, int64_t features) {
    int64_t size = kind == BFLOAT16 ? 2 : 4;
    return (n + TOKENS - 1) / TOKENS * STEP(features, size) * size;
}

#if defined(__x86_64__)
#define DISPATCH_FLOAT(name, ...) \
    (kind >= AVX512     ? name##_avx512(__VA_ARGS__) \
         : kind == AVX2 ? name##_avx2(__VA_ARGS__) \
                        : name##_generic(__VA_ARGS__))
#else
#define DISPATCH_FLOAT(name, ...) ((void)kind, name##_generic(__VA_ARGS__))
#endif

/* out [batch, length, heads, size] = attention of q, k, v, which have common strides of [batch, head, token]; bf16 or
 * float. Keeps of each query its greatest score and the reciprocal of its sum of exponentials,
 * [batch, heads, length padded to 32]. */
int sparse_attention(
    int kind, int threads, const Attention *a, const void *q, const void *k, const void *v, int bf16,
    const int64_t *strides, void *out, float *most, float *share) {
#ifdef AMX
    if (kind == TILES) return tile_attention(threads, a, q, k, v, strides, out, most, share);
#endif
    return DISPATCH_FLOAT(attention, threads, a, q, k, v, bf16, strides, out, most, share);
}

/* The gradients of q, k and v, each [batch, length, heads, size], from that of the output, of strides of its own. */
int sparse_attention_gradient(
    int kind, int threads, const Attention *a, const void *q, const void *k, const void *v, int bf16,
    const int64_t *strides, const void *d, const int64_t *d_strides, const float *most, const float *share, void *dq,
    void *dk, void *dv) {
#ifdef AMX
    if (kind == TILES)
        return tile_attention_gradient(threads, a, q, k, v, strides, d, d_strides, most, share, dq, dk, dv);
#endif
    return DISPATCH_FLOAT(
        attention_gradient, threads, a, q, k, v, bf16, strides, d, d_strides, most, share, dq, dk, dv);
}

/* y = gelu(x), or, where d is not null, y = d gelu'(x); each bf16 or float, [num]. */
void sparse_gelu(int kind, int threads, const void *x, const void *d, void *y, int bf16, int64_t num) {
    DISPATCH_FLOAT(gelu, threads, x, d, y, bf16, num);
}

/* logits [rows, columns], bf16 or float, become the gradient of the rows' cross-entropies, which go to loss [rows]. */
void sparse_cross_entropy(
    int kind, int threads, void *logits, int bf16, int64_t rows, int64_t columns, const int64_t *target, float *loss) {
    DISPATCH_FLOAT(cross_entropy, threads, logits, bf16, rows, columns, target, loss);
}

/* The structure of a mask stored [rows, columns] with active weights at `position` (rising); the rows are inputs if
 * `in_first`.
 * First call, with `offset` null: fills start [chunks · groups + 1] and order [chunks · groups].
 * Second: offset [entries], and slot: of each active weight the place of its value.
 * `paired`: the values of each two entries of a row lie together; `unit`: bytes of an input in a chunk. */
int sparse_structure(
    const int32_t *position, int64_t nnz, int in_first, const Structure *w, int32_t paired, int32_t unit,
    int32_t *start, int32_t *order, uint16_t *offset, int32_t *slot) {
    int32_t columns = (int32_t)(in_first ? w->out : w->in), chunk = (int32_t)w->chunk, group = (int32_t)w->group;
    int64_t groups = w->out / group, chunks = (w->in + chunk - 1) / chunk, block = w->block / group;
    /* of each chunk and output: entries counted, then the next one's place; and room to sort by */
    int32_t *next = calloc(chunks * w->out + chunk + 2, sizeof *next);
    if (!next) return 1;
#define EACH_ACTIVE(...) \
    for (int64_t n = 0; n < nnz; n++) { \
        int32_t row = position[n] / columns, column = position[n] % columns, k = in_first ? row : column, \
                o = in_first ? column : row, c = k / chunk; \
        __VA_ARGS__; \
    }
    EACH_ACTIVE(next[c * w->out + o]++)
    if (!offset) {
        int32_t *rank = next + chunks * w->out; /* counting sort, longest first */
        start[0] = 0;
        for (int64_t c = 0; c < chunks; c++)
            for (int64_t b = 0; b < groups; b += block) {
                int64_t end = b + block < groups ? b + block : groups, row = c * groups;
                const int32_t *count = next + c * w->out;
                memset(rank, 0, (chunk + 2) * sizeof *rank);
                for (int64_t g = b; g < end; g++) rank[chunk - count[g * group] + 1]++;
                for (int64_t i = 0; i <= chunk; i++) rank[i + 1] += rank[i];
                for (int64_t g = b; g < end; g++) order[row + b + rank[chunk - count[g * group]]++] = (int32_t)g;
                for (int64_t r = row + b; r < row + end; r++)
                    start[r + 1] = start[r] + (count[order[r] * group] + paired) / (1 + paired) * (1 + paired);
            }
    } else {
        for (int64_t r = 0; r < chunks * groups; r++) {
            int32_t *own = next + r / groups * w->out + order[r] * group;
            if (paired && *own % 2) offset[start[r + 1] - 1] = 0; /* its value stays 0 */
            for (int64_t j = 0; j < group; j++) own[j] = start[r];
        }
        EACH_ACTIVE({
            int32_t p = next[c * w->out + o]++, member = o % group;
            offset[p] = (uint16_t)((k - c * chunk) * unit);
            slot[n] = paired ? (p / 2 * group + member) * 2 + p % 2 : p * group + member;
        })
    }
#undef EACH_ACTIVE
    free(next);
    return 0;
}

/* The active weights as the products read them: value[slot] = weight[position]. `rounded`: to bfloat16; `narrow`: and
 * stored so. */
void sparse_pack(
    int threads, int rounded, int narrow, const float *weight, const int32_t *position, const int32_t *slot,
    int64_t nnz, void *value) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t i = 0; i < nnz; i++) {
        if (narrow) ((uint16_t *)value)[slot[i]] = narrow_generic(weight[position[i]]);
        else
            ((float *)value)[slot[i]] =
                rounded ? widen_generic(narrow_generic(weight[position[i]])) : weight[position[i]];
    }
}

/* The active weights' gradient, into a dense matrix that is 0 elsewhere. */
void sparse_unpack(
    int threads, const float *gradient, const int32_t *position, const int32_t *slot, int64_t nnz, float *dense) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t i = 0; i < nnz; i++) dense[position[i]] = gradient[slot[i]];
}

#ifdef AMX
/* Has the processor AMX's bfloat16 tiles, and does the system let this process have them? */
int sparse_tiles_allowed(void) {
    unsigned a, b, c, d;
    const int amx_bf16 = 1 << 22, amx_tile = 1 << 24, request = 0x1023, tile_data = 18;
    if (sparse_kind() != BFLOAT16 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    return (d & amx_bf16) && (d & amx_tile) && !syscall(SYS_arch_prctl, request, tile_data);
}

int sparse_tile_product(int threads, const Blocks *w, const uint16_t *x, void *y, int y_bf16, int64_t n) {
    return tile_product(threads, w, x, y, y_bf16, n);
}

int sparse_tile_gradient(
    int threads, const Blocks *w, const uint16_t *x, const uint16_t *d, int64_t n, float *gradient) {
    return tile_gradient(threads, w, x, d, n, gradient);
}

void sparse_tile_pack(
    int threads, const float *weight, int64_t stride, const int64_t *corner, int64_t num, int64_t block, int across,
    uint16_t *value) {
    tile_pack(threads, weight, stride, corner, num, block, across, value);
}

void sparse_tile_scatter(int threads, const Blocks *w, const float *gradient, float *dense) {
    tile_scatter(threads, w, gradient, dense);
}

void sparse_group_product(
    int threads, const Groups *w, const uint16_t *x, uint16_t *strips, void *y, int y_bf16, int64_t n) {
    group_product(threads, w, x, strips, y, y_bf16, n);
}

int sparse_group_product_back(
    int threads, const Groups *w, const uint16_t *d, uint16_t *operands, void *dx, int dx_bf16, int64_t n) {
    return group_product_back(threads, w, d, operands, dx, dx_bf16, n);
}

void sparse_group_gradient(
    int threads, const Groups *w, const uint16_t *strips, const uint16_t *operands, int64_t n, float *gradient) {
    group_gradient(threads, w, strips, operands, n, gradient);
}

void sparse_group_pack(int threads, const Groups *w, const float *weight, int out_first) {
    group_pack(threads, w, weight, out_first);
}

void sparse_group_scatter(int threads, const Groups *w, const float *gradient, int out_first, float *dense) {
    group_scatter(threads, w, gradient, out_first, dense);
}
#else
int sparse_tiles_allowed(void) { return 0; }
int sparse_tile_product(void) { return 0; }
int sparse_tile_gradient(void) { return 0; }
void sparse_tile_pack(void) {}
void sparse_tile_scatter(void) {}
void sparse_group_product(void) {}
int sparse_group_product_back(void) { return 0; }
void sparse_group_gradient(void) {}
void sparse_group_pack(void) {}
void sparse_group_scatter(void) {}
#endif
