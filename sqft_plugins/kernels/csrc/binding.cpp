/* The operators sqft::sparse_int4_linear and sqft::sparse_int4_linear.planes, on a CPU.
 *
 * torch's stable C interface (torch/csrc/stable/c/shim.h and torch/csrc/inductor/aoti_torch/c/shim.h, torch >= 2.10) is
 * declared here and looked up by name when the library is loaded: nothing of torch is needed to compile or to link.
 *
 * A boxed kernel gets its arguments in an array of 64-bit values, of which it owns the tensors, lists and boxes of
 * optional arguments, and leaves its results at the front of the same array. Errors are raised by torch, as C++ exceptions
 * that pass through this file: what must be freed stands in objects with destructors. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

namespace {

typedef uint64_t Value;
typedef struct TensorOpaque* Handle;
typedef struct ListOpaque* ListHandle;
typedef struct LibraryOpaque* LibraryHandle;
typedef int32_t Error; /* 0: none */
typedef void (*Boxed)(Value* stack, uint64_t arguments, uint64_t results);

/* What is called of torch. */
#define TORCH_FUNCTIONS(F)                                                                                               \
    F(Error, aoti_torch_library_init_impl, (const char*, const char*, const char*, uint32_t, LibraryHandle*))            \
    F(Error, torch_library_impl, (LibraryHandle, const char*, Boxed, uint64_t))                                          \
    F(Error, aoti_torch_delete_tensor_object, (Handle))                                                                  \
    F(Error, aoti_torch_get_data_ptr, (Handle, void**))                                                                  \
    F(Error, aoti_torch_get_dim, (Handle, int64_t*))                                                                     \
    F(Error, aoti_torch_get_numel, (Handle, int64_t*))                                                                   \
    F(Error, aoti_torch_get_sizes, (Handle, int64_t**))                                                                  \
    F(Error, aoti_torch_get_strides, (Handle, int64_t**))                                                                \
    F(Error, aoti_torch_get_dtype, (Handle, int32_t*))                                                                   \
    F(Error, aoti_torch_get_device_type, (Handle, int32_t*))                                                             \
    F(Error, aoti_torch_is_contiguous, (Handle, bool*))                                                                  \
    F(Error, aoti_torch_empty_strided, (int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Handle*))    \
    F(Error, aoti_torch_copy_, (Handle, Handle, int32_t))                                                                \
    F(void, aoti_torch_check, (bool, const char*, const char*, uint32_t, const char*))                                   \
    F(int32_t, aoti_torch_device_type_cpu, ())                                                                           \
    F(int32_t, aoti_torch_dtype_float32, ())                                                                             \
    F(int32_t, aoti_torch_dtype_bfloat16, ())                                                                            \
    F(int32_t, aoti_torch_dtype_float16, ())                                                                             \
    F(int32_t, aoti_torch_dtype_uint8, ())                                                                               \
    F(int32_t, aoti_torch_dtype_int64, ())                                                                               \
    F(Error, torch_list_size, (ListHandle, size_t*))                                                                     \
    F(Error, torch_list_get_item, (ListHandle, size_t, Value*))                                                          \
    F(Error, torch_delete_list, (ListHandle))                                                                            \
    F(Error, torch_parallel_for, (int64_t, int64_t, int64_t, sqft_body, void*))                                          \
    F(Error, torch_get_num_threads, (uint32_t*))
#define DECLARE(result, name, arguments) result(*name) arguments;
struct Torch {
    TORCH_FUNCTIONS(DECLARE)
} torch;
int32_t dtypes[3], device_cpu, dtype_uint8, dtype_int64; /* dtypes: in the order of kernel.h */
int forced_path = -1;

const uint64_t TORCH_2_10 = 2ull << 56 | 10ull << 48; /* whose conventions this file keeps to */

void fail(const char* format, const char* name, long long a = 0, long long b = 0) {
    char message[256];
    snprintf(message, sizeof message, format, name, a, b);
    torch.aoti_torch_check(false, "sqft", "binding.cpp", 0, message); /* throws */
    abort();
}

void need(Error error, const char* what) {
    if (error) fail("sparse_int4_linear: %s failed in torch", what);
}

/* An owned tensor, or none. */
struct Tensor {
    Handle handle = nullptr;
    void* data = nullptr;
    int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
    int32_t dtype = -1;

