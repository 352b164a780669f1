/* Cross-entropy of rows of logits, and its gradient in their place; computed in float, logits float or bf16. For one
 * instruction set: after gelu.h. */

/* logits [rows, columns] become exp(logit) / sum of exps, less 1 at the row's target; loss [rows] is log(sum of exps)
 * less the target's logit. */
TARGET static void NAME(cross_entropy)(
        int threads, char *logits, int bf16, int64_t rows, int64_t columns, const int64_t *target, float *loss) {
    int64_t bytes = bf16 ? 2 : 4;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        unsigned mode = flush_tiny();
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            char *row = logits + r * columns * bytes;
#define AT(i) (row + (i) * bytes)
#define EACH(...) \
        for (int64_t i = 0; i < columns; i += LANES) { \
            const int64_t num = columns - i < LANES ? columns - i : LANES; \
            NAME(reg) x = num == LANES ? NAME(fetch)(AT(i), bf16, LANES) : NAME(fetch)(AT(i), bf16, num); \
            __VA_ARGS__ \
        }
            NAME(reg) top = (NAME(reg)){0} - 3e38f, sum = {0};
            EACH(if (num == LANES) top = NAME(larger)(x, top);
                 else for (int l = 0; l < num; l++) top[l] = x[l] > top[l] ? x[l] : top[l];)
            float most = top[0], total = 0,
                  own = bf16 ? NAME(widen)(((uint16_t *)row)[target[r]]) : ((float *)row)[target[r]];
            for (int l = 1; l < LANES; l++) most = top[l] > most ? top[l] : most;
            EACH(NAME(reg) e = NAME(exponential)(x - most);
                 if (num == LANES) sum += e; else for (int l = 0; l < num; l++) sum[l] += e[l];)
            for (int l = 0; l < LANES; l++) total += sum[l];
            loss[r] = logf(total) + most - own;
            const float share = 1.0f / total;
            EACH(NAME(put)(NAME(exponential)(x - most) * share, AT(i), bf16, num);)
            const float p = expf(own - most) * share - 1.0f;
            if (bf16) ((uint16_t *)row)[target[r]] = NAME(narrow)(p);
            else ((float *)row)[target[r]] = p;
#undef AT
#undef EACH
        }
        as_before(mode);
    }
}
