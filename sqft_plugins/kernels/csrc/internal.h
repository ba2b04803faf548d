/* What the back ends share. Included by sources that are compiled with different flags: everything here is static. */
#ifndef SQFT_INTERNAL_H
#define SQFT_INTERNAL_H
#include <stdint.h>
#include <string.h>

#include "kernel.h"

enum { ROWS = 16, CHUNK = 4, SEGMENT = 128, SEGMENT_CHUNKS = SEGMENT / CHUNK, TILE = 8, PANEL = 4 };

/* One pass of sqft_linear: at most SQFT_PASS tokens. */
typedef struct {
    sqft_weight w;
    int64_t blocks, chunks;                  /* chunks = 2 * ceil(in / 8) */
    int64_t groups, group_chunks;            /* of one row; the last group may end in padding */
    int64_t segments, segments_per_group;    /* of one row */
    const void* x;
    const void* bias;
    void* y;
    int64_t tokens, x_stride, y_stride;
    int dtype, planes;                       /* planes: 2 (16 bits) or 1 (8 bits) */
    /* x in fixed point, segment by segment: what is used together lies together. Tokens in tiles of TILE, the last one
     * narrower. A tile that begins at token t lies in the segment of the chunks c to c + n - 1 at
     * q + (c * tokens + t * n) * CHUNK * planes, as words of 4 bytes [chunk][token of the tile][plane: high, low]. (AMX
     * has its own order.) scales and sums are [segment][token]. */
    int8_t* q;
    float* scales;                           /* s of the segment */
    int32_t* sums;                           /* sum of q over the segment */
    uint8_t* buffers;                        /* one of buffer_bytes per part */
    int64_t buffer_bytes;
    int64_t parts;
} sqft_job;

typedef struct {
    void (*quantize)(const sqft_job* job, int64_t first_token, int64_t last_token); /* first: multiple of `tile` */
    void (*blocks)(const sqft_job* job, int64_t first_block, int64_t last_block, uint8_t* buffer);
    int tile; /* tokens whose x lies together */
} sqft_backend;

/* The back end, or NULL where this library lacks it or the processor does. */
extern "C" const sqft_backend* sqft_find(int path);

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x400) return float_of_bits(sign | ((rest << 13) + 0x38000000));
    return float_of_bits(sign | bits_of_float((float)rest * 0x1p-24f)); /* subnormal; not one in float32 */
}

