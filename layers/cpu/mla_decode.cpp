// Absorbed attention: every cached latent serves all heads of its row, so a page is a small matrix
// product per row. Heads lie in vector lanes, 16 to a panel (attention-inl.h has the order of
// operations within a page of keys).
//
// Order over pages: a row's keys are cut into splits of kDecodeSplitTokens at absolute positions.
// Each split goes through its pages in order, from m = -inf, l = 0, o = 0. Splits are merged in
// order, the first as it is, then for each next one (m_s, l_s, o_s):
//   m' = max(m, m_s), a = exp(m - m'), b = exp(m_s - m'), l = fma(l_s, b, l * a),
//   o_d = fma(o_s,d, b, o_d * a)
// and the result is o_d / l. So one long sequence keeps all threads busy, and bits depend neither
// on their number nor on what else is in the batch.
#include <algorithm>
#include <limits>

#include "layers/cpu/cpu_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/mla_decode.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/attention-inl.h"
#include "layers/cpu/bf16-inl.h"

#ifndef FERRY_LAYERS_CPU_MLA_DECODE_ONCE
#define FERRY_LAYERS_CPU_MLA_DECODE_ONCE
namespace ferry {
namespace {

constexpr int64_t kPanelHeads = 16;
constexpr int64_t kWidestStrip = 32;  // columns are padded to the widest of all targets

// What one task reads and writes: some panels of consecutive rows of a sequence, over one split.
// A panel is (row, 16 heads); panels count through the heads of a row, then the next row.
struct DecodeTask {
    const SequenceRows* sequence = nullptr;
    int64_t first_panel = 0, num_panels = 0;
    int64_t split = 0, num_splits = 0;  // the last row's
};

// Sizes of a call, in floats where nothing else is said.
struct DecodeSizes {
    int64_t heads = 0, kv_lora = 0, rope = 0;
    int64_t row_panels = 0;     // panels of a row
    int64_t group_panels = 0;   // panels of a task at most
    int64_t out_width = 0;      // kv_lora, padded
    int64_t panel_queries = 0;  // packed queries of a panel
    int64_t panel_state = 0;    // m, l, o of a panel
    bool rounds = false;        // to bf16: pages become words of pairs (attention-inl.h)
    bool direct = false;        // pages are read where they lie, not widened into scratch

    DecodeSizes(const DecodeAttention& a, int64_t group, bool rounds_factors)
        : heads(a.q_latent.dim(1)),
          kv_lora(a.q_latent.dim(2)),
          rope(a.q_rope.dim(2)),
          row_panels(ceil_div(heads, kPanelHeads)),
          group_panels(group),
          out_width(ceil_div(kv_lora, kWidestStrip) * kWidestStrip),
          panel_queries((even(kv_lora) + even(rope)) * kPanelHeads),
          panel_state((2 + out_width) * kPanelHeads),
          rounds(rounds_factors),
          direct(a.cache.dtype() == DType::f32 && out_width == kv_lora && !rounds) {}

    static int64_t even(int64_t num) { return num + num % 2; }
    int64_t page_stride() const { return out_width + rope; }
    // Where they are rounded: keys [64][latent, rope], then two rows of bf16, then values in
    // strips.
    int64_t key_floats() const { return even(kv_lora) + even(rope); }
    int64_t bf16_row() const { return out_width + even(rope); }  // in values
    int64_t rows_offset() const { return kPageTokens * key_floats(); }
    int64_t values_offset() const { return rows_offset() + ceil_div(bf16_row(), 16) * 16; }
    int64_t scores_offset() const {
        if (rounds) return values_offset() + kPageTokens * out_width;
        return direct ? 0 : kPageTokens * page_stride();
    }
    int64_t queries_offset() const { return scores_offset() + (kPageTokens + 1) * kPanelHeads; }
    int64_t work_floats() const { return queries_offset() + group_panels * panel_queries; }
    int64_t slot_floats() const { return group_panels * panel_state; }
};

int64_t num_keys(const SequenceRows& rows, int64_t row) {
    return rows.first_position + row + 1;
}
int64_t num_splits(int64_t keys) {
    return ceil_div(keys, kDecodeSplitTokens);
}

}  // namespace
}  // namespace ferry
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// page[j] = latent of key j as f32, columns up to out_width zero, then the rope part.
void widen_page(const DecodeSizes& sizes, const Tensor& cache, int64_t index, int64_t keys,
                float* HWY_RESTRICT page) {
    const int64_t width = sizes.kv_lora + sizes.rope;
    const auto widen = [&cache](int64_t from, int64_t count, float* to) HWY_ATTR {
        if (cache.dtype() == DType::f32)
            std::copy_n(cache.as<float>() + from, count, to);
        else
            widen_bf16(cache.as<uint16_t>() + from, count, to);
    };
    for (int64_t j = 0; j < keys; ++j) {
        float* to = page + j * sizes.page_stride();
        const int64_t from = (index * kPageTokens + j) * width;
        if (sizes.out_width == sizes.kv_lora) {
            widen(from, width, to);
        } else {
            widen(from, sizes.kv_lora, to);
            std::fill(to + sizes.kv_lora, to + sizes.out_width, 0.0f);
            widen(from + sizes.kv_lora, sizes.rope, to + sizes.out_width);
        }
    }
}

