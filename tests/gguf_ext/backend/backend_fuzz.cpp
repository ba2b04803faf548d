// Packs random Q4_0 tensors and takes them back, and reads damaged GGUF files, under the sanitizers. test_fuzz.py compiles
// it. Arguments: seed, tensors, a GGUF file, a folder to write into. Prints tensors, weights, files read, files refused.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <random>

#include "repack.h"

extern "C" void sqft_ggml_density(double);

static void fail(const char* what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

int main(int count, char** arguments) {
    if (count != 5) fail("seed, tensors, file, folder");
    std::mt19937_64 random(strtoull(arguments[1], nullptr, 10));
    auto below = [&random](uint64_t limit) { return (int64_t)(random() % limit); };
    const std::string missing = sqft::find_kernels();
    if (!missing.empty()) fail(missing.c_str());

    long tensors = atol(arguments[2]), weights = 0;
    for (long t = 0; t < tensors; t++) {
        const int64_t out = 1 + below(70), blocks = 1 + below(20), in = 32 * blocks, zeros = below(257), run = 1 + below(4);
        std::vector<uint8_t> source(out * blocks * 18);
        for (int64_t b = 0; b < out * blocks; b++) {
            uint8_t* block = &source[b * 18];
            if (b % blocks % run == 0) *(uint16_t*)block = (uint16_t)random(); // any scale, NaN too
            else memcpy(block, block - 18, 2);
            for (int i = 2; i < 18; i++) {
                auto code = [&] { return below(256) < zeros ? 8 : below(16); };
                block[i] = (uint8_t)(code() | code() << 4);
            }
        }
        auto place = [&] { return std::unique_ptr<uint8_t, decltype(&free)>((uint8_t*)aligned_alloc(64, sqft::packed_bound(out, in)), free); };
        const auto first = place(), second = place();
        const sqft::Weight packed = sqft::pack_by(sqft::plain_packer, source.data(), out, in, first.get());
        const int64_t bytes = packed.packed.block_offsets[(out + 15) / 16] + SQFT_PADDING;
        if (sqft::kernels.check(&packed.packed, bytes) != SQFT_OK) fail("the kernels refuse what was packed");
        std::vector<uint8_t> back(source.size());
        sqft::unpack(packed, 0, out, back.data());
        if (back != source) fail("other blocks came back");
        if (const sqft::Packer* fast = sqft::avx512_packer()) {
            const sqft::Weight same = sqft::pack_by(*fast, source.data(), out, in, second.get());
            const int64_t used = packed.packed.values + bytes - first.get();
            if (same.kept != packed.kept || memcmp(first.get(), second.get(), used)) fail("AVX-512 packs otherwise");
        }
        weights += out * in;
    }

    sqft_ggml_density(0.9);
    std::ifstream stream(arguments[3], std::ios::binary);
    const std::string whole((std::istreambuf_iterator<char>(stream)), {});
    stream.close(); // it would be found, whole
    const std::string path = std::string(arguments[4]) + "/damaged.gguf";
    long found = 0, refused = 0;
    for (int file = 0; file < 400; file++) {
        std::string bytes = whole;
        if (file) {
            for (int64_t hit = below(8); hit >= 0; hit--) bytes[24 + below(4000)] = (char)random();
            if (below(4) == 0) bytes.resize(24 + below(bytes.size() - 24));
        }
        usleep(5000); // what is known of a file is remembered, and the system counts changes in steps of 4 ms
        std::ofstream(path, std::ios::binary) << bytes;
        int descriptor = open(path.c_str(), O_RDONLY);
        sqft::Survey survey;
        bool there = sqft::survey_open_files("blk.1.ffn_down.weight", 256, 384, &survey) == sqft::FOUND;
        if (!file && (!there || survey.density() < 0.4 || survey.density() > 0.6)) fail("the whole file is not read");
        (there ? found : refused)++;
        close(descriptor);
    }
    printf("%ld %ld %ld %ld\n", tensors, weights, found, refused);
    return 0;
}
