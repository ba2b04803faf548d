// Runs every back end under the sanitizers, on sound and on damaged packed weights. test_kernels_build.py compiles it.
//
//     kernels_fuzz SEED COUNT
//
// All buffers are of exactly the size that kernel.h asks for, on the heap, so that one byte too far is seen. A weight that
// sqft_check accepts is run; a sound one must be accepted, packed and unpacked without loss, and be right.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

#include "kernel.h"

extern "C" {
int64_t sqft_pack_masks(const uint8_t*, int64_t, int64_t, uint64_t*, int64_t*);
void sqft_pack_values(const uint8_t*, int64_t, int64_t, const uint64_t*, const int64_t*, uint8_t*);
void sqft_unpack(const uint64_t*, const uint8_t*, const int64_t*, const uint8_t*, int64_t, int64_t, int64_t, uint8_t*,
                 uint8_t*);
}

static std::mt19937_64 randomness;
static int64_t pick(int64_t low, int64_t high) { return low + (int64_t)(randomness() % (uint64_t)(high - low + 1)); }

template <typename T>
static std::unique_ptr<T[]> buffer(int64_t count) {
    return std::unique_ptr<T[]>(new T[(size_t)count]());
}

static void die(const char* what) {
    fprintf(stderr, "kernels_fuzz: %s\n", what);
    exit(1);
}

static uint16_t half(int exponent) { return (uint16_t)((exponent + 15) << 10); } /* 2^exponent */

