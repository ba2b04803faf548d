/* The buffer type: weights that are set into it are kept in the kernels' form, each in the place that ggml gives its
 * tensor. A place is as large as a weight can become; memory is only what is written. What is known of it hangs at
 * `extra`. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "door.h"

namespace sqft {

std::atomic<int64_t> counts[COUNTS];

namespace {

void print(const char* line) { fprintf(stderr, "%s\n", line); }
std::atomic<void (*)(const char*)> say{print};

struct Held { /* of one tensor */
    Weight weight;
    bool whole = false;
    std::vector<uint8_t> arrived; /* of a tensor that comes in pieces */
    size_t bytes = 0;
};

struct Space {
    void* base;
    size_t size;
    std::vector<std::unique_ptr<Held>> held;
};

Space* space_of(ggml::Buffer* buffer) { return (Space*)buffer->context; }

void free_buffer(ggml::Buffer* buffer) {
    Space* space = space_of(buffer);
    for (const auto& held : space->held)
        if (held->whole) {
            const sqft_weight& w = held->weight.packed;
            counts[TENSORS]--;
            counts[SOURCE_BYTES] -= w.out * (w.in / Q4_0_WEIGHTS) * Q4_0_BYTES;
            counts[PACKED_BYTES] -= held->weight.bytes();
            counts[KEPT] -= held->weight.kept;
            counts[WEIGHTS] -= w.out * w.in;
        }
    munmap(space->base, space->size);
    delete space;
}

void* get_base(ggml::Buffer* buffer) { return space_of(buffer)->base; }

int init_tensor(ggml::Buffer* buffer, ggml::Tensor* tensor) {
    if (tensor->view_src) return 0;
    space_of(buffer)->held.emplace_back(new Held);
    tensor->extra = space_of(buffer)->held.back().get();
    return 0;
}

void set_tensor(ggml::Buffer*, ggml::Tensor* tensor, const void* data, size_t offset, size_t size) {
    Held* held = (Held*)tensor->extra;
    const size_t all = ggml_functions.ggml_nbytes(tensor);
    const int64_t out = tensor->ne[1], in = tensor->ne[0];
    try {
        const uint8_t* whole = (const uint8_t*)data;
        if (size != all) {
            held->arrived.resize(all);
            memcpy(held->arrived.data() + offset, data, size);
            held->bytes += size;
            if (held->bytes < all) return;
            whole = held->arrived.data();
        }
        held->weight = pack(whole, out, in, (uint8_t*)tensor->data);
        held->whole = true;
        if (size != all)
            std::vector<uint8_t>().swap(held->arrived);
        else
            give_back(data, size);
    } catch (const std::exception& problem) { /* this function can refuse nothing, and the weight is nowhere else */
        notice("sqft: no memory to keep %s sparse (%s): load it without the sparse backend", tensor->name,
               problem.what());
        abort();
    }
    counts[TENSORS]++;
    counts[SOURCE_BYTES] += (int64_t)all;
    counts[PACKED_BYTES] += held->weight.bytes();
    counts[KEPT] += held->weight.kept;
    counts[WEIGHTS] += out * in;
}

/* The file's very blocks. */
void get_tensor(ggml::Buffer*, const ggml::Tensor* tensor, void* data, size_t offset, size_t size) {
    const Held* held = (const Held*)tensor->extra;
    std::vector<uint8_t> whole(ggml_functions.ggml_nbytes(tensor));
    if (held->whole) unpack(held->weight, 0, tensor->ne[1], whole.data());
    memcpy(data, whole.data() + offset, size);
}

void memset_tensor(ggml::Buffer*, ggml::Tensor*, uint8_t, size_t, size_t) {}
void clear(ggml::Buffer*, uint8_t) {}

const ggml::BufferFunctions buffer_functions = {
    free_buffer, get_base, init_tensor, memset_tensor, set_tensor, get_tensor,
    nullptr,     nullptr,  nullptr,     clear,         nullptr,
};

const char* type_name(ggml::BufferType*) { return "SQFT"; }
size_t type_alignment(ggml::BufferType*) { return 64; }
size_t type_alloc_size(ggml::BufferType*, const ggml::Tensor* tensor) {
    return tensor->view_src ? ggml_functions.ggml_nbytes(tensor) : (size_t)packed_bound(tensor->ne[1], tensor->ne[0]);
}

ggml::Buffer* alloc_buffer(ggml::BufferType* type, size_t size) {
    const size_t reserved = ((size ? size : 1) + 4095) & ~(size_t)4095;
    void* base = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return nullptr;
    return ggml_functions.ggml_backend_buffer_init(type, buffer_functions, new Space{base, reserved, {}}, size);
}

}  // namespace

ggml::BufferType buffer_type = {
    {type_name, alloc_buffer, type_alignment, nullptr, type_alloc_size, nullptr}, nullptr, nullptr};

const Weight* weight_of(const ggml::Tensor* tensor) {
    const Held* held = (const Held*)tensor->extra;
    return held->whole ? &held->weight : nullptr;
}

bool is_ours(const ggml::Tensor* weight) { return weight->buffer && weight->buffer->type == &buffer_type; }

void notice(const char* format, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    say.load()(line);
}

}  // namespace sqft

/* Who is told the notices of this library; NULL: stderr. */
SQFT_EXPORT void sqft_ggml_say(void (*to)(const char*)) { sqft::say = to ? to : sqft::print; }
/* A counter of door.h. TENSORS to WEIGHTS tell what is in memory now, the others only grow. */
SQFT_EXPORT int64_t sqft_ggml_count(int which) {
    return which >= 0 && which < sqft::COUNTS ? sqft::counts[which].load() : -1;
}
