/* Helpers that are not elementwise: counting around a threshold, and ranks within rows.
   Compiled together with the generated kernels; every function has a plain torch or numpy twin. */

/* Keys order elements by (score, hash of position): a float's bits order as the float does when
   it is not negative, and the hash breaks ties. */
static inline uint64_t mw_key(float score, int32_t tie) {
    uint32_t bits;
    memcpy(&bits, &score, 4);
    return ((uint64_t)bits << 32) | ((uint32_t)tie ^ 0x80000000u);
}

/* Counts the keys above `high`; writes those in [low, high] to `found` (room for n) and their
   number to *taken. */
int64_t mw_bracket(const float *score, uint64_t start, int64_t n, uint32_t k0, uint32_t k1,
                   uint64_t low, uint64_t high, uint64_t *found, int64_t *taken) {
    int64_t above = 0, kept = 0;
    uint32_t low_bits = (uint32_t)(low >> 32), high_bits = (uint32_t)(high >> 32);
    for (int64_t from = 0; from < n; from += 64) {
        int64_t m = n - from < 64 ? n - from : 64;
        uint32_t over = 0, inside = 0;
        for (int64_t j = 0; j < m; j++) {
            uint32_t bits;
            memcpy(&bits, score + from + j, 4);
            over += bits > high_bits;
            inside += (bits >= low_bits) & (bits <= high_bits);
        }
        above += over;
        if (!inside) continue;
        for (int64_t j = 0; j < m; j++) {
            uint32_t bits;
            memcpy(&bits, score + from + j, 4);
            if (bits < low_bits || bits > high_bits) continue;
            uint64_t key = mw_key(score[from + j], mw_hash(start + from + j, k0, k1));
            above += key > high;
            found[kept] = key;
            kept += key >= low && key <= high;
        }
    }
    *taken = kept;
    return above;
}

static int64_t mw_gcd(int64_t a, int64_t b) {
    while (b) { int64_t t = a % b; a = b; b = t; }
    return a;
}

/* Ranks of each row's scores, 0 for the smallest. Equal scores are ordered along a walk through
   the row with a random start and stride (a stable radix sort of the walk), so that no column is
   preferred. `work` has room for 2 * columns. */
void mw_row_ranks(const float *score, int64_t first_row, int64_t rows, int64_t columns,
                  uint32_t k0, uint32_t k1, float *rank, uint64_t *work) {
    for (int64_t r = 0; r < rows; r++) {
        const float *row = score + r * columns;
        uint64_t *from = work, *to = work + columns;
        uint32_t counts[4][256];
        memset(counts, 0, sizeof counts);
        uint32_t h = (uint32_t)mw_hash((uint64_t)(first_row + r), k0, k1);
        int64_t stride = 1 + h % columns, at = (h >> 7) % columns;
        while (mw_gcd(stride, columns) != 1) stride = stride % columns + 1;
        for (int64_t j = 0; j < columns; j++) {
            uint32_t bits;
            memcpy(&bits, row + at, 4);
            counts[0][bits & 255]++;
            counts[1][bits >> 8 & 255]++;
            counts[2][bits >> 16 & 255]++;
            counts[3][bits >> 24]++;
            from[j] = (uint64_t)bits << 32 | (uint64_t)at;
            at += stride;
            if (at >= columns) at -= columns;
        }
        for (int pass = 0; pass < 4; pass++) {
            uint32_t *count = counts[pass], total = 0;
            int shift = 32 + 8 * pass;
            if (count[from[0] >> shift & 255] == columns) continue; /* all equal here */
            for (int b = 0; b < 256; b++) { uint32_t c = count[b]; count[b] = total; total += c; }
            for (int64_t j = 0; j < columns; j++) to[count[from[j] >> shift & 255]++] = from[j];
            uint64_t *swap = from; from = to; to = swap;
        }
        for (int64_t j = 0; j < columns; j++)
            rank[r * columns + (int64_t)(from[j] & 0xffffffffu)] = (float)j;
    }
}
