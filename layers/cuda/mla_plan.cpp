#include "layers/cuda/mla_plan.h"

#include <algorithm>

namespace ferry {
namespace {

static_assert(kTileKeys == kPageTokens);
constexpr int64_t kBf16Bytes = 2, kF32Bytes = 4;
constexpr int64_t kPartialBytes = int64_t{256} << 20;
constexpr int kWgmmaCapability = 90;

DecodeGrid choose_grid(const DecodeShape& shape, const DecodeGpu& gpu) {
    const bool bf16 = shape.cache == DType::bf16;
    const bool tensor_cores = bf16 && shape.kv_lora == kMlaLatent && shape.rope == kMlaRope;
    if (tensor_cores && gpu.capability == kWgmmaCapability &&
        decode_wgmma_shared_bytes() <= gpu.shared_limit)
        return {.head_blocks = static_cast<int>(ceil_div(shape.heads, kWgmmaHeads)),
                .bf16_cache = true,
                .wgmma = true,
                .shared_bytes = decode_wgmma_shared_bytes()};
    const int row_tiles = shape.heads <= 16 ? 1 : shape.heads <= 32 ? 2 : 4;
    const int num_stages = decode_shared_bytes(row_tiles, 2) <= gpu.shared_limit ? 2 : 1;
    const int64_t bytes = decode_shared_bytes(row_tiles, num_stages);
    if (tensor_cores && bytes <= gpu.shared_limit)
        return {.head_blocks = static_cast<int>(ceil_div(shape.heads, 16 * row_tiles)),
                .row_tiles = row_tiles,
                .num_stages = num_stages,
                .bf16_cache = true,
                .shared_bytes = bytes};
    return {.head_blocks = static_cast<int>(shape.heads),
            .bf16_cache = bf16,
            .shared_bytes = (2 * shape.kv_lora + shape.rope + kTileKeys) * kF32Bytes};
}

int64_t num_splits(int64_t num_keys) {
    return ceil_div(num_keys, decode_split_keys(num_keys));
}
// Of any row that has no more keys: longer splits may make a longer row have fewer.
int64_t most_splits(int64_t most_keys) {
    return std::max(num_splits(most_keys),
                    std::min<int64_t>(kDecodeSplits, ceil_div(most_keys, kCudaDecodeSplitTokens)));
}
int64_t num_slots(int64_t splits) {
    return splits > 1 ? splits : 0;
}

// The launch of any rows whose keys are no more than that.
void widen(DecodePlan& plan, int64_t most_keys, int64_t slot_limit) {
    if (plan.waves.empty()) return;
    DecodeWave& wave = plan.waves[0];
    const int64_t splits = most_splits(most_keys);
    FERRY_CHECK(plan.waves.size() == 1 && wave.num_splits <= splits,
                "{} waves of {} splits in a step of {} keys at most", plan.waves.size(),
                wave.num_splits, most_keys);
    wave.num_splits = splits;
    wave.num_slots = std::min(slot_limit, wave.num_rows * num_slots(splits));
}

// Tensor cores by mma.sync: what brings keys to wgmma takes whole pages.
void add_chosen(DecodePlan& plan, std::span<const SequenceRows> sequences, const DecodeShape& shape,
                const DecodeGpu& gpu, int64_t most_keys, int64_t topk) {
    for (const SequenceRows& sequence : sequences)
        most_keys = std::max(most_keys, sequence.end_position());
    if (most_keys <= topk) return;
    plan.chosen_grid = choose_grid(shape, {.shared_limit = gpu.shared_limit, .capability = 0});
    plan.chosen_rows = plan.rows;
    size_t row = 0;
    for (const SequenceRows& sequence : sequences)
        for (int64_t i = 0; i < sequence.num_rows; ++i, ++row) {
            const bool chooses = sequence.first_position + i + 1 > topk;
            (chooses ? plan.rows : plan.chosen_rows)[row].num_splits = -1;
        }
}

}  // namespace

int64_t decode_slot_limit(const DecodeShape& shape) {
    return kPartialBytes / decode_slot_bytes(shape);
}

int64_t decode_split_keys(int64_t num_keys) {
    int64_t keys = kCudaDecodeSplitTokens;
    while (keys < kMostDecodeSplitTokens && num_keys > kDecodeSplits * keys) keys *= 2;
    return keys;
}

int64_t decode_slots(std::span<const int64_t> num_keys) {
    int64_t slots = 0;
    for (const int64_t keys : num_keys) slots += num_slots(num_splits(keys));
    return slots;
}

int64_t decode_slot_bytes(const DecodeShape& shape) {
    return shape.heads * (shape.kv_lora + 2) * kF32Bytes;
}

int64_t decode_shared_bytes(int row_tiles, int num_stages) {
    const int64_t heads = 16 * row_tiles, column_warps = kDecodeThreads / 32 / row_tiles;
    const int64_t latents = (heads + num_stages * kTileKeys) * (kMlaLatent + kMlaRope) * kBf16Bytes;
    const int64_t probabilities = heads * kTileKeys * kBf16Bytes;
    const int64_t statistics = (column_warps + 1) * heads * kF32Bytes;
    return latents + probabilities + statistics;
}

int64_t decode_wgmma_shared_bytes() {
    const int64_t panel = kTileKeys * 128;
    const int64_t panels =
        kWgmmaLatentStages * (kMlaLatent / 64) + kWgmmaRopeStages + kWgmmaQueryPanels;
    const int64_t statistics = (3 * kWgmmaHeads + kWgmmaMostTiles) * kF32Bytes;
    const int64_t barriers = (kWgmmaLatentStages + kWgmmaRopeStages) * 8;
    return panels * panel + statistics + barriers;
}

DecodePlan plan_decode(const DecodeShape& shape, std::span<const SequenceRows> sequences,
                       int64_t first_row, const DecodeGpu& gpu, int64_t slot_limit,
                       int64_t most_keys, int64_t topk) {
    constexpr int64_t kMostGridRows = 65535;
    DecodePlan plan;
    plan.grid = choose_grid(shape, gpu);
    DecodeWave wave;
    const auto end_wave = [&] {
        if (wave.num_rows > 0) plan.waves.push_back(wave);
        wave = {.first_row = static_cast<int64_t>(plan.rows.size())};
    };
    for (const SequenceRows& sequence : sequences) {
        const auto first_page = static_cast<int32_t>(plan.pages.size());
        const int64_t positions = sequence.first_position + sequence.num_rows;
        const int64_t num_pages = ceil_div(positions, kPageTokens);
        FERRY_CHECK(static_cast<int64_t>(sequence.pages.size()) >= num_pages,
                    "{} pages for {} positions", sequence.pages.size(), positions);
        plan.pages.insert(plan.pages.end(), sequence.pages.begin(),
                          sequence.pages.begin() + num_pages);
        for (int64_t i = 0; i < sequence.num_rows; ++i) {
            const int64_t before = sequence.first_position + i + 1;
            const int64_t keys = topk > 0 ? std::min(before, topk) : before;
            const int64_t splits = num_splits(keys), slots = num_slots(splits);
            if (wave.num_slots + slots > slot_limit || wave.num_rows == kMostGridRows) end_wave();
            plan.rows.push_back(
                {.batch_row = static_cast<int32_t>(sequence.first_row + i - first_row),
                 .num_keys = static_cast<int32_t>(keys),
                 .first_page = first_page,
                 .num_splits = static_cast<int32_t>(splits),
                 .first_slot = static_cast<int32_t>(wave.num_slots),
                 .split_keys = static_cast<int32_t>(decode_split_keys(keys))});
            ++wave.num_rows;
            wave.num_slots += slots;
            wave.num_splits = std::max(wave.num_splits, splits);
        }
    }
    end_wave();
    if (most_keys > 0) widen(plan, topk > 0 ? std::min(most_keys, topk) : most_keys, slot_limit);
    if (topk > 0) add_chosen(plan, sequences, shape, gpu, most_keys, topk);
    return plan;
}

int64_t DecodePlan::most_slots() const {
    int64_t most = 0;
    for (const DecodeWave& wave : waves) most = std::max(most, wave.num_slots);
    return most;
}

std::string DecodePlan::describe() const {
    const std::string kernel = grid.wgmma ? "Hopper's tensor cores"
                               : grid.row_tiles > 0
                                   ? fmt::format(
                                         "tensor cores, blocks of {} heads, {} pages in "
                                         "shared memory",
                                         16 * grid.row_tiles, grid.num_stages)
                                   : "f32";
    return fmt::format("{} ({} bytes of shared memory): {} rows in {} waves, {} partial results",
                       kernel, grid.shared_bytes, rows.size(), waves.size(), most_slots());
}

KvExpansion kv_expansion_of(int64_t nope, int64_t rope, int64_t v) {
    if (nope != kMlaNope || rope != kMlaRope || v != kMlaValue) return {};
    return {.heads_at_once = kPrefillHeads, .dtype = DType::bf16};
}

}  // namespace ferry
