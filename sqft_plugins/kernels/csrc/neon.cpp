/* NEON with the dot product of Armv8.2: codes are expanded by a table (tbl) and multiplied by sdot. Run in an
 * emulator (QEMU) so far, never on a processor: right, its speed unknown. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "lookup.h"

enum { BLOCK = ROWS * CHUNK, QUARTER = 16, QUARTERS = 4 };

/* The kept codes of one chunk, low or high nibbles of the bytes at `values` → code - zero point, 0 where pruned. */
template <int SHIFT>
static inline const uint8_t* expand(const uint64_t* mask, const uint8_t* values, const uint8x16_t zero[QUARTERS],
                                    int8_t* to) {
    uint64_t counts = running_count(*mask);
    uint8_t kept[8], bits[8]; /* in memory: bytes are read faster than shifted out */
    memcpy(kept, &counts, 8);
    memcpy(bits, mask, 8);
    const uint8x16_t upper = vcombine_u8(vdup_n_u8(0), vdup_n_u8(8)); /* the second 8 codes lie in the upper half */
    for (int i = 0; i < QUARTERS; i++) {
        const uint8_t *first = values + (i ? kept[2 * i - 1] : 0), *second = values + kept[2 * i];
        uint8x16_t bytes = vcombine_u8(vld1_u8(first), vld1_u8(second));
        uint8x16_t at = vcombine_u8(vcreate_u8(lookup.of[bits[2 * i]]), vcreate_u8(lookup.of[bits[2 * i + 1]]));
        uint8x16_t codes = SHIFT ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(15));
        uint8x16_t steps = vsubq_u8(vqtbl1q_u8(codes, vorrq_u8(at, upper)), zero[i]);
        vst1q_s8(to + i * QUARTER, vreinterpretq_s8_u8(vbicq_u8(steps, vcgeq_u8(at, vdupq_n_u8(PRUNED)))));
    }
    return values + kept[7];
}

/* Every weight kept: a pair of chunks is 64 bytes. */
static inline void expand_dense(const uint8_t* values, const uint8x16_t zero[QUARTERS], int8_t* to) {
    for (int i = 0; i < QUARTERS; i++) {
        uint8x16_t codes = vld1q_u8(values + i * QUARTER);
        uint8x16_t even = vsubq_u8(vandq_u8(codes, vdupq_n_u8(15)), zero[i]);
        uint8x16_t odd = vsubq_u8(vshrq_n_u8(codes, 4), zero[i]);
        vst1q_s8(to + i * QUARTER, vreinterpretq_s8_u8(even));
        vst1q_s8(to + BLOCK + i * QUARTER, vreinterpretq_s8_u8(odd));
    }
}

/* One token against one expanded segment; `stride`: bytes from a word of x to that of the next chunk. */
template <int PLANES>
static inline void token(const int8_t* codes, int64_t chunks, const int8_t* x, int64_t stride,
                         const float32x4_t scale[QUARTERS], float s, float* total) {
    int32x4_t sum[PLANES][QUARTERS];
    for (int i = 0; i < PLANES * QUARTERS; i++) sum[i / QUARTERS][i % QUARTERS] = vdupq_n_s32(0);
    for (int64_t c = 0; c < chunks; c++, codes += BLOCK, x += stride) {
        int32_t words[2] = {0, 0};
        memcpy(words, x, PLANES * CHUNK);
        for (int i = 0; i < QUARTERS; i++) {
            int8x16_t code = vld1q_s8(codes + i * QUARTER);
            for (int p = 0; p < PLANES; p++)
                sum[p][i] = vdotq_s32(sum[p][i], code, vreinterpretq_s8_s32(vdupq_n_s32(words[p])));
        }
    }
    for (int i = 0; i < QUARTERS; i++) {
        int32x4_t n = PLANES == 2 ? vaddq_s32(vshlq_n_s32(sum[0][i], 8), sum[PLANES - 1][i]) : sum[0][i];
        float32x4_t part = vmulq_n_f32(vmulq_f32(vcvtq_f32_s32(n), scale[i]), s);
        vst1q_f32(total + 4 * i, vaddq_f32(vld1q_f32(total + 4 * i), part));
    }
}

template <int PLANES>
static void block_of(const sqft_job* job, int64_t block, int8_t* codes, float* totals) {
    const uint64_t* masks = job->w.masks ? job->w.masks + block * job->chunks : nullptr;
    const uint8_t *low = job->w.values + job->w.block_offsets[block], *high = low;
    memset(totals, 0, (size_t)(job->tokens * ROWS * 4));
    for (int64_t segment = 0; segment < job->segments; segment++) {
        int64_t group, chunk, chunks;
        locate(job, segment, &group, &chunk, &chunks);
        int64_t at = (block * job->groups + group) * ROWS;
        uint8x16_t zero[QUARTERS];
        float32x4_t scale[QUARTERS];
        for (int i = 0; i < QUARTERS; i++) {
            uint8_t zeros[QUARTER];
            float scales[4];
            for (int j = 0; j < QUARTER; j++)
                zeros[j] = job->w.zero_points ? job->w.zero_points[at + 4 * i + j / CHUNK] : 8;
            for (int j = 0; j < 4; j++) scales[j] = float_of_half(job->w.scales[at + 4 * i + j]);
            zero[i] = vld1q_u8(zeros);
            scale[i] = vld1q_f32(scales);
        }
        for (int64_t c = 0; c < chunks; c += 2) {
            __builtin_prefetch(low + 2048);
            if (masks) {
                __builtin_prefetch((const uint8_t*)(masks + chunk + c) + 2048);
                low = expand<0>(masks + chunk + c, low, zero, codes + c * BLOCK);
                high = expand<4>(masks + chunk + c + 1, high, zero, codes + (c + 1) * BLOCK);
            } else {
                expand_dense(low, zero, codes + c * BLOCK);
                low += BLOCK;
            }
        }
        for (int64_t begin = 0; begin < job->tokens; begin += TILE) {
            int64_t tile = least(TILE, job->tokens - begin), number = segment * job->tokens + begin;
            const int8_t* x = words_of(job, begin, chunk, chunks);
            for (int64_t t = 0; t < tile; t++)
                token<PLANES>(codes, chunks, x + t * CHUNK * PLANES, tile * CHUNK * PLANES, scale,
                              job->scales[number + t], totals + (begin + t) * ROWS);
        }
    }
    for (int64_t t = 0; t < job->tokens; t++) store_block(job, block, t, totals + t * ROWS);
}

static void blocks(const sqft_job* job, int64_t first_block, int64_t last_block, uint8_t* buffer) {
    int8_t* codes = (int8_t*)buffer;
    float* totals = (float*)(buffer + SEGMENT_CHUNKS * BLOCK);
    for (int64_t block = first_block; block < last_block; block++)
        job->planes == 2 ? block_of<2>(job, block, codes, totals) : block_of<1>(job, block, codes, totals);
}

extern "C" const sqft_backend sqft_neon_backend;
const sqft_backend sqft_neon_backend = {quantize_words, blocks, TILE};
#endif
