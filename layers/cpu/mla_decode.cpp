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
//
// A task does a split of some panels, page by page. Where there are too few of those for the
// threads, they share each in three turns: scores by pages, softmax by panels, values by columns.
// Every number is made by the same operations in the same order.
#include <algorithm>
#include <array>
#include <limits>

#include "layers/cpu/cpu_kernels.h"
#include "layers/cpu/mla_decode.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/mla_decode.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/mla_page-inl.h"

#ifndef FERRY_LAYERS_CPU_MLA_DECODE_ONCE
#define FERRY_LAYERS_CPU_MLA_DECODE_ONCE
namespace ferry {
namespace {

constexpr int64_t kSharedTasksPerThread = 2;  // fewer tasks than this are shared

// What a form and an instruction set have: a whole task, the turns of a shared one, and merging of
// two splits of a panel.
struct DecodeFunctions {
    void (*attend)(const DecodeAttention&, const DecodeSizes&, const DecodeTask&, float* scratch,
                   float* slot);
    std::array<void (*)(const DecodeAttention&, const DecodeSizes&, const DecodeTask&, const Part&,
                        float* scratch, float* slot),
               3>
        turns;
    void (*merge)(const DecodeSizes&, const float* from, float* to);
};

}  // namespace
}  // namespace ferry
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// The page after the one at `key`, to be prefetched while `words` words of queries are multiplied
// by all keys of this one.
Ahead next_page(const DecodeAttention& a, const SequenceRows& rows, const DecodeSizes& sizes,
                int64_t key, int64_t end, int64_t words) {
    const int64_t row_bytes = (sizes.kv_lora + sizes.rope) * size_bytes(a.cache.dtype());
    const bool is_last = key + kPageTokens >= end || a.is_sparse();  // whose rows lie apart
    const int64_t page = rows.pages[static_cast<size_t>(key / kPageTokens + (is_last ? 0 : 1))];
    const std::byte* const at = a.cache.as<std::byte>() + page * kPageTokens * row_bytes;
    if (is_last) return {at, 0};
    const int64_t num_keys = std::min(kPageTokens, end - key - kPageTokens);
    const int64_t steps = score_tiles(kPageTokens) * words;
    return {at, std::min<int64_t>(128, ceil_div(num_keys * row_bytes, steps))};
}

// One past the last key that a task's split has for its last row; for its i-th panel, how many of
// the page at `key`.
int64_t end_key(const DecodeAttention& a, const DecodeSizes& sizes, const DecodeTask& task) {
    const int64_t last_row = (task.first_panel + task.num_panels - 1) / sizes.row_panels;
    return std::min(task.first_key() + kDecodeSplitTokens, num_keys(a, *task.sequence, last_row));
}
int64_t panel_keys(const DecodeAttention& a, const DecodeSizes& sizes, const DecodeTask& task,
                   int64_t i, int64_t key) {
    const int64_t row = (task.first_panel + i) / sizes.row_panels;
    return std::clamp<int64_t>(num_keys(a, *task.sequence, row) - key, 0, kPageTokens);
}

KeyRows keys_from(const DecodeAttention& a, const DecodeSizes& sizes, const DecodeTask& task,
                  int64_t key) {
    return {a, *task.sequence, task.first_panel / sizes.row_panels, key};
}

// Queries of a task's panels, into the scratch of its thread.
template <class Form>
void pack_task(const DecodeAttention& a, const DecodeSizes& sizes, const DecodeTask& task,
               float* scratch) {
    const int64_t latent_words = Form::words(sizes.kv_lora);
    float* q = scratch + sizes.queries_offset();
    for (int64_t i = 0; i < task.num_panels; ++i, q += sizes.panel_queries) {
        const int64_t panel = task.first_panel + i;
        const int64_t row = task.sequence->first_row - a.first_row + panel / sizes.row_panels;
        const int64_t head = panel % sizes.row_panels * kPanelHeads;
        const int64_t lanes = std::min(kPanelHeads, sizes.heads - head);
        pack_words<Form>(a.q_latent.row<float>(row) + head * sizes.kv_lora, sizes.kv_lora, lanes,
                         sizes.kv_lora, scratch, q);
        pack_words<Form>(a.q_rope.row<float>(row) + head * sizes.rope, sizes.rope, lanes,
                         sizes.rope, scratch, q + latent_words * kPanelHeads);
    }
}

