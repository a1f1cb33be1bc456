// A page of the latent cache as the forms of absorbed attention take it (attention-inl.h). Compiled
// once per instruction set.
#include <algorithm>
#include <type_traits>

#include "layers/cpu/attention-inl.h"
#include "layers/cpu/bf16-inl.h"
#include "layers/cpu/mla_decode.h"

#if defined(FERRY_LAYERS_CPU_MLA_PAGE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FERRY_LAYERS_CPU_MLA_PAGE_INL_H_
#undef FERRY_LAYERS_CPU_MLA_PAGE_INL_H_
#else
#define FERRY_LAYERS_CPU_MLA_PAGE_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

constexpr int64_t kRowsAhead = 4;  // prefetched

// What is wanted of a page: keys, and these columns of values, whole strips.
struct PageParts {
    bool keys;
    int64_t first_column, num_columns;
};

// A page as a form takes it: keys with their rotated parts, values in strips.
struct Page {
    const float* keys;
    int64_t key_stride, rope_offset;
    const float* values;
    int64_t value_stride, strip_stride;
};

// Prefetches columns [first, end) of rows [row, row + num) of a page, as far as it has `keys`:
// parts of rows, or rows, that lie far apart, which caches do not foresee.
HWY_INLINE void prefetch_columns(const Tensor& cache, const KeyRows& rows, int64_t row, int64_t num,
                                 int64_t keys, int64_t width, int64_t first, int64_t end) {
    const int64_t value_bytes = size_bytes(cache.dtype());
    for (const int64_t last = std::min(row + num, keys); row < last; ++row) {
        const std::byte* const at = cache.as<std::byte>() + rows[row] * width * value_bytes;
        for (int64_t i = first * value_bytes; i < end * value_bytes; i += 64)
            __builtin_prefetch(at + i);
    }
}

// page[j] = latent of key j as f32, columns up to out_width zero, then the rope part.
void widen_page(const DecodeSizes& sizes, const Tensor& cache, const KeyRows& rows, int64_t keys,
                const PageParts& parts, float* HWY_RESTRICT page) {
    const int64_t width = sizes.kv_lora + sizes.rope;
    const auto widen = [&cache](int64_t from, int64_t count, float* to) HWY_ATTR {
        if (cache.dtype() == DType::f32)
            std::copy_n(cache.as<float>() + from, count, to);
        else
            widen_bf16(cache.as<uint16_t>() + from, count, to);
    };
    const int64_t first = parts.keys ? 0 : parts.first_column;
    const int64_t end = parts.keys ? sizes.out_width : first + parts.num_columns;
    for (int64_t j = 0; j < keys; ++j) {
        if (!parts.keys || rows.positions != nullptr)
            prefetch_columns(cache, rows, j + kRowsAhead, 1, keys, width, first,
                             parts.keys ? width : std::min(end, sizes.kv_lora));
        float* to = page + j * sizes.page_stride();
        const int64_t from = rows[j] * width;
        if (parts.keys && sizes.out_width == sizes.kv_lora) {
            widen(from, width, to);
            continue;
        }
        if (first < sizes.kv_lora)
            widen(from + first, std::min(end, sizes.kv_lora) - first, to + first);
        if (end > sizes.kv_lora) std::fill(to + std::max(first, sizes.kv_lora), to + end, 0.0f);
        if (parts.keys) widen(from + sizes.kv_lora, sizes.rope, to + sizes.out_width);
    }
}