// A page in words: keys, and values of pairs of keys in strips of kStrip columns, [64][kStrip]
// each.
template <class Form>
void round_page(const DecodeSizes& sizes, const Tensor& cache, int64_t index, int64_t keys,
                float* HWY_RESTRICT scratch) {
    const int64_t width = sizes.kv_lora + sizes.rope;
    const int64_t key_words = Form::words(sizes.kv_lora) + Form::words(sizes.rope);
    auto* const rows = reinterpret_cast<uint16_t*>(scratch + sizes.rows_offset());
    std::fill_n(rows, 2 * sizes.bf16_row(), uint16_t{0});
    const auto round = [&cache](int64_t from, int64_t count, uint16_t* to) HWY_ATTR {
        if (cache.dtype() == DType::f32)
            narrow_bf16(cache.as<float>() + from, count, to);
        else
            std::copy_n(cache.as<uint16_t>() + from, count, to);
    };
    for (int64_t pair = 0; pair < keys; pair += 2) {
        if (pair + 1 == keys) std::fill_n(rows + sizes.bf16_row(), sizes.out_width, uint16_t{0});
        for (int64_t j = pair; j < std::min(pair + 2, keys); ++j) {
            uint16_t* const row = rows + j % 2 * sizes.bf16_row();
            const int64_t from = (index * kPageTokens + j) * width;
            round(from, sizes.kv_lora, row);
            round(from + sizes.kv_lora, sizes.rope, row + sizes.out_width);
            float* const key = scratch + j * key_words;
            Form::join(row, DecodeSizes::even(sizes.kv_lora), key);
            Form::join(row + sizes.out_width, DecodeSizes::even(sizes.rope),
                       key + Form::words(sizes.kv_lora));
        }
        float* values = scratch + sizes.values_offset() + Form::words(pair) * kStrip;
        for (int64_t column = 0; column < sizes.out_width;
             column += kStrip, values += kPageTokens * kStrip)
            Form::join_rows(rows + column, rows + sizes.bf16_row() + column, kStrip, values,
                            kStrip);
    }
}

// The page after the one at `key`, to be prefetched while `words` words of queries are multiplied
// by all keys of this one.
Ahead next_page(const DecodeAttention& a, const SequenceRows& rows, const DecodeSizes& sizes,
                int64_t key, int64_t end, int64_t words) {
    const int64_t row_bytes = (sizes.kv_lora + sizes.rope) * size_bytes(a.cache.dtype());
    const bool is_last = key + kPageTokens >= end;
    const int64_t page = rows.pages[static_cast<size_t>(key / kPageTokens + (is_last ? 0 : 1))];
    const std::byte* const at = a.cache.as<std::byte>() + page * kPageTokens * row_bytes;
    if (is_last) return {at, 0};
    const int64_t num_keys = std::min(kPageTokens, end - key - kPageTokens);
    const int64_t steps = score_tiles(kPageTokens) * words;
    return {at, std::min<int64_t>(128, ceil_div(num_keys * row_bytes, steps))};
}

