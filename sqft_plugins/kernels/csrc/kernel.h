/* Sparse INT4 linear layers on a CPU: y = x W^T + bias. The C interface; binding.cpp makes torch operators of it.
 *
 * A weight in memory (sqft_plugins/kernels/layout.py packs it). Rows are padded to 16, inputs to 8.
 *   block b   rows 16b .. 16b+15; `blocks` = ceil(out / 16)
 *   chunk c   inputs 4c .. 4c+3 of a block, 64 weights; `chunks` = 2 * ceil(in / 8), always even
 *   masks     uint64 [blocks, chunks]: bit 4*(row % 16) + input % 4 says that the weight is kept; 0 in the padding.
 *             NULL: every weight is kept (dense INT4), each pair of chunks then takes 64 bytes of values, and what
 *             stands in the padding does not matter
 *   values    per block two streams of 4-bit codes, in the order of the bits: the kept weights of its even chunks in
 *             the low nibbles, of its odd chunks in the high nibbles; the longer stream sets the block's length, the
 *             rest of the other is 0. Behind the last block lie SQFT_PADDING zero bytes, so that a vector load at any
 *             kept weight stays inside
 *   block_offsets  int64 [blocks + 1], bytes into values, never falling
 *   scales    fp16 [blocks, groups, 16]
 *   zero_points  uint8 [blocks, groups, 16], 0..15, or NULL: 8 everywhere
 * A group is `group_size` inputs of one row, a multiple of 8 that divides `in`, or `in` itself (any number).
 * weight = scale * (code - zero_point) where kept, else 0. Another `values` over the same masks, offsets and scales is
 * a value plane.
 *
 * Arithmetic. A segment is a group, or 128 inputs of it where it is wider (the last of a group may be narrower). Each
 * token's x becomes fixed point, segment by segment: x ~ s * q with s = max(|x| of the segment / Q, 2^-100) and q a
 * signed integer, Q = 32639 (16 bits, held as 256 * high + low) or 127 (8 bits). Within a segment all is exact in int32:
 * n = sum of q * (code - zero_point) over the kept weights; then y += (n * scale) * s in float32, segments in order, at
 * last the bias and one rounding to the dtype of x. So
 *   - the same x gives the same bits in every back end, batch and number of threads; a row without a kept weight gives
 *     exactly 0 (plus the bias);
 *   - before that last rounding the error is at most
 *       sum over segments of 0.51 * s * sum |weight|      (the fixed point; 16 bits: 1.6e-5 of the segment's max |x|)
 *     + (segments + 4) * 2^-23 * sum |weight| * (|x| + s)  (float32)
 *   - a token with an infinity or NaN gives NaN.
 */
#ifndef SQFT_KERNEL_H
#define SQFT_KERNEL_H
#include <stdint.h>

#define SQFT_INTERFACE 2 /* counted up when what library.py or gguf_ext/backend calls changes */
#define SQFT_PADDING 64
#define SQFT_PASS 256 /* tokens that are worked on at once */

#ifdef __cplusplus
extern "C" {
#endif

/* SQFT_INTERFACE of the sources that the library was built from. */
int sqft_interface(void);

typedef struct {
    const uint64_t* masks;        /* [blocks, chunks], 8-byte aligned, or NULL: dense */
    const uint8_t* values;        /* [block_offsets[blocks] + SQFT_PADDING] */
    const int64_t* block_offsets; /* [blocks + 1] */
    const uint16_t* scales;       /* [blocks, groups, 16], fp16 */
    const uint8_t* zero_points;   /* [blocks, groups, 16] or NULL */
    int64_t out, in, group_size;
} sqft_weight;

enum { SQFT_F32 = 0, SQFT_BF16 = 1, SQFT_F16 = 2 };
enum { SQFT_SCALAR = 0, SQFT_AVX2 = 1, SQFT_AVX512 = 2, SQFT_AMX = 3, SQFT_NEON = 4 };

/* Calls body over [begin, end) in pieces of at least `grain`, in any order, on any threads (torch's pool). */
typedef void (*sqft_body)(int64_t begin, int64_t end, void* context);
typedef void (*sqft_parallel_for)(int64_t begin, int64_t end, int64_t grain, sqft_body body, void* context);

/* Whether this library holds the back end `path` and this processor (and system, for AMX) runs it: 1 or 0. */
int sqft_supported(int path);

/* The fastest back end of this machine (AMX serves few tokens with AVX-512 itself). */
int sqft_best(void);

/* What a weight must satisfy before the kernel may run on it. 0: it does. O(masks), no allocation. */
enum {
    SQFT_OK = 0,
    SQFT_BAD_SHAPE = 1,   /* out, in or group_size out of range, or group_size does not divide in */
    SQFT_BAD_OFFSETS = 2, /* negative, falling, or past values_bytes - SQFT_PADDING */
    SQFT_BAD_COUNT = 3,   /* the masks keep more weights in a block than it has nibbles, or fewer than fill it */
    SQFT_BAD_PADDING = 4, /* a mask bit is set where out or in has ended */
    SQFT_BAD_ZERO = 5     /* a zero point above 15 */
};
int sqft_check(const sqft_weight* weight, int64_t values_bytes);

/* Bytes of scratch that sqft_linear needs; grows with tokens up to SQFT_PASS of them, then stays. */
int64_t sqft_scratch_bytes(const sqft_weight* weight, int64_t tokens, int activation_bits, int path, int threads);

/* y [tokens, out] = x [tokens, in] W^T + bias; x and y do not overlap. Strides in elements, the last axis contiguous;
 * bias [out] in the dtype of x and y, or NULL. scratch: 64-byte aligned. parallel_for NULL or threads 1: all on the
 * calling thread. Returns 0, or 1 where the arguments are wrong (path not supported, dtype or activation_bits unknown,
 * scratch too small or not aligned); the weight itself is not checked here. */
int sqft_linear(const sqft_weight* weight, const void* x, int dtype, int64_t tokens, int64_t x_stride, const void* bias,
                void* y, int64_t y_stride, int path, int activation_bits, sqft_parallel_for parallel_for, int threads,
                void* scratch, int64_t scratch_bytes);

/* The same by a team of threads that are running already, such as a runtime's own: each of the `team` threads calls this
 * with the same arguments, but for `member`, its number from 0, and with one scratch of sqft_scratch_bytes(.., team)
 * for all. barrier returns when all of the team have called it, after which all see what each wrote before; y is whole
 * when all have returned. The same bits as sqft_linear, whatever the team. */
typedef void (*sqft_barrier)(void* context);
int sqft_linear_team(const sqft_weight* weight, const void* x, int dtype, int64_t tokens, int64_t x_stride,
                     const void* bias, void* y, int64_t y_stride, int path, int activation_bits, int member, int team,
                     sqft_barrier barrier, void* context, void* scratch, int64_t scratch_bytes);

#ifdef __cplusplus
}
#endif
#endif