int main(int, char** arguments) {
    randomness.seed((uint64_t)atoll(arguments[1]));
    int64_t count = atoll(arguments[2]), accepted = 0, refused = 0, calls = 0;
    const int64_t sizes[] = {8, 16, 24, 32, 64, 128, 136, 256};
    const int64_t batches[] = {1, 2, 3, 4, 5, 8, 9, 17, 33, 70};
    for (int64_t round = 0; round < count; round++) {
        bool dense = pick(0, 3) == 0; /* no masks; whole blocks and pairs of chunks, which pack as with masks */
        int64_t groups = pick(1, 4), size = groups == 1 && !dense ? pick(1, 300) : sizes[pick(0, 7)];
        int64_t in = groups * size, out = dense ? 16 * pick(1, 4) : pick(1, 70), blocks = (out + 15) / 16, chunks = 2 * ((in + 7) / 8);
        auto codes = buffer<uint8_t>(out * in), kept = buffer<uint8_t>(out * in);
        auto masks = buffer<uint64_t>(blocks * chunks);
        auto offsets = buffer<int64_t>(blocks + 1);
        auto scales = buffer<uint16_t>(blocks * groups * 16);
        auto zeros = buffer<uint8_t>(blocks * groups * 16);
        bool symmetric = pick(0, 1);
        int64_t density = dense ? 100 : pick(0, 4) * 25;
        for (int64_t i = 0; i < blocks * groups * 16; i++) {
            scales[i] = half((int)pick(-8, 3));
            zeros[i] = (uint8_t)pick(0, 15);
        }
        for (int64_t row = 0; row < out; row++)
            for (int64_t i = 0; i < in; i++) {
                kept[row * in + i] = pick(1, 100) <= density;
                uint8_t zero = symmetric ? 8 : zeros[(row / 16 * groups + i / size) * 16 + row % 16];
                codes[row * in + i] = kept[row * in + i] ? (uint8_t)pick(0, 15) : zero;
            }
        int64_t bytes = sqft_pack_masks(kept.get(), out, in, masks.get(), offsets.get()) + SQFT_PADDING;
        auto values = buffer<uint8_t>(bytes);
        sqft_pack_values(codes.get(), out, in, masks.get(), offsets.get(), values.get());
        auto back = buffer<uint8_t>(out * in), back_kept = buffer<uint8_t>(out * in);
        const uint8_t* zero_points = symmetric ? nullptr : zeros.get();
        sqft_unpack(masks.get(), values.get(), offsets.get(), zero_points, groups, out, in, back.get(), back_kept.get());
        if (memcmp(back.get(), codes.get(), (size_t)(out * in))) die("unpacking does not undo packing");
        if (memcmp(back_kept.get(), kept.get(), (size_t)(out * in))) die("unpacking does not give the mask back");

        bool sound = pick(0, 2) == 0;
        for (int64_t i = sound ? 0 : pick(1, 3); i > 0; i--) switch (pick(0, 5)) {
                case 0: masks[pick(0, blocks * chunks - 1)] ^= 1ull << pick(0, 63); break;
                case 1: masks[pick(0, blocks * chunks - 1)] = randomness(); break;
                case 2: offsets[pick(0, blocks)] += pick(-70, 70); break;
                case 3: offsets[pick(0, blocks)] = (int64_t)randomness(); break;
                case 4: values[pick(0, bytes - 1)] ^= (uint8_t)pick(1, 255); break;
                case 5: { /* a stream that was cut off */
                    int64_t shorter = pick(0, bytes - 1);
                    auto cut = buffer<uint8_t>(shorter);
                    memcpy(cut.get(), values.get(), (size_t)shorter);
                    values = std::move(cut);
                    bytes = shorter;
                    if (!bytes) values = buffer<uint8_t>(bytes = 1);
                    break;
                }
            }
        sqft_weight weight = {dense ? nullptr : masks.get(), values.get(), offsets.get(), scales.get(), zero_points, out, in, size};
        if (sqft_check(&weight, bytes) != SQFT_OK) {
            if (sound) die("a sound weight is refused");
            refused++;
            continue;
        }
        accepted++;
        int64_t tokens = batches[pick(0, 9)], x_stride = in + pick(0, 3), y_stride = out + pick(0, 3);
        int64_t x_count = (tokens - 1) * x_stride + in, y_count = (tokens - 1) * y_stride + out;
        int dtype = (int)pick(0, 2), bits = pick(0, 3) ? 16 : 8, width = dtype == SQFT_F32 ? 4 : 2;
        auto x = buffer<uint8_t>(x_count * width), bias = buffer<uint8_t>(out * width);
        for (int64_t i = 0; i < x_count; i++) { /* small integers, exact in all three types */
            float value = (float)pick(-3, 3);
            uint32_t word;
            memcpy(&word, &value, 4);
            uint16_t narrow = (uint16_t)(word >> 16); /* bf16 */
            if (dtype == SQFT_F16)
                narrow = value == 0 ? 0 : (uint16_t)((word >> 16 & 0x8000) | ((word >> 13 & 0x3ffff) - (112 << 10)));
            memcpy(x.get() + i * width, dtype == SQFT_F32 ? (void*)&word : (void*)&narrow, (size_t)width);
        }
        std::unique_ptr<uint8_t[]> first;
        for (int path = SQFT_SCALAR; path <= SQFT_NEON; path++) {
            if (!sqft_supported(path)) continue;
            auto y = buffer<uint8_t>(y_count * width);
            int64_t scratch_bytes = sqft_scratch_bytes(&weight, tokens, bits, path, 1);
            void* scratch = nullptr;
            if (posix_memalign(&scratch, 64, (size_t)scratch_bytes + 1)) die("no memory");
            int failed = sqft_linear(&weight, x.get(), dtype, tokens, x_stride, pick(0, 1) ? bias.get() : nullptr,
                                     y.get(), y_stride, path, bits, nullptr, 1, scratch, scratch_bytes);
            free(scratch);
            if (failed) die("sqft_linear refuses its arguments");
            calls++;
            if (!first)
                first = std::move(y);
            else if (memcmp(first.get(), y.get(), (size_t)(y_count * width)))
                die("two back ends differ");
            else
                continue;
            if (!sound || dtype != SQFT_F32) continue;
            const float* result = (const float*)first.get();
            const float* given = (const float*)x.get();
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t row = 0; row < out; row++) {
                    double exact = 0, size_of = 0;
                    for (int64_t i = 0; i < in; i++) {
                        int64_t at = (row / 16 * groups + i / size) * 16 + row % 16;
                        double scale = std::ldexp(1.0, (scales[at] >> 10) - 15);
                        double w = scale * (codes[row * in + i] - (symmetric ? 8 : zeros[at]));
                        exact += w * given[t * x_stride + i];
                        size_of += std::fabs(w);
                    }
                    double bound = size_of * (bits == 16 ? 3.0 / 32639 : 3.0 / 127) + 1e-20;
                    if (!(std::fabs(result[t * y_stride + row] - exact) <= bound)) die("a result is wrong");
                }
        }
    }
    printf("%lld accepted, %lld refused, %lld calls\n", (long long)accepted, (long long)refused, (long long)calls);
    return 0;
}