void start_state(float* state) {
    std::fill_n(state, kPanelHeads, -std::numeric_limits<float>::infinity());
    std::fill_n(state + kPanelHeads, kPanelHeads, 0.0f);
}

template <class Form>
void score_page(const DecodeSizes& sizes, const float* q, const Page& page, int64_t keys,
                Ahead& ahead, float* scores) {
    const int64_t latent_words = Form::words(sizes.kv_lora);
    score_block<Form>(q, latent_words, page.keys, page.key_stride, keys, false, ahead, scores);
    score_block<Form>(q + latent_words * kPanelHeads, Form::words(sizes.rope),
                      page.keys + page.rope_offset, page.key_stride, keys, true, ahead, scores);
}

// Scores become p, in words.
template <class Form>
void soften_page(const DecodeAttention& a, int64_t keys, float* scores, float* state,
                 float* corrections) {
    softmax_block(scores, keys, a.scale, nullptr, nullptr, state, state + kPanelHeads, corrections);
    if constexpr (Form::kRounds) round_p<Form>(scores, keys);
}

// o of `parts`' columns.
template <class Form>
void value_page(const DecodeSizes& sizes, const Page& page, const PageParts& parts, int64_t keys,
                const float* scores, const float* corrections, bool first, float* state) {
    HWY_ALIGN int32_t lane_keys[kPanelHeads];
    std::fill_n(lane_keys, kPanelHeads, static_cast<int32_t>(keys));
    value_block<Form>(scores, keys, Form::kRounds && keys % 2 != 0 ? lane_keys : nullptr,
                      page.values + parts.first_column / kStrip * page.strip_stride,
                      page.value_stride, page.strip_stride, corrections, first, kPanelHeads,
                      parts.num_columns, state + 2 * kPanelHeads + parts.first_column,
                      sizes.out_width);
}

// One task: its panels' m, l, o over the split, into `slot`.
template <class Form>
void attend_split(const DecodeAttention& a, const DecodeSizes& sizes, const DecodeTask& task,
                  float* scratch, float* slot) {
    float* const scores = scratch + sizes.scores_offset();
    float* const corrections = scores + kPageTokens * kPanelHeads;
    const PageParts all{.keys = true, .first_column = 0, .num_columns = sizes.out_width};
    pack_task<Form>(a, sizes, task, scratch);
    for (int64_t i = 0; i < task.num_panels; ++i) start_state(slot + i * sizes.panel_state);
    const int64_t begin = task.first_key(), end = end_key(a, sizes, task);
    const int64_t words = Form::words(sizes.kv_lora) + Form::words(sizes.rope);
    for (int64_t key = begin; key < end; key += kPageTokens) {
        const Page page = take_page<Form>(a, keys_from(a, sizes, task, key), sizes,
                                          std::min(kPageTokens, end - key), all, scratch);
        Ahead ahead = next_page(a, *task.sequence, sizes, key, end, task.num_panels * words);
        for (int64_t i = 0; i < task.num_panels; ++i) {
            const int64_t keys = panel_keys(a, sizes, task, i, key);
            if (keys == 0) continue;
            float* const state = slot + i * sizes.panel_state;
            score_page<Form>(sizes, scratch + sizes.queries_offset() + i * sizes.panel_queries,
                             page, keys, ahead, scores);
            soften_page<Form>(a, keys, scores, state, corrections);
            value_page<Form>(sizes, page, all, keys, scores, corrections, key == begin, state);
        }
    }
}

// The three turns of a task that is shared. Scores of a part of its pages.
template <class Form>
void score_pages(const DecodeAttention& a, const DecodeSizes& sizes, const DecodeTask& task,
                 const Part& part, float* scratch, float* slot) {
    const int64_t end = end_key(a, sizes, task);
    const int64_t pages = ceil_div(end - task.first_key(), kPageTokens);
    const int64_t last = part.end(pages);
    const int64_t words = Form::words(sizes.kv_lora) + Form::words(sizes.rope);
    if (part.begin(pages) == last) return;
    pack_task<Form>(a, sizes, task, scratch);
    for (int64_t p = part.begin(pages); p < last; ++p) {
        const int64_t key = task.first_key() + p * kPageTokens;
        const Page page = take_page<Form>(
            a, keys_from(a, sizes, task, key), sizes, std::min(kPageTokens, end - key),
            {.keys = true, .first_column = 0, .num_columns = 0}, scratch);
        Ahead ahead = next_page(a, *task.sequence, sizes, key,
                                std::min(end, task.first_key() + last * kPageTokens),
                                task.num_panels * words);
        for (int64_t i = 0; i < task.num_panels; ++i)
            score_page<Form>(sizes, scratch + sizes.queries_offset() + i * sizes.panel_queries,
                             page, panel_keys(a, sizes, task, i, key), ahead,
                             slot + i * sizes.panel_state + sizes.split_scores_offset() +
                                 p * kPageTokens * kPanelHeads);
    }
}