    Tensor() {}
    Tensor(const Tensor&) = delete;
    ~Tensor() {
        if (handle) torch.aoti_torch_delete_tensor_object(handle);
    }
    void take(Handle owned) {
        handle = owned;
        need(torch.aoti_torch_get_data_ptr(handle, &data), "data_ptr");
        need(torch.aoti_torch_get_dim(handle, &dim), "dim");
        need(torch.aoti_torch_get_sizes(handle, &sizes), "sizes");
        need(torch.aoti_torch_get_strides(handle, &strides), "strides");
        need(torch.aoti_torch_get_dtype(handle, &dtype), "dtype");
    }
    void take(Value owned) { take((Handle)owned); }
    void take_optional(Value boxed) {
        if (!boxed) return;
        Value inner = *(Value*)boxed;
        ::operator delete((void*)boxed); /* torch made it with new */
        take(inner);
    }
    Handle give() {
        Handle given = handle;
        handle = nullptr;
        return given;
    }
    bool on_cpu() const {
        int32_t device;
        need(torch.aoti_torch_get_device_type(handle, &device), "device_type");
        return device == device_cpu;
    }
    /* Throws where it is not a contiguous tensor of this dtype and shape; -1 stands for any size. */
    void expect(const char* name, int32_t wanted, int64_t wanted_dim, int64_t a, int64_t b = -1, int64_t c = -1) const {
        const int64_t shape[3] = {a, b, c};
        if (!on_cpu()) fail("sparse_int4_linear: %s is not on the CPU as x is: move the weight", name);
        if (dtype != wanted) fail("sparse_int4_linear: %s has a wrong dtype: pack the weight again", name);
        if (dim != wanted_dim) fail("sparse_int4_linear: %s has %lld axes, expected %lld", name, dim, wanted_dim);
        int64_t stride = 1;
        for (int64_t i = dim - 1; i >= 0; i--) {
            if (shape[i] >= 0 && sizes[i] != shape[i])
                fail("sparse_int4_linear: %s has size %lld where %lld fits x and out", name, sizes[i], shape[i]);
            if (sizes[i] != 1 && strides[i] != stride) fail("sparse_int4_linear: %s is not contiguous", name);
            stride *= sizes[i];
        }
    }
};

/* An owned list. */
struct List {
    ListHandle handle;
    explicit List(Value owned) : handle((ListHandle)owned) {}
    List(const List&) = delete;
    ~List() { torch.torch_delete_list(handle); }
    int64_t size() const {
        size_t count = 0;
        need(torch.torch_list_size(handle, &count), "list_size");
        return (int64_t)count;
    }
    Value item(int64_t index) const {
        Value value = 0;
        need(torch.torch_list_get_item(handle, (size_t)index, &value), "list_get_item");
        return value;
    }
};

/* The tensors of an owned list; their handles are owned, too, and are no new ones at every look. */
struct Tensors {
    List list;
    int64_t count;
    Tensor* each;
    explicit Tensors(Value owned) : list(owned), count(list.size()), each(new Tensor[(size_t)count]) {
        for (int64_t i = 0; i < count; i++) each[i].take(list.item(i));
    }
    Tensors(const Tensors&) = delete;
    ~Tensors() { delete[] each; }
};

/* Bytes aligned to a cache line: a few from the stack, more from the heap. */
struct Scratch {
    alignas(64) uint8_t small[48 * 1024];
    void* large = nullptr;
    Scratch() {}
    Scratch(const Scratch&) = delete;
    ~Scratch() { free(large); }
    void* get(int64_t bytes) {
        if (bytes <= (int64_t)sizeof small) return small;
        if (posix_memalign(&large, 64, (size_t)bytes)) fail("sparse_int4_linear: %s is out of memory", "scratch");
        return large;
    }
};

void parallel_for(int64_t begin, int64_t end, int64_t grain, sqft_body body, void* context) {
    torch.torch_parallel_for(begin, end, grain, body, context);
}

/* The arguments that both operators have, in the order of the schema. */
struct Call {
    Tensor x, masks, offsets, scales, zero_points, bias, y;
    sqft_weight weight;
    int64_t tokens = 1, x_stride = 0, bits = 16;
    int dtype = -1;

    /* rest: block_offsets, scales, zero_points, bias, out_features, activation_bits. Takes all before it checks any, so
     * that nothing is lost where a check fails. */
    void take(Value x_, Value masks_, const Value* rest) {
        x.take(x_);
        masks.take(masks_);
        offsets.take(rest[0]);
        scales.take(rest[1]);
        zero_points.take_optional(rest[2]);
        bias.take_optional(rest[3]);
        weight.out = (int64_t)rest[4];
        bits = (int64_t)rest[5];
    }

