/* What this library knows of ggml: the shapes of the objects that both sides touch, as of ggml 0.25 (backend API 2).
 *
 * llama-cpp-python ships libraries and no headers, so the facts stand here, and probe.cpp compares them with what the
 * loaded ggml does before anything is handed to it. Sources: ggml/include/ggml.h (struct ggml_tensor),
 * ggml/src/ggml-backend-impl.h (buffers, registrations), ggml/src/ggml-cpu/traits.h (the CPU's extra buffer types) and
 * ggml/src/ggml-cpu/ggml-cpu-impl.h (what a thread is told).
 */
#ifndef SQFT_GGML_ABI_H
#define SQFT_GGML_ABI_H
#include <stddef.h>
#include <stdint.h>

#define SQFT_GGML_API 2          /* GGML_BACKEND_API_VERSION */
#define SQFT_GGML_VERSION "0.25" /* ggml_version() without its last number */

namespace ggml {

enum { TYPE_F32 = 0, TYPE_Q4_0 = 2, TYPE_I8 = 24 };
enum { DEVICE_CPU = 0 };
enum { USAGE_WEIGHTS = 1 };

struct Buffer;
struct BufferType;
struct Device;
struct Registration;
struct ThreadPool;

struct Tensor {
    int type;
    Buffer* buffer;
    int64_t ne[4]; /* ne[0] is the innermost: a weight [out, in] has ne = {in, out, 1, 1} */
    size_t nb[4];
    int op;
    int32_t op_params[16];
    int32_t flags;
    Tensor* src[10];
    Tensor* view_src;
    size_t view_offs;
    void* data;
    char name[64];
    void* extra;
    char padding[8];
};

struct BufferTypeFunctions {
    const char* (*get_name)(BufferType*);
    Buffer* (*alloc_buffer)(BufferType*, size_t);
    size_t (*get_alignment)(BufferType*);
    size_t (*get_max_size)(BufferType*);
    size_t (*get_alloc_size)(BufferType*, const Tensor*);
    bool (*is_host)(BufferType*);
};

struct BufferType {
    BufferTypeFunctions functions;
    Device* device;
    void* context;
};

struct BufferFunctions {
    void (*free_buffer)(Buffer*);
    void* (*get_base)(Buffer*);
    int (*init_tensor)(Buffer*, Tensor*);
    void (*memset_tensor)(Buffer*, Tensor*, uint8_t, size_t offset, size_t size);
    void (*set_tensor)(Buffer*, Tensor*, const void*, size_t offset, size_t size);
    void (*get_tensor)(Buffer*, const Tensor*, void*, size_t offset, size_t size);
    void (*set_tensor_2d)(Buffer*, Tensor*, const void*, size_t, size_t, size_t, size_t, size_t);
    void (*get_tensor_2d)(Buffer*, const Tensor*, void*, size_t, size_t, size_t, size_t, size_t);
    bool (*cpy_tensor)(Buffer*, const Tensor*, Tensor*);
    void (*clear)(Buffer*, uint8_t);
    void (*reset)(Buffer*);
};

struct Buffer {
    BufferFunctions functions;
    BufferType* type;
    void* context;
    size_t size;
    int usage;
};

struct Registration {
    int api_version;
    const char* (*get_name)(Registration*);
    size_t (*get_device_count)(Registration*);
    Device* (*get_device)(Registration*, size_t);
    void* (*get_proc_address)(Registration*, const char*);
    void* context;
};

/* What a thread of the CPU backend is told of an operation. */
struct ComputeParams {
    int ith, nth;
    size_t wsize;
    void* wdata;
    ThreadPool* threadpool;
    bool use_ref;
};

struct InitParams {
    size_t mem_size;
    void* mem_buffer;
    bool no_alloc;
};

/* The CPU backend calls these through their virtual tables, so the order of the functions is the fact. */
class TensorTraits {
public:
    virtual ~TensorTraits() = default;
    virtual bool work_size(int threads, const Tensor* op, size_t& size) = 0;
    virtual bool compute_forward(ComputeParams* params, Tensor* op) = 0;
};

class ExtraBufferType {
public:
    virtual ~ExtraBufferType() = default;
    virtual bool supports_op(Device* device, const Tensor* op) = 0;
    virtual TensorTraits* get_tensor_traits(const Tensor* op) = 0;
};

static_assert(sizeof(Tensor) == 336, "struct ggml_tensor of ggml 0.25, 64 bits");

}  // namespace ggml
#endif
