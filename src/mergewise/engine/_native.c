/* Helpers that are not elementwise: counting around a threshold, and ranks within rows.
   Compiled together with the generated kernels; every function has a plain torch or numpy twin. */

/* Keys order elements by (score, hash of position): a float's bits order as the float does when
   it is not negative, and the hash breaks ties. */
static inline uint64_t mw_key(float score, int32_t tie) {
    uint32_t bits;
    memcpy(&bits, &score, 4);
    return ((uint64_t)bits << 32) | ((uint32_t)tie ^ 0x80000000u);
}

/* Keys of a run of scores. */
void mw_keys(const float *score, uint64_t start, int64_t n, uint32_t k0, uint32_t k1,
             uint64_t *out) {
    for (int64_t i = 0; i < n; i++) out[i] = mw_key(score[i], mw_order(start + i, k0, k1));
}

#define MW_CHUNK 1024

/* Counts the keys above `high`; writes those in [low, high] to `found` (room for n) and their
   number to *taken. Most elements are far from the bracket, so a vectorised pass marks the few
   that lie in it and only those are looked at one by one. */
int64_t mw_bracket(const float *score, uint64_t start, int64_t n, uint32_t k0, uint32_t k1,
                   uint64_t low, uint64_t high, uint64_t *found, int64_t *taken) {
    int64_t above = 0, kept = 0;
    const uint32_t ls = low >> 32, lt = (uint32_t)low, hs = high >> 32, ht = (uint32_t)high;
    const uint32_t *bits = (const uint32_t *)score;
    uint8_t inside[MW_CHUNK] __attribute__((aligned(64)));
    uint32_t tie[MW_CHUNK] __attribute__((aligned(64)));
    for (int64_t from = 0; from < n; from += MW_CHUNK) {
        const int64_t m = n - from < MW_CHUNK ? n - from : MW_CHUNK;
        const uint32_t lo0 = (uint32_t)(start + from), hi0 = (uint32_t)((start + from) >> 32);
        uint32_t over = 0, any = 0;
#pragma omp simd reduction(+ : over) reduction(| : any)
        for (int64_t j = 0; j < m; j++) {
            const uint32_t b = bits[from + j], lo = lo0 + (uint32_t)j, hi = hi0 + (lo < lo0);
            const uint32_t t = (uint32_t)mw_order2(lo, hi, k0, k1) ^ 0x80000000u;
            const uint32_t up = (b > hs) | ((b == hs) & (t > ht));
            const uint32_t in = ((b > ls) | ((b == ls) & (t >= lt))) & (up ^ 1u);
            over += up;
            any |= in;
            inside[j] = (uint8_t)in;
            tie[j] = t;
        }
        above += over;
        if (!any) continue;
        for (int64_t j = m; j < MW_CHUNK; j++) inside[j] = 0;
        for (int64_t j = 0; j < m; j += 8) {
            uint64_t word;
            memcpy(&word, inside + j, 8);
            for (; word; word &= word - 1) {
                const int64_t i = j + (__builtin_ctzll(word) >> 3);
                found[kept++] = ((uint64_t)bits[from + i] << 32) | tie[i];
            }
        }
    }
    *taken = kept;
    return above;
}

/* Keys that order a row's elements by (score, hash of position) and end in the column; the hash
   has what room the column's `column_bits` leave of 32 bits. */
void mw_row_keys(const float *score, uint64_t start, int64_t rows, int64_t columns,
                 int32_t column_bits, uint32_t k0, uint32_t k1, uint64_t *out) {
    const uint32_t mask = (1u << column_bits) - 1u;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            const int64_t i = r * columns + c;
            out[i] = (mw_key(score[i], mw_order(start + i, k0, k1)) & ~(uint64_t)mask) | (uint64_t)c;
        }
}

/* Writes each element's rank from a row's sorted keys. */
void mw_place_ranks(const uint64_t *keys, int64_t rows, int64_t columns, int32_t column_bits,
                    float *rank) {
    const uint32_t mask = (1u << column_bits) - 1u;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++)
            rank[r * columns + (keys[r * columns + c] & mask)] = (float)c;
}
