#include <algorithm>

#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/mla_plan.h"

namespace ferry {

// Arrays that every layer of a step makes alike: found again by the sequences' address.
CudaKernels::PlacedDecode CudaKernels::place_decode(std::span<const SequenceRows> sequences,
                                                    int64_t first_row, int64_t topk) {
    PlacedDecode placed{
        .plan = plan_decode(decode_shape_, sequences, first_row,
                            {.shared_limit = max_shared_bytes_, .capability = info_.capability},
                            decode_slot_limit(decode_shape_), form_.num_keys, topk)};
    // Of the longest rows that the form allows.
    const auto page_bytes = static_cast<size_t>(static_cast<int64_t>(placed.plan.rows.size()) *
                                                ceil_div(form_.num_keys, kPageTokens) * 4);
    const auto* key = reinterpret_cast<const std::byte*>(sequences.data());
    placed.rows = static_cast<const DecodeRow*>(
        step_arrays_.on_device(key, std::as_bytes(std::span(placed.plan.rows))));
    placed.pages = static_cast<const int32_t*>(
        step_arrays_.on_device(key + 1, std::as_bytes(std::span(placed.plan.pages)), page_bytes));
    placed.chosen_rows = static_cast<const DecodeRow*>(
        step_arrays_.on_device(key + 2, std::as_bytes(std::span(placed.plan.chosen_rows))));
    return placed;
}

void CudaKernels::mla_decode(const DecodeAttention& a) {
    const int64_t rows = a.q_latent.rows(), heads = a.q_latent.dim(1), kv_lora = a.q_latent.dim(2);
    const int64_t rope = a.q_rope.dim(2);
    check_shape(a.q_rope, "q_rope", DType::f32, {rows, heads, rope});
    check_shape(a.out, "out", DType::f32, {rows, heads, kv_lora});
    check_shape(a.cache, "cache", a.cache.dtype(), {a.cache.dim(0), kPageTokens, kv_lora + rope});
    FERRY_CHECK(a.cache.dtype() == DType::f32 || a.cache.dtype() == DType::bf16, "cache is {}",
                a.cache.describe());

    decode_shape_ = {.heads = heads, .kv_lora = kv_lora, .rope = rope, .cache = a.cache.dtype()};
    const auto [plan, device_rows, device_chosen_rows, device_pages] =
        place_decode(a.sequences, a.first_row, a.is_sparse() ? a.chosen.dim(1) : 0);
    if (plan.rows.empty()) return;
    for (const DecodeRow& row : plan.rows)
        FERRY_CHECK(row.batch_row >= 0 && row.batch_row < rows, "row {} of {}", row.batch_row,
                    rows);
    const int64_t slots = plan.most_slots();
    float* partial = static_cast<float*>(
        scratch(Scratch::attention, static_cast<size_t>(slots * decode_slot_bytes(decode_shape_))));
    DecodeParams params{.q_latent = a.q_latent.as<float>(),
                        .q_rope = a.q_rope.as<float>(),
                        .cache = a.cache.data(),
                        .out = a.out.as<float>(),
                        .pages = device_pages,
                        .partial_out = partial,
                        .partial_sums = partial + slots * heads * kv_lora,
                        .heads = static_cast<int>(heads),
                        .kv_lora = static_cast<int>(kv_lora),
                        .rope = static_cast<int>(rope),
                        .num_pages = a.cache.dim(0),
                        .q_latent_stride = a.q_latent.row_stride(),
                        .q_rope_stride = a.q_rope.row_stride(),
                        .out_stride = a.out.row_stride(),
                        .chosen_stride = a.is_sparse() ? a.chosen.row_stride() : 0,
                        .scale_log2 = a.scale * kLog2E};
    const auto launch_rows = [&](const DecodeWave& wave, DecodeGrid grid, const DecodeRow* from,
                                 const int32_t* chosen) {
        grid.num_rows = static_cast<int>(wave.num_rows);
        grid.num_splits = static_cast<int>(std::max<int64_t>(1, wave.num_splits));
        params.rows = from + wave.first_row;
        params.chosen = chosen;
        launch_decode(params, grid, stream());
    };
    for (const DecodeWave& wave : plan.waves) {
        launch_rows(wave, plan.grid, device_rows, nullptr);
        if (!plan.chosen_rows.empty())
            launch_rows(wave, plan.chosen_grid, device_chosen_rows, a.chosen.as<int32_t>());
    }
}

}  // namespace ferry
