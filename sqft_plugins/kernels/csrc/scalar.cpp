/* The back end in plain C: the reference of the others, and what runs where no vector unit is known. */
#include "internal.h"

static void blocks(const sqft_job* job, int64_t first_block, int64_t last_block, uint8_t* buffer) {
    (void)buffer;
    for (int64_t block = first_block; block < last_block; block++)
        for (int64_t begin = 0; begin < job->tokens; begin += TILE) {
            int64_t tile = least(TILE, job->tokens - begin), planes = job->planes;
            const uint8_t* streams[2] = {job->w.values + job->w.block_offsets[block], nullptr};
            streams[1] = streams[0]; /* of even and of odd chunks */
            float totals[TILE][ROWS] = {};
            for (int64_t segment = 0; segment < job->segments; segment++) {
                int64_t group, chunk, chunks;
                locate(job, segment, &group, &chunk, &chunks);
                const int8_t* words = words_of(job, begin, chunk, chunks);
                int64_t at = (block * job->groups + group) * ROWS;
                int32_t sums[TILE][ROWS] = {};
                for (int64_t c = chunk; c < chunk + chunks; c++) {
                    uint64_t mask = job->w.masks ? job->w.masks[block * job->chunks + c] : ~(uint64_t)0;
                    for (int p = 0; p < ROWS * CHUNK; p++) {
                        if (!(mask >> p & 1)) continue;
                        int32_t step = (*streams[c & 1]++ >> 4 * (c & 1)) & 15;
                        step -= job->w.zero_points ? job->w.zero_points[at + p / CHUNK] : 8;
                        for (int64_t t = 0; t < tile; t++) {
                            const int8_t* word = words + ((c - chunk) * tile + t) * planes * CHUNK + p % CHUNK;
                            sums[t][p / CHUNK] += step * (planes == 2 ? 256 * word[0] + word[CHUNK] : word[0]);
                        }
                    }
                }
                for (int64_t t = 0; t < tile; t++)
                    for (int row = 0; row < ROWS; row++) {
                        float scale = float_of_half(job->w.scales[at + row]);
                        float s = job->scales[segment * job->tokens + begin + t];
                        totals[t][row] += (float)sums[t][row] * scale * s;
                    }
            }
            for (int64_t t = 0; t < tile; t++) store_block(job, block, begin + t, totals[t]);
        }
}

extern "C" const sqft_backend sqft_scalar_backend;
const sqft_backend sqft_scalar_backend = {quantize_words, blocks, TILE};
