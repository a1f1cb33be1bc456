#include "layers/cuda/convert.h"
#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/mla_plan.h"

namespace ferry {
namespace {

bool begins_on_16_bytes(const Tensor& x) {
    return reinterpret_cast<uintptr_t>(x.data()) % 16 == 0 &&
           x.row_stride() * size_bytes(x.dtype()) % 16 == 0;
}

}  // namespace

KvExpansion CudaKernels::kv_expansion(const ModelConfig& c) const {
    KvExpansion expansion = kv_expansion_of(c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim);
    expansion.positions = c.dense_positions();
    return expansion;
}

// The rotated part of the latents as the tensor cores take it.
Tensor CudaKernels::rotated_as_bf16(const Tensor& rope) {
    if (rope.dtype() == DType::bf16) return rope;
    auto* narrowed = static_cast<uint16_t*>(scratch(
        Scratch::attention, static_cast<size_t>(rope.rows() * kMlaRope) * sizeof(uint16_t)));
    narrow_to_bf16({.x = rope.as<float>(),
                    .y = narrowed,
                    .rows = rope.rows(),
                    .columns = kMlaRope,
                    .x_row_stride = rope.row_stride(),
                    .y_stride = kMlaRope},
                   stream());
    return {narrowed, DType::bf16, {rope.rows(), kMlaRope}};
}

void CudaKernels::mla_prefill(const PrefillAttention& a) {
    const int64_t heads = a.q.dim(1), positions = a.rows.end_position();
    check_shape(a.q, "q", DType::f32, {a.q.rows(), heads, a.nope_dim + a.rope_dim});
    check_shape(a.kv, "kv", a.kv.dtype() == DType::bf16 ? DType::bf16 : DType::f32,
                {a.kv.rows(), heads, a.nope_dim + a.v_dim});
    check_shape(a.rope, "rope", a.rope.dtype() == a.kv.dtype() ? a.kv.dtype() : DType::f32,
                {a.rope.rows(), a.rope_dim});
    check_shape(a.out, "out", DType::f32, {a.q.rows(), heads, a.v_dim});
    FERRY_CHECK(a.kv.rows() >= positions && a.rope.rows() >= positions,
                "{} keys and {} rotated parts for {} positions", a.kv.rows(), a.rope.rows(),
                positions);
    FERRY_CHECK(a.rows.first_row + a.rows.num_rows <= a.q.rows(), "rows {}+{} of {}",
                a.rows.first_row, a.rows.num_rows, a.q.rows());
    FERRY_CHECK(a.mask.count() == 0, "rows that leave keys out are absorbed");
    if (a.rows.num_rows == 0) return;

    const float* q = a.q.row<float>(a.rows.first_row);
    float* out = a.out.row<float>(a.rows.first_row);
    const int num_heads = static_cast<int>(heads), num_rows = static_cast<int>(a.rows.num_rows);
    const int first_position = static_cast<int>(a.rows.first_position);
    if (a.kv.dtype() == DType::f32) {
        launch_prefill_plain({.q = q,
                              .kv = a.kv.as<float>(),
                              .rope = a.rope.as<float>(),
                              .out = out,
                              .q_stride = a.q.row_stride(),
                              .kv_stride = a.kv.row_stride(),
                              .rope_stride = a.rope.row_stride(),
                              .out_stride = a.out.row_stride(),
                              .nope_dim = static_cast<int>(a.nope_dim),
                              .rope_dim = static_cast<int>(a.rope_dim),
                              .v_dim = static_cast<int>(a.v_dim),
                              .num_rows = num_rows,
                              .first_position = first_position,
                              .scale_log2 = a.scale * kLog2E},
                             num_heads, stream());
        return;
    }
    FERRY_CHECK(a.nope_dim == kMlaNope && a.rope_dim == kMlaRope && a.v_dim == kMlaValue &&
                    begins_on_16_bytes(a.q) && begins_on_16_bytes(a.kv) &&
                    a.out.row_stride() % 2 == 0,
                "q {}, kv {}, out {}", a.q.describe(), a.kv.describe(), a.out.describe());
    const Tensor rope = rotated_as_bf16(a.rope.slice_rows(0, positions));
    FERRY_CHECK(begins_on_16_bytes(rope), "rope {}", rope.describe());
    const PrefillParams params{.q = q,
                               .out = out,
                               .kv = a.kv.as<uint16_t>(),
                               .rope = rope.as<uint16_t>(),
                               .q_stride = a.q.row_stride(),
                               .out_stride = a.out.row_stride(),
                               .kv_stride = a.kv.row_stride(),
                               .rope_stride = rope.row_stride(),
                               .num_rows = num_rows,
                               .first_position = first_position,
                               .scale_log2 = a.scale * kLog2E,
                               .heads = num_heads};
    if (info_.capability == 90)
        launch_prefill_hopper(params, info_.num_multiprocessors, stream());
    else
        launch_prefill(params, stream());
}

}  // namespace ferry