    void check() {
        for (int i = 0; i < 3; i++)
            if (x.dtype == dtypes[i]) dtype = i;
        if (dtype < 0 || x.dim < 1 || x.dim > 8 || x.sizes[x.dim - 1] < 1)
            fail("sparse_int4_linear: x is no float32, bfloat16 or float16 [..., in]%s", "");
        if (weight.out < 1) fail("sparse_int4_linear: out_features%s=%lld is below 1", "", weight.out);
        if (bits != 8 && bits != 16) fail("sparse_int4_linear: activation_bits%s=%lld: give 16 or 8", "", bits);
        weight.in = x.sizes[x.dim - 1];
        int64_t blocks = (weight.out + 15) / 16, chunks = 2 * ((weight.in + 7) / 8);
        masks.expect("masks", dtype_int64, 2, blocks, chunks);
        offsets.expect("block_offsets", dtype_int64, 1, blocks + 1);
        scales.expect("scales", dtypes[SQFT_F16], 3, blocks, -1, 16);
        int64_t groups = scales.sizes[1];
        if (groups < 1 || weight.in % groups)
            fail("sparse_int4_linear: %s has %lld groups, which do not divide in=%lld", "scales", groups, weight.in);
        weight.group_size = weight.in / groups;
        if (groups > 1 && weight.group_size % 8)
            fail("sparse_int4_linear: group_size%s=%lld is no multiple of 8: use SparseInt4Weight.linear, which takes plain "
                 "torch for it", "", weight.group_size);
        if (zero_points.handle) zero_points.expect("zero_points", dtype_uint8, 3, blocks, groups, 16);
        if (bias.handle) bias.expect("bias", x.dtype, 1, weight.out);
        weight.masks = (const uint64_t*)masks.data;
        weight.block_offsets = (const int64_t*)offsets.data;
        weight.scales = (const uint16_t*)scales.data;
        weight.zero_points = zero_points.handle ? (const uint8_t*)zero_points.data : nullptr;
        if (weight.block_offsets[0] < 0) fail("sparse_int4_linear: %s begin below 0: pack again", "block_offsets");
        for (int64_t b = 0; b < blocks; b++)
            if (weight.block_offsets[b] > weight.block_offsets[b + 1])
                fail("sparse_int4_linear: %s fall: pack the weight again", "block_offsets");
        view_tokens();
    }

    /* x as [tokens, in], contiguous along in: as it lies where that is possible, else a copy. */
    void view_tokens() {
        int64_t last = x.dim - 1;
        bool flat = x.sizes[last] == 1 || x.strides[last] == 1;
        x_stride = weight.in;
        bool seen = false;
        int64_t next = 0; /* what the stride of the axis before must be */
        for (int64_t i = last - 1; i >= 0; i--) {
            tokens *= x.sizes[i];
            if (x.sizes[i] == 1) continue;
            if (!seen)
                x_stride = x.strides[i];
            else
                flat = flat && x.strides[i] == next;
            seen = true;
            next = x.strides[i] * x.sizes[i];
        }
        if (flat || tokens == 0) return;
        Tensor copy;
        new_tensor(&copy, weight.in);
        need(torch.aoti_torch_copy_(copy.handle, x.handle, 0), "copy_");
        Handle old = x.give();
        x.take(copy.give());
        torch.aoti_torch_delete_tensor_object(old);
        x_stride = weight.in;
    }

    /* Contiguous, of the leading shape and dtype of x. */
    void new_tensor(Tensor* made, int64_t last_size) {
        int64_t sizes[8], strides[8], stride = 1;
        for (int64_t i = x.dim - 1; i >= 0; i--) {
            sizes[i] = i == x.dim - 1 ? last_size : x.sizes[i];
            strides[i] = stride;
            stride *= sizes[i] > 0 ? sizes[i] : 1;
        }
        Handle handle;
        need(torch.aoti_torch_empty_strided(x.dim, sizes, strides, x.dtype, device_cpu, 0, &handle), "empty_strided");
        made->take(handle);
    }