// A page in words: keys, and values of pairs of keys in strips of kStrip columns, [64][kStrip]
// each. Rows that the cache holds as they are wanted are read there.
template <class Form>
Page round_page(const DecodeSizes& sizes, const Tensor& cache, const KeyRows& where, int64_t keys,
                const PageParts& parts, float* HWY_RESTRICT scratch) {
    const int64_t width = sizes.kv_lora + sizes.rope, latent_words = Form::words(sizes.kv_lora);
    const int64_t key_words = latent_words + Form::words(sizes.rope);
    // A pair of rows, where they are copied, and one of zeros.
    auto* const rows = reinterpret_cast<uint16_t*>(scratch + sizes.rows_offset());
    std::fill_n(rows, 3 * sizes.bf16_row(), uint16_t{0});
    const bool in_place =
        cache.dtype() == DType::bf16 && sizes.out_width == sizes.kv_lora && sizes.rope % 2 == 0;
    const bool apart = where.positions != nullptr;
    const bool copies_keys = parts.keys && !(in_place && Form::words(2) == 1 && !apart);
    const auto round = [&cache](int64_t from, int64_t count, uint16_t* to) HWY_ATTR {
        if (cache.dtype() == DType::f32)
            narrow_bf16(cache.as<float>() + from, count, to);
        else
            std::copy_n(cache.as<uint16_t>() + from, count, to);
    };
    const int64_t first = parts.keys ? 0 : parts.first_column;
    const int64_t end =
        parts.keys ? sizes.kv_lora : std::min(first + parts.num_columns, sizes.kv_lora);
    const auto row_of = [&](int64_t j) HWY_ATTR -> const uint16_t* {
        const int64_t from = where[j] * width;
        if (in_place) return cache.as<uint16_t>() + from;
        uint16_t* const row = rows + j % 2 * sizes.bf16_row();
        if (first < end) round(from + first, end - first, row + first);
        if (parts.keys) round(from + sizes.kv_lora, sizes.rope, row + sizes.out_width);
        return row;
    };
    for (int64_t pair = 0; pair < keys; pair += 2) {
        if (!parts.keys || apart)
            prefetch_columns(cache, where, pair + kRowsAhead, 2, keys, width, first,
                             parts.keys ? width : end);
        const uint16_t* const pair_rows[] = {
            row_of(pair), pair + 1 < keys ? row_of(pair + 1) : rows + 2 * sizes.bf16_row()};
        for (int64_t i = 0; copies_keys && i < std::min<int64_t>(2, keys - pair); ++i) {
            float* const key = scratch + (pair + i) * key_words;
            Form::join(pair_rows[i], DecodeSizes::even(sizes.kv_lora), key);
            Form::join(pair_rows[i] + sizes.out_width, DecodeSizes::even(sizes.rope),
                       key + latent_words);
        }
        float* values = scratch + sizes.values_offset() + parts.first_column * kPageTokens +
                        Form::words(pair) * kStrip;
        for (int64_t column = parts.first_column; column < parts.first_column + parts.num_columns;
             column += kStrip, values += kPageTokens * kStrip)
            Form::join_rows(pair_rows[0] + column, pair_rows[1] + column, kStrip, values, kStrip);
    }
    const uint16_t* const page = in_place ? cache.as<uint16_t>() + where[0] * width : rows;
    return {.keys = copies_keys ? scratch : reinterpret_cast<const float*>(page),
            .key_stride = key_words,
            .rope_offset = latent_words,
            .values = scratch + sizes.values_offset(),
            .value_stride = kStrip,
            .strip_stride = kPageTokens * kStrip};
}

// The first num_keys of some keys; what has to be copied for that goes into scratch.
template <class Form>
Page take_page(const DecodeAttention& a, const KeyRows& rows, const DecodeSizes& sizes,
               int64_t num_keys, const PageParts& parts, float* scratch) {
    if constexpr (Form::kRounds)
        return round_page<Form>(sizes, a.cache, rows, num_keys, parts, scratch);
    const float* page = scratch;
    if (sizes.direct)
        page = a.cache.as<float>() + rows[0] * sizes.page_stride();
    else
        widen_page(sizes, a.cache, rows, num_keys, parts, scratch);
    return {.keys = page,
            .key_stride = sizes.page_stride(),
            .rope_offset = sizes.out_width,
            .values = page,
            .value_stride = sizes.page_stride(),
            .strip_stride = kStrip};
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#endif  // include toggle