// One task: its panels' m, l, o over the split, into `slot`.
template <class Form>
void attend_split(const DecodeAttention& a, const DecodeSizes& sizes, const DecodeTask& task,
                  float* scratch, float* slot) {
    const SequenceRows& rows = *task.sequence;
    float* scores = scratch + sizes.scores_offset();
    float* corrections = scores + kPageTokens * kPanelHeads;
    float* queries = scratch + sizes.queries_offset();
    const int64_t latent_words = Form::words(sizes.kv_lora), rope_words = Form::words(sizes.rope);
    for (int64_t i = 0; i < task.num_panels; ++i) {
        const int64_t panel = task.first_panel + i;
        const int64_t row = rows.first_row - a.first_row + panel / sizes.row_panels;
        const int64_t head = panel % sizes.row_panels * kPanelHeads;
        const int64_t lanes = std::min(kPanelHeads, sizes.heads - head);
        float* q = queries + i * sizes.panel_queries;
        pack_words<Form>(a.q_latent.row<float>(row) + head * sizes.kv_lora, sizes.kv_lora, lanes,
                         sizes.kv_lora, scratch, q);
        pack_words<Form>(a.q_rope.row<float>(row) + head * sizes.rope, sizes.rope, lanes,
                         sizes.rope, scratch, q + latent_words * kPanelHeads);
        float* state = slot + i * sizes.panel_state;
        std::fill_n(state, kPanelHeads, -std::numeric_limits<float>::infinity());
        std::fill_n(state + kPanelHeads, kPanelHeads, 0.0f);
    }
    const int64_t last_row = (task.first_panel + task.num_panels - 1) / sizes.row_panels;
    const int64_t begin = task.split * kDecodeSplitTokens;
    const int64_t end = std::min(begin + kDecodeSplitTokens, num_keys(rows, last_row));
    for (int64_t key = begin; key < end; key += kPageTokens) {
        const int64_t index = rows.pages[static_cast<size_t>(key / kPageTokens)];
        const int64_t page_keys = std::min(kPageTokens, end - key);
        // Keys, their rotated parts, values, and how far apart those of keys and of strips lie.
        const float* page = scratch;
        int64_t key_stride = sizes.page_stride(), rope_offset = sizes.out_width;
        const float* values = page;
        int64_t value_stride = key_stride, strip_stride = kStrip;
        if constexpr (Form::kRounds) {
            round_page<Form>(sizes, a.cache, index, page_keys, scratch);
            key_stride = latent_words + rope_words;
            rope_offset = latent_words;
            values = scratch + sizes.values_offset();
            value_stride = kStrip;
            strip_stride = kPageTokens * kStrip;
        } else if (sizes.direct) {
            values = page = a.cache.as<float>() + index * kPageTokens * sizes.page_stride();
        } else {
            widen_page(sizes, a.cache, index, page_keys, scratch);
        }
        Ahead ahead =
            next_page(a, rows, sizes, key, end, task.num_panels * (latent_words + rope_words));
        for (int64_t i = 0; i < task.num_panels; ++i) {
            const int64_t row = (task.first_panel + i) / sizes.row_panels;
            const int64_t keys = std::min(kPageTokens, num_keys(rows, row) - key);
            if (keys <= 0) continue;
            const float* q = queries + i * sizes.panel_queries;
            float* maxima = slot + i * sizes.panel_state;
            float* sums = maxima + kPanelHeads;
            score_block<Form>(q, latent_words, page, key_stride, keys, false, ahead, scores);
            score_block<Form>(q + latent_words * kPanelHeads, rope_words, page + rope_offset,
                              key_stride, keys, true, ahead, scores);
            softmax_block(scores, keys, a.scale, nullptr, maxima, sums, corrections);
            if constexpr (Form::kRounds) round_p<Form>(scores, keys);
            HWY_ALIGN int32_t lane_keys[kPanelHeads];
            std::fill_n(lane_keys, kPanelHeads, static_cast<int32_t>(keys));
            value_block<Form>(scores, keys, Form::kRounds && keys % 2 != 0 ? lane_keys : nullptr,
                              values, value_stride, strip_stride, corrections, key == begin,
                              kPanelHeads, sizes.out_width, sums + kPanelHeads);
        }
    }
}

void attend_exact(const DecodeAttention& a, const DecodeSizes& sizes, const DecodeTask& task,
                  float* scratch, float* slot) {
    attend_split<Exact>(a, sizes, task, scratch, slot);
}
void attend_pairs(const DecodeAttention& a, const DecodeSizes& sizes, const DecodeTask& task,
                  float* scratch, float* slot) {
    attend_split<Pairs>(a, sizes, task, scratch, slot);
}
void attend_dots(const DecodeAttention& a, const DecodeSizes& sizes, const DecodeTask& task,
                 float* scratch, float* slot) {
    attend_split<Dots>(a, sizes, task, scratch, slot);
}

