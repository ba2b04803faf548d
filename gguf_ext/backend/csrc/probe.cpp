/* Whether the ggml in this process is what abi.h says: its version, and what its functions do with small objects. */
#include <string.h>

#include "door.h"

namespace sqft {

namespace {

int freed;
void count_free(ggml::Buffer*) { freed++; }

bool tensors_agree() {
    const Ggml& g = ggml_functions;
    const size_t object = 32; /* struct ggml_object, which stands before each tensor */
    if (g.ggml_tensor_overhead() != object + sizeof(ggml::Tensor)) return false;
    void* context = g.ggml_init({8 * (object + sizeof(ggml::Tensor)), nullptr, true});
    if (!context) return false;
    ggml::Tensor* w = g.ggml_new_tensor_2d(context, ggml::TYPE_Q4_0, 64, 3);
    ggml::Tensor* x = g.ggml_new_tensor_2d(context, ggml::TYPE_F32, 64, 5);
    g.ggml_set_name(w, "sqft.probe");
    ggml::Tensor* y = g.ggml_mul_mat(context, w, x);
    bool agree = !strcmp(g.ggml_type_name(w->type), "q4_0") && w->ne[0] == 64 && w->ne[1] == 3 && w->ne[2] == 1 &&
                 w->nb[0] == Q4_0_BYTES && w->nb[1] == 2 * Q4_0_BYTES && g.ggml_nbytes(w) == 6 * Q4_0_BYTES &&
                 !strcmp(w->name, "sqft.probe") && !w->extra && !w->view_src && !w->buffer && !w->data &&
                 x->type == ggml::TYPE_F32 && y->src[0] == w && y->src[1] == x && y->ne[0] == 3 && y->ne[1] == 5 &&
                 !strcmp(g.ggml_op_name(y->op), "MUL_MAT");
    ggml_functions.mul_mat = y->op;
    g.ggml_free(context);
    return agree;
}

bool buffers_agree() {
    const Ggml& g = ggml_functions;
    ggml::BufferType* type = g.ggml_backend_cpu_buffer_type();
    ggml::BufferFunctions functions = {};
    functions.free_buffer = count_free;
    int mark = 0;
    ggml::Buffer* buffer = g.ggml_backend_buffer_init(type, functions, &mark, 12345);
    g.ggml_backend_buffer_set_usage(buffer, ggml::USAGE_WEIGHTS);
    bool agree = buffer->type == type && buffer->context == &mark && buffer->size == 12345 &&
                 buffer->usage == ggml::USAGE_WEIGHTS && buffer->functions.free_buffer == count_free &&
                 g.ggml_backend_buffer_get_size(buffer) == 12345;
    freed = 0;
    g.ggml_backend_buffer_free(buffer);
    return agree && freed == 1 && type->functions.is_host && type->functions.is_host(type);
}

bool registrations_agree() {
    const Ggml& g = ggml_functions;
    ggml::Registration* cpu = g.ggml_backend_cpu_reg();
    return cpu->api_version == SQFT_GGML_API && !strcmp(cpu->get_name(cpu), "CPU") && cpu->get_device_count(cpu) == 1 &&
           g.ggml_backend_dev_type(g.ggml_backend_reg_dev_get(cpu, 0)) == ggml::DEVICE_CPU;
}

/* Every entry of the list is a buffer type with a name. */
bool extras_agree() {
    const std::vector<ggml::BufferType*>& extras = *ggml_functions.extras;
    if (extras.size() > 16 || extras.capacity() < extras.size()) return false;
    for (ggml::BufferType* type : extras)
        if (!type || !type->context || !*type->functions.get_name(type)) return false;
    return true;
}

}  // namespace

std::string probe() {
    const std::string version = ggml_functions.ggml_version();
    if (version.compare(0, strlen(SQFT_GGML_VERSION ".") , SQFT_GGML_VERSION "."))
        return "ggml " + version + " was not looked at, " SQFT_GGML_VERSION " was";
    const char* differs = !registrations_agree() ? "its registrations"
                          : !tensors_agree()     ? "its tensors"
                          : !buffers_agree()     ? "its buffers"
                          : !extras_agree()      ? "its list of buffer types"
                                                 : nullptr;
    return differs ? "ggml " + version + " differs from what this library was written for: " + differs : "";
}

}  // namespace sqft
