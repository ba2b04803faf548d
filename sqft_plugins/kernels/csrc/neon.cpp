/* NEON with the dot product of Armv8.2: codes are expanded by a table (tbl) and multiplied by sdot. Run in an
 * emulator (QEMU) so far, never on a processor: right, its speed unknown. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "lookup.h"

enum { QUARTER = 16, QUARTERS = 4 };

namespace {

/* lookup.h says what each of these is. Codes become code - zero point, 0 where pruned. */
struct Neon {
    struct Group {
        uint8x16_t zero[QUARTERS]; /* in each byte of its row */
        float32x4_t scale[QUARTERS];
    };

    static Group group_at(const sqft_job* job, int64_t at) {
        Group group;
        for (int i = 0; i < QUARTERS; i++) {
            uint8_t zeros[QUARTER];
            float scales[4];
            for (int j = 0; j < QUARTER; j++)
                zeros[j] = job->w.zero_points ? job->w.zero_points[at + 4 * i + j / CHUNK] : 8;
            for (int j = 0; j < 4; j++) scales[j] = float_of_half(job->w.scales[at + 4 * i + j]);
            group.zero[i] = vld1q_u8(zeros);
            group.scale[i] = vld1q_f32(scales);
        }
        return group;
    }

    template <int SHIFT>
    static const uint8_t* expand(const uint64_t* mask, const uint8_t* values, const Group& group, uint8_t* to) {
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
            uint8x16_t steps = vsubq_u8(vqtbl1q_u8(codes, vorrq_u8(at, upper)), group.zero[i]);
            vst1q_u8(to + i * QUARTER, vbicq_u8(steps, vcgeq_u8(at, vdupq_n_u8(PRUNED))));
        }
        return values + kept[7];
    }

    static void expand_dense(const uint8_t* values, const Group& group, uint8_t* to) {
        for (int i = 0; i < QUARTERS; i++) {
            uint8x16_t codes = vld1q_u8(values + i * QUARTER);
            vst1q_u8(to + i * QUARTER, vsubq_u8(vandq_u8(codes, vdupq_n_u8(15)), group.zero[i]));
            vst1q_u8(to + BLOCK + i * QUARTER, vsubq_u8(vshrq_n_u8(codes, 4), group.zero[i]));
        }
    }

    template <int PLANES>
    static void token(const uint8_t* codes, int64_t chunks, const int8_t* x, int64_t stride, const Group& group,
                      int32_t /* of no use: the zero points are gone */, float s, float* total) {
        int32x4_t sum[PLANES][QUARTERS];
        for (int i = 0; i < PLANES * QUARTERS; i++) sum[i / QUARTERS][i % QUARTERS] = vdupq_n_s32(0);
        for (int64_t c = 0; c < chunks; c++, codes += BLOCK, x += stride) {
            int32_t words[2] = {0, 0};
            memcpy(words, x, PLANES * CHUNK);
            for (int i = 0; i < QUARTERS; i++) {
                int8x16_t code = vreinterpretq_s8_u8(vld1q_u8(codes + i * QUARTER));
                for (int p = 0; p < PLANES; p++)
                    sum[p][i] = vdotq_s32(sum[p][i], code, vreinterpretq_s8_s32(vdupq_n_s32(words[p])));
            }
        }
        for (int i = 0; i < QUARTERS; i++) {
            int32x4_t n = PLANES == 2 ? vaddq_s32(vshlq_n_s32(sum[0][i], 8), sum[PLANES - 1][i]) : sum[0][i];
            float32x4_t part = vmulq_n_f32(vmulq_f32(vcvtq_f32_s32(n), group.scale[i]), s);
            vst1q_f32(total + 4 * i, vaddq_f32(vld1q_f32(total + 4 * i), part));
        }
    }
};

}  // namespace

extern "C" const sqft_backend sqft_neon_backend;
const sqft_backend sqft_neon_backend = {quantize_words, blocks_of<Neon>, TILE};
#endif
