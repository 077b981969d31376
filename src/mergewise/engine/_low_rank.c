/* base + left @ right, rounded once: what an adapter makes of some rows of a weight.

   A BLAS makes the product in memory, and adding and rounding are passes of their own; here a
   patch of the product stays in registers, and a strip of it in the first cache. Multiplications
   and additions are fused, as BLAS fuses them, so results equal torch's to rounding. */
#ifdef __AVX512F__
#define MW_LANES 16
#define MW_VECTORS 4
#define MW_HIGH 6
#else
#define MW_LANES 8
#define MW_VECTORS 2
#define MW_HIGH 4
#endif
#define MW_PATCH (MW_HIGH * MW_VECTORS)
#define MW_WIDE (MW_LANES * MW_VECTORS)
#define MW_STRIP 512
typedef float mw_vector __attribute__((vector_size(4 * MW_LANES), aligned(4)));
#ifdef __clang__
#define MW_FUSED
#define MW_CONTRACT _Pragma("clang fp contract(fast)")
#else
#define MW_FUSED __attribute__((optimize("fp-contract=fast")))
#define MW_CONTRACT
#endif

/* MW_HIGH rows and MW_WIDE columns of left @ right; the rows of `sum` lie MW_STRIP apart. */
MW_FUSED static void mw_patch(const float *left, const float *right, int64_t rank, int64_t columns,
                              float *sum) {
    MW_CONTRACT
    mw_vector s[MW_HIGH][MW_VECTORS], row[MW_VECTORS];
#pragma GCC unroll 24
    for (int i = 0; i < MW_PATCH; i++) s[i / MW_VECTORS][i % MW_VECTORS] = (mw_vector){0};
    for (int64_t k = 0; k < rank; k++) {
#pragma GCC unroll 4
        for (int j = 0; j < MW_VECTORS; j++) row[j] = ((const mw_vector *)(right + k * columns))[j];
#pragma GCC unroll 24
        for (int i = 0; i < MW_PATCH; i++)
            s[i / MW_VECTORS][i % MW_VECTORS] += left[i / MW_VECTORS * rank + k] * row[i % MW_VECTORS];
    }
#pragma GCC unroll 24
    for (int i = 0; i < MW_PATCH; i++)
        ((mw_vector *)(sum + i / MW_VECTORS * MW_STRIP))[i % MW_VECTORS] = s[i / MW_VECTORS][i % MW_VECTORS];
}

/* A patch of any size. */
MW_FUSED static void mw_rest(const float *left, const float *right, int64_t rank, int64_t columns,
                             float *sum, int64_t high, int64_t wide) {
    MW_CONTRACT
    for (int64_t i = 0; i < high; i++, sum += MW_STRIP) {
        memset(sum, 0, wide * sizeof(float));
        for (int64_t k = 0; k < rank; k++)
            for (int64_t j = 0; j < wide; j++) sum[j] += left[i * rank + k] * right[k * columns + j];
    }
}

enum { MW_F32, MW_BF16, MW_F16 };
#define MW_SUM(type, from, to)                                                        \
    {                                                                                 \
        type *restrict o = out;                                                       \
        for (int64_t j = 0; j < n; j++) { const float f = sum[j] + (from); o[j] = to; } \
    }
#define MW_ADD(type, from)                                                            \
    {                                                                                 \
        const type *restrict b = base;                                                \
        if (out_kind == MW_F32) MW_SUM(float, from, f)                                \
        else if (out_kind == MW_BF16) MW_SUM(uint16_t, from, mw_to_bf16(f))           \
        else MW_SUM(_Float16, from, (_Float16)f)                                      \
    }

static void mw_add(const void *base, int kind, const float *sum, int64_t n, void *out,
                   int out_kind) {
    if (kind == MW_F32) MW_ADD(float, b[j])
    else if (kind == MW_BF16) MW_ADD(uint16_t, mw_from_bf16(b[j]))
    else MW_ADD(_Float16, (float)b[j])
}

/* Whole rows; left is [rows, rank], right [rank, columns]. */
void mw_low_rank(const char *base, int kind, const float *left, const float *right, int64_t rank,
                 int64_t rows, int64_t columns, char *out, int out_kind) {
    const int64_t item = kind == MW_F32 ? 4 : 2, out_item = out_kind == MW_F32 ? 4 : 2;
    float sum[MW_HIGH * MW_STRIP] __attribute__((aligned(64)));
    for (int64_t from = 0; from < columns; from += MW_STRIP) {
        const int64_t wide = columns - from < MW_STRIP ? columns - from : MW_STRIP;
        for (int64_t r = 0; r < rows; r += MW_HIGH) {
            const int64_t high = rows - r < MW_HIGH ? rows - r : MW_HIGH;
            const float *l = left + r * rank;
            int64_t at = 0;
            for (; high == MW_HIGH && at + MW_WIDE <= wide; at += MW_WIDE)
                mw_patch(l, right + from + at, rank, columns, sum + at);
            mw_rest(l, right + from + at, rank, columns, sum + at, high, wide - at);
            for (int64_t i = 0; i < high; i++) {
                const int64_t place = (r + i) * columns + from;
                mw_add(base + place * item, kind, sum + i * MW_STRIP, wide, out + place * out_item,
                       out_kind);
            }
        }
    }
}
