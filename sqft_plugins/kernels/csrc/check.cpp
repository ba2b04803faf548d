/* What must hold before a kernel may read a weight. */
#include "internal.h"

static int count_bits(uint64_t bits) {
    bits -= bits >> 1 & 0x5555555555555555;
    bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333);
    bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0f;
    return (int)(bits * 0x0101010101010101 >> 56);
}

extern "C" int sqft_check(const sqft_weight* w, int64_t values_bytes) {
    const int64_t limit = (int64_t)1 << 31;
    if (w->out < 1 || w->in < 1 || w->out > limit || w->in > limit || w->group_size < 1) return SQFT_BAD_SHAPE;
    if (w->in % w->group_size || (w->group_size % 8 && w->group_size != w->in)) return SQFT_BAD_SHAPE;
    int64_t blocks = (w->out + ROWS - 1) / ROWS, chunks = 2 * ((w->in + 7) / 8), groups = w->in / w->group_size;
    if (w->zero_points)
        for (int64_t i = 0; i < blocks * groups * ROWS; i++)
            if (w->zero_points[i] > 15) return SQFT_BAD_ZERO;
    if (w->block_offsets[0] < 0 || w->block_offsets[blocks] > values_bytes - SQFT_PADDING) return SQFT_BAD_OFFSETS;
    for (int64_t block = 0; block < blocks; block++)
        if (w->block_offsets[block] > w->block_offsets[block + 1]) return SQFT_BAD_OFFSETS;
    int64_t last = (blocks - 1) * ROWS;
    uint64_t rows = w->out - last == ROWS ? ~(uint64_t)0 : ((uint64_t)1 << CHUNK * (w->out - last)) - 1;
    for (int64_t block = 0; block < blocks; block++) {
        int64_t length = w->block_offsets[block + 1] - w->block_offsets[block], kept[2] = {0, 0};
        for (int64_t c = 0; c < chunks; c++) {
            if (!w->masks) {
                kept[c & 1] += ROWS * CHUNK;
                continue;
            }
            uint64_t mask = w->masks[block * chunks + c], allowed = block == blocks - 1 ? rows : ~(uint64_t)0;
            int64_t columns = w->in - c * CHUNK;
            if (columns <= 0) allowed = 0;
            else if (columns < CHUNK) allowed &= (((uint64_t)1 << columns) - 1) * 0x1111111111111111;
            if (mask & ~allowed) return SQFT_BAD_PADDING;
            kept[c & 1] += count_bits(mask);
        }
        if (length != (kept[0] > kept[1] ? kept[0] : kept[1])) return SQFT_BAD_COUNT;
    }
    return SQFT_OK;
}