// Adds split `from` to `to`, one panel each.
void merge_split(const DecodeSizes& sizes, const float* HWY_RESTRICT from, float* HWY_RESTRICT to) {
    const Floats d;
    HWY_ALIGN float a[kPanelHeads];
    HWY_ALIGN float b[kPanelHeads];
    for (int64_t lane = 0; lane < kPanelHeads; lane += kLanes) {
        const FloatVector m = hn::Load(d, to + lane), m_s = hn::Load(d, from + lane);
        const FloatVector maximum = hn::Max(m, m_s);
        const FloatVector scale = fast_exp(hn::Sub(m, maximum));
        const FloatVector scale_s = fast_exp(hn::Sub(m_s, maximum));
        hn::Store(maximum, d, to + lane);
        hn::Store(scale, d, a + lane);
        hn::Store(scale_s, d, b + lane);
        float* sum = to + kPanelHeads + lane;
        hn::Store(fused_multiply_add(hn::Load(d, from + kPanelHeads + lane), scale_s,
                                     hn::Mul(hn::Load(d, sum), scale)),
                  d, sum);
    }
    for (int64_t head = 0; head < kPanelHeads; ++head) {
        const float* o_s = from + 2 * kPanelHeads + head * sizes.out_width;
        float* o = to + 2 * kPanelHeads + head * sizes.out_width;
        const FloatVector scale = hn::Set(d, a[head]), scale_s = hn::Set(d, b[head]);
        for (int64_t i = 0; i < sizes.out_width; i += kLanes)
            hn::Store(fused_multiply_add(hn::Load(d, o_s + i), scale_s,
                                         hn::Mul(hn::Load(d, o + i), scale)),
                      d, o + i);
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {
namespace {

HWY_EXPORT(attend_exact);
HWY_EXPORT(attend_pairs);
HWY_EXPORT(attend_dots);
HWY_EXPORT(merge_split);

// Task `index` of the call: sequences in order, of each its groups of panels, of each its splits.
DecodeTask find_task(const DecodeAttention& a, const DecodeSizes& sizes, int64_t index) {
    for (const SequenceRows& rows : a.sequences) {
        const int64_t panels = rows.num_rows * sizes.row_panels;
        for (int64_t first = 0; first < panels; first += sizes.group_panels) {
            const int64_t num_panels = std::min(sizes.group_panels, panels - first);
            const int64_t last_row = (first + num_panels - 1) / sizes.row_panels;
            const int64_t splits = num_splits(num_keys(rows, last_row));
            if (index < splits)
                return {.sequence = &rows,
                        .first_panel = first,
                        .num_panels = num_panels,
                        .split = index,
                        .num_splits = splits};
            index -= splits;
        }
    }
    return {};
}

int64_t count_tasks(const DecodeAttention& a, const DecodeSizes& sizes) {
    int64_t tasks = 0;
    for (const SequenceRows& rows : a.sequences) {
        const int64_t panels = rows.num_rows * sizes.row_panels;
        for (int64_t first = 0; first < panels; first += sizes.group_panels) {
            const int64_t last = std::min(first + sizes.group_panels, panels) - 1;
            tasks += num_splits(num_keys(rows, last / sizes.row_panels));
        }
    }
    return tasks;
}

// Slots for results in a thread's scratch, beside what a task needs.
int64_t slots_of_thread(const DecodeSizes& sizes, size_t scratch_bytes) {
    const auto floats = static_cast<int64_t>(scratch_bytes / sizeof(float));
    return (floats - sizes.work_floats()) / sizes.slot_floats();
}

// Panels that share a widened page: as many as leave every thread a few tasks and slots.
DecodeSizes choose_sizes(const DecodeAttention& a, const ThreadPool& threads, bool rounds) {
    constexpr int64_t kMostPanels = 8, kTasksPerThread = 4, kSlotsPerThread = 4;
    int64_t most = 1;
    for (const SequenceRows& rows : a.sequences)
        most = std::max(most, rows.num_rows * ceil_div(a.q_latent.dim(1), kPanelHeads));
    for (int64_t group = std::min(kMostPanels, most);; group /= 2) {
        const DecodeSizes sizes(a, group, rounds);
        if (group == 1 || (count_tasks(a, sizes) >= kTasksPerThread * threads.num_threads() &&
                           slots_of_thread(sizes, threads.scratch_bytes()) >= kSlotsPerThread))
            return sizes;
    }
}

// out = o / l of the heads of a panel.
void finish_panel(const DecodeAttention& a, const DecodeSizes& sizes, int64_t batch_row,
                  int64_t first_head, const float* state) {
    const int64_t lanes = std::min(kPanelHeads, sizes.heads - first_head);
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const float sum = state[kPanelHeads + lane];
        const float* o = state + 2 * kPanelHeads + lane * sizes.out_width;
        float* out = a.out.row<float>(batch_row) + (first_head + lane) * sizes.kv_lora;
        for (int64_t i = 0; i < sizes.kv_lora; ++i) out[i] = o[i] / sum;
    }
}

}  // namespace

void CpuKernels::mla_decode(const DecodeAttention& a) {
    const int64_t rows = a.q_latent.rows(), heads = a.q_latent.dim(1), kv_lora = a.q_latent.dim(2);
    const int64_t rope = a.q_rope.dim(2);
    check_shape(a.q_rope, "q_rope", DType::f32, {rows, heads, rope});
    check_shape(a.out, "out", DType::f32, {rows, heads, kv_lora});
    check_shape(a.cache, "cache", a.cache.dtype(), {a.cache.dim(0), kPageTokens, kv_lora + rope});
    const DecodeSizes sizes = choose_sizes(a, threads_, options_.bf16_activations);

    // Tasks go in waves, as many at once as there are slots for their results, in the part of the
    // threads' scratch that the tasks themselves leave free. Slots 0 and 1 in turn carry a group of
    // panels whose splits a wave cuts over to the next wave.
    const int64_t thread_slots = slots_of_thread(sizes, threads_.scratch_bytes());
    FERRY_CHECK(thread_slots >= 3, "{} bytes of scratch are too few for {} heads of {}",
                threads_.scratch_bytes(), heads, kv_lora);
    const auto scratch = [&](int thread) {
        return reinterpret_cast<float*>(threads_.scratch(thread));
    };
    const auto slot = [&](int64_t index) {
        return scratch(static_cast<int>(index / thread_slots)) + sizes.work_floats() +
               index % thread_slots * sizes.slot_floats();
    };
    const int64_t wave = thread_slots * threads_.num_threads() - 2;
    const int64_t num_tasks = count_tasks(a, sizes);
    auto* attend = &HWY_DYNAMIC_DISPATCH(attend_exact);
    if (sizes.rounds) attend = &HWY_DYNAMIC_DISPATCH(attend_pairs);
    if (sizes.rounds && uses_bf16_dots()) attend = &HWY_DYNAMIC_DISPATCH(attend_dots);
    const auto merge = &HWY_DYNAMIC_DISPATCH(merge_split);
    float* carried = slot(0);
    float* carry = slot(1);
    for (int64_t begin = 0; begin < num_tasks; begin += wave, std::swap(carried, carry)) {
        const int64_t end = std::min(begin + wave, num_tasks);
        threads_.parallel_for(end - begin, [&](int64_t index, int thread) {
            attend(a, sizes, find_task(a, sizes, begin + index), scratch(thread), slot(2 + index));
        });
        // The last split of a group in this wave merges all of the group.
        threads_.parallel_for(end - begin, [&](int64_t index, int) {
            const DecodeTask task = find_task(a, sizes, begin + index);
            const bool complete = task.split + 1 == task.num_splits;
            if (!complete && begin + index + 1 != end) return;
            const int64_t first_split = std::max<int64_t>(0, task.split - index);
            float* total = first_split == 0 ? slot(2 + index - task.split) : carried;
            for (int64_t i = 0; i < task.num_panels; ++i) {
                const int64_t panel = task.first_panel + i, row = panel / sizes.row_panels;
                const int64_t splits = num_splits(num_keys(*task.sequence, row));
                float* state = total + i * sizes.panel_state;
                for (int64_t split = std::max<int64_t>(1, first_split);
                     split <= std::min(task.split, splits - 1); ++split)
                    merge(sizes, slot(2 + index - (task.split - split)) + i * sizes.panel_state,
                          state);
                if (complete)
                    finish_panel(a, sizes, task.sequence->first_row - a.first_row + row,
                                 panel % sizes.row_panels * kPanelHeads, state);
                else
                    std::copy_n(state, sizes.panel_state, carry + i * sizes.panel_state);
            }
        });
    }
}

}  // namespace ferry
#endif  // HWY_ONCE
