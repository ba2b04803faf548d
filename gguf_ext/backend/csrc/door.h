/* What the files of this library share. */
#ifndef SQFT_GGML_DOOR_H
#define SQFT_GGML_DOOR_H
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "abi.h"
#include "kernel.h" /* sqft_plugins/kernels/csrc */

#define SQFT_EXPORT extern "C" __attribute__((visibility("default")))

namespace sqft {

/* ---- ggml.cpp: functions of the ggml that loads this library, found by name. */
#define SQFT_GGML_FUNCTIONS(F)                                                                                      \
    F(const char*, ggml_version, (void))                                                                            \
    F(size_t, ggml_tensor_overhead, (void))                                                                         \
    F(void*, ggml_init, (ggml::InitParams))                                                                         \
    F(void, ggml_free, (void*))                                                                                     \
    F(ggml::Tensor*, ggml_new_tensor_2d, (void*, int, int64_t, int64_t))                                            \
    F(ggml::Tensor*, ggml_mul_mat, (void*, ggml::Tensor*, ggml::Tensor*))                                           \
    F(ggml::Tensor*, ggml_set_name, (ggml::Tensor*, const char*))                                                   \
    F(const char*, ggml_op_name, (int))                                                                             \
    F(const char*, ggml_type_name, (int))                                                                           \
    F(size_t, ggml_nbytes, (const ggml::Tensor*))                                                                   \
    F(ggml::Buffer*, ggml_backend_buffer_init, (ggml::BufferType*, ggml::BufferFunctions, void*, size_t))           \
    F(void, ggml_backend_buffer_free, (ggml::Buffer*))                                                              \
    F(size_t, ggml_backend_buffer_get_size, (ggml::Buffer*))                                                        \
    F(void, ggml_backend_buffer_set_usage, (ggml::Buffer*, int))                                                    \
    F(bool, ggml_backend_buft_is_host, (ggml::BufferType*))                                                         \
    F(ggml::BufferType*, ggml_backend_cpu_buffer_type, (void))                                                      \
    F(int, ggml_backend_dev_type, (ggml::Device*))                                                                  \
    F(ggml::Device*, ggml_backend_reg_dev_get, (ggml::Registration*, size_t))                                       \
    F(void*, ggml_backend_reg_get_proc_address, (ggml::Registration*, const char*))                                 \
    F(ggml::Registration*, ggml_backend_cpu_reg, (void))                                                            \
    F(void, ggml_barrier, (ggml::ThreadPool*))

struct Ggml {
#define SQFT_FIELD(result, name, parameters) result(*name) parameters = nullptr;
    SQFT_GGML_FUNCTIONS(SQFT_FIELD)
#undef SQFT_FIELD
    std::vector<ggml::BufferType*>* extras = nullptr; /* the CPU backend's own list */
    int mul_mat = -1;                                 /* GGML_OP_MUL_MAT */
};
extern Ggml ggml_functions;
/* → "" or what is missing. */
std::string find_ggml();

/* ---- kernels.cpp: the project's kernel library, opened beside this one. */
struct Kernels {
    int (*interface)(void) = nullptr;
    int (*best)(void) = nullptr;
    int (*supported)(int) = nullptr;
    int (*forced)(void) = nullptr;
    int (*check)(const sqft_weight*, int64_t) = nullptr;
    int64_t (*pack_masks)(const uint8_t*, int64_t, int64_t, uint64_t*, int64_t*) = nullptr;
    void (*pack_values)(const uint8_t*, int64_t, int64_t, const uint64_t*, const int64_t*, uint8_t*) = nullptr;
    void (*unpack)(const uint64_t*, const uint8_t*, const int64_t*, const uint8_t*, int64_t, int64_t, int64_t, uint8_t*,
                   uint8_t*) = nullptr;
    int64_t (*scratch_bytes)(const sqft_weight*, int64_t, int, int, int) = nullptr;
    decltype(&sqft_linear_team) linear_team = nullptr;
};
extern Kernels kernels;
/* → "" or why the kernels cannot be used. */
std::string find_kernels();
/* The back end that computes now, numbered as in kernel.h. */
int kernel_path();

/* ---- repack.cpp: Q4_0 blocks ↔ the form of the kernels. */
enum { Q4_0_WEIGHTS = 32, Q4_0_BYTES = 18 };

struct Weight {
    sqft_weight packed{}; /* points into memory that somebody else holds */
    int64_t kept = 0;

    int64_t bytes() const;
};
/* Bytes that a packed weight takes at most, whatever is kept. */
int64_t packed_bound(int64_t out, int64_t in);
/* blocks: uint8 [out, in / 32, 18], a whole tensor → the packed weight in `target`, on all cores. target: 64-byte aligned,
 * packed_bound bytes, of which only those that are needed are touched. Throws std::bad_alloc before it writes. */
Weight pack(const uint8_t* blocks, int64_t out, int64_t in, uint8_t* target);
/* The inverse, bit for bit, of the rows [first, first + rows); first: a multiple of 16. */
void unpack(const Weight& weight, int64_t first, int64_t rows, uint8_t* blocks);
/* Of some rows: how many weights are kept, and the largest group in which scales repeat (0 where nothing was seen). */
struct Survey {
    int64_t weights = 0, kept = 0, group_blocks = 0;

    void add(const uint8_t* row, int64_t blocks);
    /* Only the scales of `count` rows that follow each other. changed: scratch for `blocks` numbers. */
    void add_scales(const uint8_t* rows, int64_t count, int64_t blocks, uint16_t* changed);
    double density() const { return weights ? (double)kept / (double)weights : 1.0; }
};

/* ---- file.cpp: what stands in the GGUF file that is being loaded. */
enum Found { NOWHERE, FOUND, AMBIGUOUS };
/* Looks for a Q4_0 tensor [out, in] of this name in the GGUF files that this process has open, and surveys some of
 * its rows. */
Found survey_open_files(const char* name, int64_t out, int64_t in, Survey* survey);
/* The pages of a mapped file that hold [data, data + size) are given back: they were read. Does nothing to other memory. */
void give_back(const void* data, size_t size);

/* ---- choose.cpp: whether sparse is faster. */
bool pays(const Survey& survey);
/* Whether a Q4_0 tensor of this name that is being loaded comes to us. */
bool wanted(const char* name, int64_t out, int64_t in);

/* ---- buffer.cpp, traits.cpp */
extern ggml::BufferType buffer_type;
bool is_ours(const ggml::Tensor* weight);
ggml::ExtraBufferType* extra_buffer_type();

/* ---- probe.cpp → "" or what is otherwise than abi.h says. */
std::string probe();

/* ---- counters, for tests and for what Python tells the user */
enum Count { MATMULS, TOKENS, TENSORS, SOURCE_BYTES, PACKED_BYTES, KEPT, WEIGHTS, AMBIGUOUS_TENSORS, COUNTS };
extern std::atomic<int64_t> counts[COUNTS];

/* One line for the user, on stderr; Python may take it. */
void notice(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace sqft
#endif