// Their softmax, of a part of the panels.
template <class Form>
void soften_panels(const DecodeAttention& a, const DecodeSizes& sizes, const DecodeTask& task,
                   const Part& part, float* /*scratch*/, float* slot) {
    const int64_t end = end_key(a, sizes, task);
    for (int64_t i = part.begin(task.num_panels); i < part.end(task.num_panels); ++i) {
        float* const state = slot + i * sizes.panel_state;
        float* scores = state + sizes.split_scores_offset();
        float* corrections = state + sizes.split_corrections_offset();
        start_state(state);
        for (int64_t key = task.first_key(); key < end;
             key += kPageTokens, scores += kPageTokens * kPanelHeads, corrections += kPanelHeads)
            if (const int64_t keys = panel_keys(a, sizes, task, i, key); keys > 0)
                soften_page<Form>(a, keys, scores, state, corrections);
    }
}

// Values, of a part of the strips of columns.
template <class Form>
void add_values(const DecodeAttention& a, const DecodeSizes& sizes, const DecodeTask& task,
                const Part& part, float* scratch, float* slot) {
    const int64_t end = end_key(a, sizes, task), strips = sizes.out_width / kStrip;
    const PageParts columns{.keys = false,
                            .first_column = part.begin(strips) * kStrip,
                            .num_columns = (part.end(strips) - part.begin(strips)) * kStrip};
    if (columns.num_columns == 0) return;
    for (int64_t key = task.first_key(), p = 0; key < end; key += kPageTokens, ++p) {
        const Page page = take_page<Form>(a, keys_from(a, sizes, task, key), sizes,
                                          std::min(kPageTokens, end - key), columns, scratch);
        for (int64_t i = 0; i < task.num_panels; ++i) {
            const int64_t keys = panel_keys(a, sizes, task, i, key);
            if (keys == 0) continue;
            float* const state = slot + i * sizes.panel_state;
            value_page<Form>(sizes, page, columns, keys,
                             state + sizes.split_scores_offset() + p * kPageTokens * kPanelHeads,
                             state + sizes.split_corrections_offset() + p * kPanelHeads, p == 0,
                             state);
        }
    }
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

template <class Form>
DecodeFunctions functions_of() {
    return {.attend = attend_split<Form>,
            .turns = {score_pages<Form>, soften_panels<Form>, add_values<Form>},
            .merge = merge_split};
}
DecodeFunctions decode_functions(bool rounds, bool dots) {
    if (!rounds) return functions_of<Exact>();
    return dots ? functions_of<Dots>() : functions_of<Pairs>();
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {
namespace {

HWY_EXPORT(decode_functions);

// visit(task) of every group of panels, with the number of its splits, in order, until it says
// true. Rows that chose their keys are groups of their own.
template <typename Visit>
void for_groups(const DecodeAttention& a, const DecodeSizes& sizes, Visit&& visit) {
    for (const SequenceRows& rows : a.sequences) {
        const int64_t together = a.is_sparse() ? 1 : rows.num_rows;
        for (int64_t row = 0; row < rows.num_rows; row += together) {
            const int64_t end = (row + together) * sizes.row_panels;
            for (int64_t first = row * sizes.row_panels; first < end; first += sizes.group_panels) {
                const int64_t num_panels = std::min(sizes.group_panels, end - first);
                const int64_t last_row = (first + num_panels - 1) / sizes.row_panels;
                if (visit({.sequence = &rows,
                           .first_panel = first,
                           .num_panels = num_panels,
                           .num_splits = num_splits(num_keys(a, rows, last_row))}))
                    return;
            }
        }
    }
}

// Task `index` of the call: sequences in order, of each its groups of panels, of each its splits.
DecodeTask find_task(const DecodeAttention& a, const DecodeSizes& sizes, int64_t index) {
    DecodeTask found;
    for_groups(a, sizes, [&](DecodeTask group) {
        if (index >= 0 && index < group.num_splits) {
            found = group;
            found.split = index;
        }
        index -= group.num_splits;
        return index < 0;
    });
    return found;
}

int64_t count_tasks(const DecodeAttention& a, const DecodeSizes& sizes) {
    int64_t tasks = 0;
    for_groups(a, sizes, [&](const DecodeTask& group) {
        tasks += group.num_splits;
        return false;
    });
    return tasks;
}

// Slots for results in a thread's scratch, beside what a task needs.
int64_t slots_of_thread(const DecodeSizes& sizes, size_t scratch_bytes) {
    const auto floats = static_cast<int64_t>(scratch_bytes / sizeof(float));
    return (floats - sizes.work_floats()) / sizes.slot_floats();
}

// Panels that share a page: as many as leave every thread a few tasks and slots, or, if tasks are
// shared, as many as there are.
DecodeSizes choose_sizes(const DecodeAttention& a, const ThreadPool& threads, bool rounds) {
    constexpr int64_t kMostPanels = 8, kTasksPerThread = 4, kSlotsPerThread = 4;
    int64_t most = 1;
    for (const SequenceRows& rows : a.sequences)
        most = std::max(most, rows.num_rows * ceil_div(a.q_latent.dim(1), kPanelHeads));
    const auto has_slots = [&](const DecodeSizes& sizes) {
        return slots_of_thread(sizes, threads.scratch_bytes()) >= kSlotsPerThread;
    };
    const DecodeSizes single(a, 1, rounds, false);
    const bool shared = threads.num_threads() > 1 &&
                        count_tasks(a, single) < kSharedTasksPerThread * threads.num_threads();
    for (int64_t group = std::min(kMostPanels, most);; group /= 2) {
        const DecodeSizes sizes(a, group, rounds, shared);
        if (group == 1 ||
            (has_slots(sizes) &&
             (shared || count_tasks(a, sizes) >= kTasksPerThread * threads.num_threads())))
            return sizes;
    }
}

// Into how many parts each of the tasks is cut: enough for all threads, and of each task, as the
// last split may have few keys.
int64_t choose_parts(int64_t num_tasks, int64_t num_threads) {
    return std::max(ceil_div(num_threads, num_tasks), std::min(num_threads, kSplitPages));
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
    const DecodeFunctions functions =
        HWY_DYNAMIC_DISPATCH(decode_functions)(sizes.rounds, uses_bf16_dots());
    float* carried = slot(0);
    float* carry = slot(1);
    for (int64_t begin = 0; begin < num_tasks; begin += wave, std::swap(carried, carry)) {
        const int64_t end = std::min(begin + wave, num_tasks);
        if (sizes.shared) {
            const int64_t parts = choose_parts(end - begin, threads_.num_threads());
            for (const auto turn : functions.turns)
                threads_.parallel_for((end - begin) * parts, [&](int64_t index, int thread) {
                    turn(a, sizes, find_task(a, sizes, begin + index / parts),
                         {.index = index % parts, .count = parts}, scratch(thread),
                         slot(2 + index / parts));
                });
        } else {
            threads_.parallel_for(end - begin, [&](int64_t index, int thread) {
                functions.attend(a, sizes, find_task(a, sizes, begin + index), scratch(thread),
                                 slot(2 + index));
            });
        }
        // The last split of a group in this wave merges all of the group.
        threads_.parallel_for(end - begin, [&](int64_t index, int) {
            const DecodeTask task = find_task(a, sizes, begin + index);
            const bool complete = task.split + 1 == task.num_splits;
            if (!complete && begin + index + 1 != end) return;
            const int64_t first_split = std::max<int64_t>(0, task.split - index);
            float* total = first_split == 0 ? slot(2 + index - task.split) : carried;
            for (int64_t i = 0; i < task.num_panels; ++i) {
                const int64_t panel = task.first_panel + i, row = panel / sizes.row_panels;
                const int64_t splits = num_splits(num_keys(a, *task.sequence, row));
                float* state = total + i * sizes.panel_state;
                for (int64_t split = std::max<int64_t>(1, first_split);
                     split <= std::min(task.split, splits - 1); ++split)
                    functions.merge(sizes,
                                    slot(2 + index - (task.split - split)) + i * sizes.panel_state,
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