/* Rounds to nearest, ties to even. */
static inline uint16_t half_of_float(float value) {
    uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (bits >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* from 65520 on: infinity */
    if (bits < 0x38800000)                                    /* below 2^-14: subnormal, in steps of 2^-24 */
        return (uint16_t)(sign | (bits_of_float(float_of_bits(bits) + 0.5f) - 0x3f000000));
    return (uint16_t)(sign | (bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13);
}

static inline uint16_t bfloat_of_float(float value) {
    uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float load_float(const void* from, int dtype, int64_t index) {
    if (dtype == SQFT_F32) return ((const float*)from)[index];
    uint16_t bits = ((const uint16_t*)from)[index];
    return dtype == SQFT_BF16 ? float_of_bits((uint32_t)bits << 16) : float_of_half(bits);
}

static inline void store_float(void* to, int dtype, int64_t index, float value) {
    if (dtype == SQFT_F32)
        ((float*)to)[index] = value;
    else
        ((uint16_t*)to)[index] = dtype == SQFT_BF16 ? bfloat_of_float(value) : half_of_float(value);
}

/* Stores the rows of one block that exist: y = total + bias. */
static inline void store_block(const sqft_job* job, int64_t block, int64_t token, const float* total) {
    int64_t row = block * ROWS, rows = least(ROWS, job->w.out - row);
    for (int64_t i = 0; i < rows; i++) {
        float value = total[i];
        if (job->bias) value += load_float(job->bias, job->dtype, row + i);
        store_float(job->y, job->dtype, token * job->y_stride + row + i, value);
    }
}

/* Where segment number `segment` lies: its group, its first chunk, its chunks. */
static inline void locate(const sqft_job* job, int64_t segment, int64_t* group, int64_t* chunk, int64_t* chunks) {
    *group = segment / job->segments_per_group;
    int64_t inside = (segment % job->segments_per_group) * SEGMENT_CHUNKS;
    *chunk = *group * job->group_chunks + inside;
    *chunks = least(SEGMENT_CHUNKS, least(job->group_chunks - inside, job->chunks - *chunk));
}

/* count (<= SEGMENT) values of x from `index` on → q as planes [2][SEGMENT] (high, low; with 8 bits only the first),
 * zero behind `count`; s; the sum of q. */
static inline void quantize_segment(const sqft_job* job, int64_t index, int64_t count, int8_t* planes, float* scale,
                                    int32_t* sum) {
    float values[SEGMENT];
    int32_t q[SEGMENT];
    memset(values, 0, sizeof values);
    if (job->dtype == SQFT_F32)
        memcpy(values, (const float*)job->x + index, (size_t)count * 4);
    else
        for (int64_t i = 0; i < count; i++) values[i] = load_float(job->x, job->dtype, index + i);
    uint32_t largest = 0;
    for (int i = 0; i < SEGMENT; i++) {
        uint32_t magnitude = bits_of_float(values[i]) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    float top = job->planes == 2 ? 32639.0f : 127.0f;
    float step = float_of_bits(largest) / top;
    step = step > 0x1p-100f ? step : 0x1p-100f;
    *scale = largest < 0x7f800000 ? step : float_of_bits(0x7fc00000);
    float inverse = largest < 0x7f800000 ? 1.0f / step : 0.0f;
    int32_t total = 0;
    for (int i = 0; i < SEGMENT; i++) {
        /* adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits */
        float shifted = values[i] * inverse + 12582912.0f;
        q[i] = largest < 0x7f800000 ? (int32_t)(bits_of_float(shifted) - 0x4b400000) : 0;
        total += q[i];
    }
    *sum = total;
    if (job->planes == 2)
        for (int i = 0; i < SEGMENT; i++) {
            planes[i] = (int8_t)((q[i] + 128) >> 8);
            planes[SEGMENT + i] = (int8_t)q[i]; /* what is left is in -128..127: the low byte */
        }
    else
        for (int i = 0; i < SEGMENT; i++) planes[i] = (int8_t)q[i];
}

/* The words of the tile that begins at token `begin`, in the segment of these chunks. */
static inline int8_t* words_of(const sqft_job* job, int64_t begin, int64_t chunk, int64_t chunks) {
    return job->q + (chunk * job->tokens + begin * chunks) * CHUNK * job->planes;
}

/* sqft_backend.quantize for the layout of words described at sqft_job. */
static inline void quantize_words(const sqft_job* job, int64_t first_token, int64_t last_token) {
    int8_t planes[2 * SEGMENT];
    for (int64_t token = first_token; token < last_token; token++) {
        int64_t begin = token / TILE * TILE, tile = least(TILE, job->tokens - begin);
        for (int64_t segment = 0; segment < job->segments; segment++) {
            int64_t group, chunk, chunks, at = segment * job->tokens + token;
            locate(job, segment, &group, &chunk, &chunks);
            int64_t count = least(chunks * CHUNK, job->w.in - chunk * CHUNK);
            quantize_segment(job, token * job->x_stride + chunk * CHUNK, count, planes, job->scales + at,
                             job->sums + at);
            int8_t* to = words_of(job, begin, chunk, chunks) + (token - begin) * job->planes * CHUNK;
            if (job->planes == 2)
                for (int64_t c = 0; c < chunks; c++, to += tile * 2 * CHUNK) {
                    memcpy(to, planes + c * CHUNK, CHUNK);
                    memcpy(to + CHUNK, planes + SEGMENT + c * CHUNK, CHUNK);
                }
            else
                for (int64_t c = 0; c < chunks; c++, to += tile * CHUNK) memcpy(to, planes + c * CHUNK, CHUNK);
        }
    }
}

#endif
