/* The multiplication, within the threads of llama.cpp's CPU backend: each of them calls compute_forward. */
#include "door.h"

namespace sqft {

const Weight* weight_of(const ggml::Tensor* tensor);

namespace {

/* Bits of the activations: 8 where the kernels round 32 of them at a time, as llama.cpp does, else 16, so that sums are
 * never further off than llama.cpp's. */
int bits_of(const sqft_weight* weight) { return weight->group_size <= 32 ? 8 : 16; }

bool is_matmul(const ggml::Tensor* op) {
    return op->op == ggml_functions.mul_mat && op->src[0] && op->src[1] && is_ours(op->src[0]);
}

/* x [.., rows, in] → y [.., rows, out], float32, rows of any stride. */
bool fits(const ggml::Tensor* op) {
    const ggml::Tensor *w = op->src[0], *x = op->src[1];
    return w->type == ggml::TYPE_Q4_0 && !w->view_src && w->ne[2] == 1 && w->ne[3] == 1 &&
           w->ne[0] % Q4_0_WEIGHTS == 0 && x->type == ggml::TYPE_F32 && op->type == ggml::TYPE_F32 &&
           x->nb[0] == sizeof(float) && x->nb[1] % sizeof(float) == 0 &&
           (!x->buffer || ggml_functions.ggml_backend_buft_is_host(x->buffer->type));
}

void wait_for_all(void* pool) { ggml_functions.ggml_barrier((ggml::ThreadPool*)pool); }

class Traits : public ggml::TensorTraits {
    bool work_size(int threads, const ggml::Tensor* op, size_t& size) override {
        if (!op->src[0]->extra || !weight_of(op->src[0])) return false;
        const sqft_weight* weight = &weight_of(op->src[0])->packed;
        size = 64 + (size_t)kernels.scratch_bytes(weight, op->src[1]->ne[1], bits_of(weight), kernel_path(), threads);
        return true;
    }

    bool compute_forward(ggml::ComputeParams* params, ggml::Tensor* op) override {
        const ggml::Tensor* x = op->src[1];
        const sqft_weight* weight = &weight_of(op->src[0])->packed;
        uint8_t* scratch = (uint8_t*)(((uintptr_t)params->wdata + 63) & ~(uintptr_t)63);
        const int64_t room = (int64_t)params->wsize - (scratch - (uint8_t*)params->wdata);
        for (int64_t outer = 0; outer < x->ne[3]; outer++)
            for (int64_t inner = 0; inner < x->ne[2]; inner++) {
                if (outer || inner) wait_for_all(params->threadpool); /* the scratch is one for all */
                const char* from = (const char*)x->data + outer * x->nb[3] + inner * x->nb[2];
                char* to = (char*)op->data + outer * op->nb[3] + inner * op->nb[2];
                if (kernels.linear_team(weight, from, SQFT_F32, x->ne[1], (int64_t)(x->nb[1] / sizeof(float)), nullptr,
                                        to, (int64_t)(op->nb[1] / sizeof(float)), kernel_path(), bits_of(weight), params->ith,
                                        params->nth, wait_for_all, params->threadpool, scratch, room))
                    notice("sqft: the kernel refuses %s: a fault of this library, report it", op->src[0]->name);
            }
        if (params->ith == 0) {
            counts[MATMULS]++;
            counts[TOKENS] += x->ne[1] * x->ne[2] * x->ne[3];
        }
        return true;
    }
};

class Extra : public ggml::ExtraBufferType {
    Traits traits;

    /* llama.cpp asks this of a weight without data, in an empty buffer, to choose; the scheduler asks it of weights that
     * are there, or that stand for them while memory is estimated. */
    bool supports_op(ggml::Device*, const ggml::Tensor* op) override {
        if (!is_matmul(op) || !fits(op)) return false;
        const ggml::Tensor* w = op->src[0];
        if (w->extra || w->buffer->usage == ggml::USAGE_WEIGHTS) return true;
        return wanted(w->name, w->ne[1], w->ne[0]);
    }

    ggml::TensorTraits* get_tensor_traits(const ggml::Tensor* op) override {
        return is_matmul(op) ? &traits : nullptr;
    }
};

}  // namespace

ggml::ExtraBufferType* extra_buffer_type() {
    static Extra extra;
    return &extra;
}

}  // namespace sqft