    /* The tokens from `first` on, `count` of them, through one value plane. */
    void run(const Tensor& values, int64_t first, int64_t count) {
        if (count == 0) return;
        uint32_t threads = 1;
        torch.torch_get_num_threads(&threads);
        weight.values = (const uint8_t*)values.data;
        const int64_t width = dtype == SQFT_F32 ? 4 : 2;
        const char* from = (const char*)x.data + first * x_stride * width;
        char* to = (char*)y.data + first * weight.out * width;
        int path = forced_path >= 0 ? forced_path : sqft_best();
        int64_t bytes = sqft_scratch_bytes(&weight, count, (int)bits, path, (int)threads);
        Scratch scratch;
        void* space = scratch.get(bytes);
        if (sqft_linear(&weight, from, dtype, count, x_stride, bias.handle ? bias.data : nullptr, to, weight.out, path,
                        (int)bits, parallel_for, (int)threads, space, bytes))
            fail("sparse_int4_linear: the kernel %s refuses this weight", "");
    }

    void expect_values(const Tensor& values) const {
        int64_t blocks = (weight.out + 15) / 16, wanted = weight.block_offsets[blocks] + SQFT_PADDING;
        values.expect("values", dtype_uint8, 1, wanted);
    }
};

/* x, masks, values, block_offsets, scales, zero_points, bias, out_features, activation_bits */
void linear(Value* stack, uint64_t, uint64_t) {
    Call call;
    Tensor values;
    values.take(stack[2]);
    call.take(stack[0], stack[1], stack + 3);
    call.check();
    call.expect_values(values);
    call.new_tensor(&call.y, call.weight.out);
    call.run(values, 0, call.tokens);
    stack[0] = (Value)call.y.give();
}

/* x, masks, values, tokens, block_offsets, scales, zero_points, bias, out_features, activation_bits */
void planes(Value* stack, uint64_t, uint64_t) {
    Call call;
    Tensors values(stack[2]);
    List tokens(stack[3]);
    call.take(stack[0], stack[1], stack + 4);
    call.check();
    int64_t total = 0;
    if (tokens.size() != values.count)
        fail("sparse_int4_linear: %s holds %lld numbers for %lld planes", "tokens", tokens.size(), values.count);
    if (call.x.dim != 2) fail("sparse_int4_linear.planes: %s is not [tokens, in]", "x");
    for (int64_t i = 0; i < values.count; i++) { /* all is checked before the first plane runs */
        int64_t part = (int64_t)tokens.item(i);
        if (part < 0) fail("sparse_int4_linear: %s holds %lld", "tokens", part);
        total += part;
        call.expect_values(values.each[i]);
    }
    if (total != call.tokens) fail("sparse_int4_linear: %s add up to %lld, x has %lld", "tokens", total, call.tokens);
    call.new_tensor(&call.y, call.weight.out);
    for (int64_t i = 0, first = 0; i < values.count; i++) {
        int64_t part = (int64_t)tokens.item(i);
        call.run(values.each[i], first, part);
        first += part;
    }
    stack[0] = (Value)call.y.give();
}

}  // namespace

extern "C" {

int sqft_interface(void) { return SQFT_INTERFACE; }

/* path: of kernel.h, -1 for the best. */
void sqft_force(int path) { forced_path = path; }
int sqft_forced(void) { return forced_path; }

/* Registers the operators with torch, whose functions `find` names → NULL, or the name of what torch lacks. */
const char* sqft_register(void* (*find)(const char*)) {
    static bool done = false;
    if (done) return nullptr;
#define LOOK_UP(result, name, arguments) \
    torch.name = (result(*) arguments)find(#name); \
    if (!torch.name) return #name;
    TORCH_FUNCTIONS(LOOK_UP)
    dtypes[SQFT_F32] = torch.aoti_torch_dtype_float32();
    dtypes[SQFT_BF16] = torch.aoti_torch_dtype_bfloat16();
    dtypes[SQFT_F16] = torch.aoti_torch_dtype_float16();
    dtype_uint8 = torch.aoti_torch_dtype_uint8();
    dtype_int64 = torch.aoti_torch_dtype_int64();
    device_cpu = torch.aoti_torch_device_type_cpu();
    LibraryHandle library; /* for as long as the process lives */
    if (torch.aoti_torch_library_init_impl("sqft", "CPU", "binding.cpp", 0, &library)) return "library_init_impl";
    if (torch.torch_library_impl(library, "sparse_int4_linear", linear, TORCH_2_10)) return "library_impl";
    if (torch.torch_library_impl(library, "sparse_int4_linear.planes", planes, TORCH_2_10)) return "library_impl";
    done = true;
    return nullptr;
}
}
