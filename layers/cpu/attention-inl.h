// The three parts of an attention block that prefill and decode share: scores, softmax, values.
//
// Queries come in panels of 16, one per vector lane (rows of one head in prefill, heads of one row
// in decode), so nothing is ever summed across lanes and every output element has the plain order
// of operations, whatever the vector width. Per query, for a block of keys:
//   s_j = (fma over the depth, ascending from 0) * scale
//   m' = max(m, s_0, s_1, ...), c = exp(m - m')
//   p_j = exp(s_j - m'), l = l * c, then l += p_j for j ascending
//   o_d = o_d * c, then o_d = fma(p_j, v_jd, o_d) for j ascending
// A key beyond the query's position takes no part in any of them; one that is left out by a mask
// has s_j = -inf and p_j = 0, and while m is -inf exponents are of s_j itself. First block: o_d
// starts at 0.
//
// Where factors are rounded to bf16 (Pairs, Dots), queries, keys, p_j and values are, after l has
// been summed; the order within each pair of the depth and each pair of keys (2i, 2i + 1) is the
// second first. A key that is beyond the position, of a pair that is not, counts as zero.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "layers/cpu/bf16-inl.h"
#include "layers/cpu/vector-inl.h"

#if defined(FERRY_LAYERS_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FERRY_LAYERS_CPU_ATTENTION_INL_H_
#undef FERRY_LAYERS_CPU_ATTENTION_INL_H_
#else
#define FERRY_LAYERS_CPU_ATTENTION_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

constexpr int kPanel = 16;  // queries of a panel
constexpr int kPanelVectors = kPanel / kLanes;
// Registers bound the tiles: 12 accumulators of AVX2's 16 registers, 24 of NEON's 32.
constexpr int kKeysAtOnce = kLanes == 16 ? 12 : 6;
constexpr int kRowsAtOnce = 6;
constexpr int kStripVectors = kLanes >= 8 ? 2 : 16 / kLanes;
constexpr int kStrip = kStripVectors * kLanes;  // value columns of a tile; widths are padded to it
constexpr int64_t kDepthBlock = 192;            // of a panel's queries: 12 KiB, stays in L1

// Codes of bf16 in the lower halves of words.
HWY_INLINE hn::Vec<hn::RebindToUnsigned<Floats>> load_bf16(const uint16_t* from) {
    return hn::PromoteTo(hn::RebindToUnsigned<Floats>(),
                         hn::LoadU(hn::Rebind<uint16_t, Floats>(), from));
}

// What lies in memory for a depth, or for keys: numbers, or words of 32 bits that hold a pair.
struct Exact {
    static constexpr bool kRounds = false;
    static constexpr int64_t words(int64_t num) { return num; }
    static constexpr int64_t whole_pairs(int64_t num) { return num; }
    static HWY_INLINE void add(FloatVector a, FloatVector b, FloatVector& sum) {
        sum = fused_multiply_add(a, b, sum);
    }
};
// Each pair of f32 swapped: the bits of Dots.
struct Pairs : Exact {
    static constexpr bool kRounds = true;
    static constexpr int64_t words(int64_t num) { return (num + 1) / 2 * 2; }
    static constexpr int64_t whole_pairs(int64_t num) { return num / 2 * 2; }
    // rounded: bf16, an even number of them.
    static HWY_INLINE void join(const uint16_t* rounded, int64_t num, float* HWY_RESTRICT to) {
        swap_pairs(rounded, num, to);
    }
    // Row i of words, of `num` columns, a multiple of kLanes, from rows 2i and 2i + 1.
    static HWY_INLINE void join_rows(const uint16_t* first, const uint16_t* second, int64_t num,
                                     float* HWY_RESTRICT to, int64_t stride) {
        const Floats d;
        for (int64_t i = 0; i < num; i += kLanes) {
            hn::StoreU(dots_values(hn::ShiftLeft<16>(load_bf16(second + i))), d, to + i);
            hn::StoreU(dots_values(hn::ShiftLeft<16>(load_bf16(first + i))), d, to + stride + i);
        }
    }
};
#if FERRY_BF16_DOTS
struct Dots {
    static constexpr bool kRounds = true;
    static constexpr int64_t words(int64_t num) { return (num + 1) / 2; }
    static constexpr int64_t whole_pairs(int64_t num) { return num / 2; }
    static HWY_INLINE void add(FloatVector a, FloatVector b, FloatVector& sum) {
        add_dots(_mm512_castps_si512(a.raw), _mm512_castps_si512(b.raw), sum);
    }
    static HWY_INLINE void join(const uint16_t* rounded, int64_t num, float* HWY_RESTRICT to) {
        std::memcpy(to, rounded, static_cast<size_t>(num) * 2);
    }
    static HWY_INLINE void join_rows(const uint16_t* first, const uint16_t* second, int64_t num,
                                     float* HWY_RESTRICT to, int64_t /*stride*/) {
        for (int64_t i = 0; i < num; ++i)
            to[i] = std::bit_cast<float>(uint32_t{first[i]} | uint32_t{second[i]} << 16);
    }
};
#else
using Dots = Pairs;
#endif

// Rows of words from `num` numbers at `from`; what fills the last pair up is zero.
template <class Form>
HWY_INLINE void round_words(const float* HWY_RESTRICT from, int64_t num, float* HWY_RESTRICT to) {
    constexpr int64_t kAtOnce = 256;
    uint16_t rounded[kAtOnce];
    for (int64_t begin = 0; begin < num; begin += kAtOnce) {
        const int64_t count = std::min(kAtOnce, num - begin);
        narrow_bf16(from + begin, count, rounded);
        if (count % 2 != 0) rounded[count] = 0;
        Form::join(rounded, count + count % 2, to + Form::words(begin));
    }
}

// queries[i * 16 + lane] = rows[lane * row_stride + i]; lanes from num_rows on are zero.
HWY_INLINE void pack_queries(const float* HWY_RESTRICT rows, int64_t row_stride, int64_t num_rows,
                             int64_t depth, float* HWY_RESTRICT queries) {
    if (num_rows < kPanel) std::fill_n(queries, depth * kPanel, 0.0f);
    int64_t lane = 0;
#if HWY_TARGET != HWY_SCALAR
    const hn::FixedTag<float, 4> d4;
    for (; lane + 4 <= num_rows; lane += 4) {
        const float* row = rows + lane * row_stride;
        float* to = queries + lane;
        int64_t i = 0;
        for (; i + 4 <= depth; i += 4) {  // transposes 4 x 4
            const auto r0 = hn::LoadU(d4, row + i), r1 = hn::LoadU(d4, row + row_stride + i);
            const auto r2 = hn::LoadU(d4, row + 2 * row_stride + i);
            const auto r3 = hn::LoadU(d4, row + 3 * row_stride + i);
            const auto low01 = hn::InterleaveLower(d4, r0, r1);
            const auto low23 = hn::InterleaveLower(d4, r2, r3);
            const auto high01 = hn::InterleaveUpper(d4, r0, r1);
            const auto high23 = hn::InterleaveUpper(d4, r2, r3);
            hn::Store(hn::ConcatLowerLower(d4, low23, low01), d4, to + i * kPanel);
            hn::Store(hn::ConcatUpperUpper(d4, low23, low01), d4, to + (i + 1) * kPanel);
            hn::Store(hn::ConcatLowerLower(d4, high23, high01), d4, to + (i + 2) * kPanel);
            hn::Store(hn::ConcatUpperUpper(d4, high23, high01), d4, to + (i + 3) * kPanel);
        }
        for (; i < depth; ++i)
            for (int64_t l = 0; l < 4; ++l) to[i * kPanel + l] = row[l * row_stride + i];
    }
#endif
    for (; lane < num_rows; ++lane)
        for (int64_t i = 0; i < depth; ++i)
            queries[i * kPanel + lane] = rows[lane * row_stride + i];
}

// The same in words; `room`: for kPanel rows of them.
template <class Form>
void pack_words(const float* rows, int64_t row_stride, int64_t num_rows, int64_t depth, float* room,
                float* queries) {
    if constexpr (Form::kRounds) {
        const int64_t words = Form::words(depth);
        for (int64_t row = 0; row < num_rows; ++row)
            round_words<Form>(rows + row * row_stride, depth, room + row * words);
        pack_queries(room, words, num_rows, words, queries);
    } else {
        pack_queries(rows, row_stride, num_rows, depth, queries);
    }
}

// Memory that is prefetched on the way, `step` bytes of it for each depth of each tile: many lines
// at once would wait for memory.
struct Ahead {
    const std::byte* at = nullptr;
    int64_t step = 0;  // at most two lines of the cache
};
// Tiles of a block of keys.
constexpr int64_t score_tiles(int64_t num_keys) {
    const int64_t rest = num_keys % kKeysAtOnce;
    return num_keys / kKeysAtOnce + rest / 4 + rest % 4 / 2 + rest % 2;
}

// scores[j][lane] (+)= sum over i < depth of queries[i][lane] * keys[j * key_stride + i].
template <class Form, int kKeys>
HWY_INLINE void score_tile(const float* HWY_RESTRICT queries, int64_t depth,
                           const float* HWY_RESTRICT keys, int64_t key_stride, bool resume,
                           Ahead& ahead, float* HWY_RESTRICT scores) {
    const Floats d;
    FloatVector sums[kKeys][kPanelVectors];
    for (int j = 0; j < kKeys; ++j)
        for (int v = 0; v < kPanelVectors; ++v)
            sums[j][v] = resume ? hn::Load(d, scores + j * kPanel + v * kLanes) : hn::Zero(d);
    for (int64_t i = 0; i < depth; ++i) {
        __builtin_prefetch(ahead.at, 0, 2);
        __builtin_prefetch(ahead.at + 64, 0, 2);
        ahead.at += ahead.step;
        FloatVector q[kPanelVectors];
        for (int v = 0; v < kPanelVectors; ++v)
            q[v] = hn::Load(d, queries + i * kPanel + v * kLanes);
        for (int j = 0; j < kKeys; ++j) {
            const FloatVector key = hn::Set(d, keys[j * key_stride + i]);
            for (int v = 0; v < kPanelVectors; ++v) Form::add(q[v], key, sums[j][v]);
        }
    }
    for (int j = 0; j < kKeys; ++j)
        for (int v = 0; v < kPanelVectors; ++v)
            hn::Store(sums[j][v], d, scores + j * kPanel + v * kLanes);
}

// All keys of a block; depth in words. With `resume` the sums go on from what `scores` holds.
template <class Form = Exact>
HWY_INLINE void score_block(const float* HWY_RESTRICT queries, int64_t depth,
                            const float* HWY_RESTRICT keys, int64_t key_stride, int64_t num_keys,
                            bool resume, Ahead& ahead, float* HWY_RESTRICT scores) {
    for (int64_t begin = 0; begin < depth; begin += kDepthBlock) {
        const int64_t length = std::min(kDepthBlock, depth - begin);
        const float* q = queries + begin * kPanel;
        const float* k = keys + begin;
        const bool go_on = resume || begin > 0;
        int64_t j = 0;
        const auto tiles = [&](auto keys_at_once) HWY_ATTR {
            constexpr int kKeys = decltype(keys_at_once)::value;
            for (; j + kKeys <= num_keys; j += kKeys)
                score_tile<Form, kKeys>(q, length, k + j * key_stride, key_stride, go_on, ahead,
                                        scores + j * kPanel);
        };
        tiles(std::integral_constant<int, kKeysAtOnce>());
        tiles(std::integral_constant<int, 4>());
        tiles(std::integral_constant<int, 2>());
        tiles(std::integral_constant<int, 1>());
    }
}

// scores become p. `num_lane_keys`: keys of the block that each lane may see; null if all.
// `lane_masks`: [2][kPanel], which of keys 0 to 31 and 32 to 63 each takes; null if all.
HWY_INLINE void softmax_block(float* HWY_RESTRICT scores, int64_t num_keys, float scale,
                              const int32_t* num_lane_keys, const uint32_t* lane_masks,
                              float* HWY_RESTRICT maxima, float* HWY_RESTRICT sums,
                              float* HWY_RESTRICT corrections) {
    const Floats d;
    const hn::RebindToSigned<Floats> di;
    const hn::RebindToUnsigned<Floats> du;
    const FloatVector factor = hn::Set(d, scale);
    const FloatVector never = hn::Set(d, -std::numeric_limits<float>::infinity());
    for (int v = 0; v < kPanelVectors; ++v) {
        float* column = scores + v * kLanes;
        const FloatVector old_maximum = hn::Load(d, maxima + v * kLanes);
        FloatVector maximum = old_maximum;
        for (int64_t j = 0; j < num_keys; ++j) {
            FloatVector s = hn::Mul(hn::Load(d, column + j * kPanel), factor);
            if (num_lane_keys != nullptr) {
                const auto seen = hn::Gt(hn::Load(di, num_lane_keys + v * kLanes),
                                         hn::Set(di, static_cast<int32_t>(j)));
                s = hn::IfThenElse(hn::RebindMask(d, seen), s, never);
            }
            if (lane_masks != nullptr) {
                const auto bits = hn::Load(du, lane_masks + j / 32 * kPanel + v * kLanes);
                const auto taken = hn::TestBit(bits, hn::Set(du, 1u << j % 32));
                s = hn::IfThenElse(hn::RebindMask(d, taken), s, never);
            }
            hn::Store(s, d, column + j * kPanel);
            maximum = hn::Max(maximum, s);
        }
        FloatVector shift = maximum;
        if (lane_masks != nullptr)
            shift = hn::IfThenElse(hn::Eq(maximum, never), hn::Zero(d), maximum);
        const FloatVector correction = fast_exp(hn::Sub(old_maximum, shift));
        FloatVector sum = hn::Mul(hn::Load(d, sums + v * kLanes), correction);
        for (int64_t j = 0; j < num_keys; ++j) {
            const FloatVector p = fast_exp(hn::Sub(hn::Load(d, column + j * kPanel), shift));
            hn::Store(p, d, column + j * kPanel);
            sum = hn::Add(sum, p);
        }
        hn::Store(maximum, d, maxima + v * kLanes);
        hn::Store(sum, d, sums + v * kLanes);
        hn::Store(correction, d, corrections + v * kLanes);
    }
}

// p [num_keys][16] to words, in place; there is room for an even number of keys.
template <class Form>
HWY_INLINE void round_p(float* HWY_RESTRICT p, int64_t num_keys) {
    const Floats d;
    const hn::RebindToUnsigned<Floats> du;
    const auto round = [&](FloatVector x) HWY_ATTR {  // to the upper half; finite or NaN, as p is
        const auto bits = hn::BitCast(du, x);
        const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
        return hn::And(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffu))), hn::Set(du, 0xffff0000u));
    };
    for (int64_t key = 0; key < num_keys; key += 2)
        for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
            float* const pair = p + key * kPanel + lane;
            const auto first = round(hn::Load(d, pair));
            auto second = hn::Zero(du);
            if (key + 1 < num_keys) second = round(hn::Load(d, pair + kPanel));
            if constexpr (std::is_same_v<Form, Pairs>) {
                hn::Store(hn::BitCast(d, second), d, pair);
                hn::Store(hn::BitCast(d, first), d, pair + kPanel);
            } else {
                hn::Store(hn::BitCast(d, hn::Or(hn::ShiftRight<16>(first), second)), d,
                          p + key / 2 * kPanel + lane);
            }
        }
}

// out[r][columns of one strip] = out * correction_r + sum over j of p[j][r] * values[j]; `p` and
// `corrections` point at the tile's first row. Rows see all of the first num_keys; the few keys
// after them that only later rows of the tile see (num_lane_keys) are added row by row, as are
// those of a pair that a row sees half of.
template <class Form, int kRows>
HWY_INLINE void value_tile(const float* HWY_RESTRICT p, int64_t num_keys,
                           const int32_t* num_lane_keys, const float* HWY_RESTRICT values,
                           int64_t value_stride, const float* corrections, bool first,
                           float* HWY_RESTRICT out, int64_t out_stride) {
    const Floats d;
    FloatVector sums[kRows][kStripVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kStripVectors; ++v)
            sums[r][v] = first ? hn::Zero(d)
                               : hn::Mul(hn::Load(d, out + r * out_stride + v * kLanes),
                                         hn::Set(d, corrections[r]));
    const int64_t shared = Form::whole_pairs(num_keys);
    for (int64_t j = 0; j < shared; ++j) {
        FloatVector value[kStripVectors];
        for (int v = 0; v < kStripVectors; ++v)
            value[v] = hn::LoadU(d, values + j * value_stride + v * kLanes);
        for (int r = 0; r < kRows; ++r) {
            const FloatVector weight = hn::Set(d, p[j * kPanel + r]);
            for (int v = 0; v < kStripVectors; ++v) Form::add(weight, value[v], sums[r][v]);
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kStripVectors; ++v)
            hn::Store(sums[r][v], d, out + r * out_stride + v * kLanes);
    if (num_lane_keys == nullptr) return;
    // On memory, or the compiler would keep all sums there.
    for (int r = 0; r < kRows; ++r) {
        const auto add = [&](int64_t j, auto change) HWY_ATTR {
            for (int v = 0; v < kStripVectors; ++v) {
                float* const sum = out + r * out_stride + v * kLanes;
                FloatVector total = hn::Load(d, sum);
                Form::add(hn::Set(d, p[j * kPanel + r]),
                          change(hn::LoadU(d, values + j * value_stride + v * kLanes)), total);
                hn::Store(total, d, sum);
            }
        };
        const int64_t whole = Form::whole_pairs(num_lane_keys[r]);
        for (int64_t j = shared; j < whole; ++j) add(j, [](FloatVector x) HWY_ATTR { return x; });
        if (!Form::kRounds || num_lane_keys[r] % 2 == 0) continue;
        if constexpr (std::is_same_v<Form, Pairs>)  // the second of two
            add(whole + 1, [](FloatVector x) HWY_ATTR { return x; });
        else
            add(whole, [](FloatVector x) HWY_ATTR {
                const hn::RebindToUnsigned<Floats> du;
                return hn::BitCast(Floats(), hn::And(hn::BitCast(du, x), hn::Set(du, 0xffffu)));
            });
    }
}

// out [num_rows, columns] of a panel, rows out_stride apart; columns a multiple of kStrip. values:
// strip i begins at i * strip_stride, its words value_stride apart. Form::kRounds: num_lane_keys
// are told unless all rows see an even number.
template <class Form = Exact>
HWY_INLINE void value_block(const float* p, int64_t num_keys, const int32_t* num_lane_keys,
                            const float* values, int64_t value_stride, int64_t strip_stride,
                            const float* corrections, bool first, int64_t num_rows, int64_t columns,
                            float* out, int64_t out_stride) {
    // Tiles of about equal height: 16 rows are 6 + 5 + 5.
    constexpr int kMostTiles = (kPanel + kRowsAtOnce - 1) / kRowsAtOnce;
    const int64_t num_tiles = (num_rows + kRowsAtOnce - 1) / kRowsAtOnce;
    int64_t tile_begin[kMostTiles + 1];
    for (int64_t tile = 0; tile <= num_tiles; ++tile)
        tile_begin[tile] = (tile * num_rows + num_tiles - 1) / num_tiles;
    for (int64_t strip = 0; strip < columns / kStrip; ++strip)
        for (int64_t tile = 0; tile < num_tiles; ++tile) {
            const int64_t row = tile_begin[tile];
            const int64_t shared_keys = num_lane_keys ? num_lane_keys[row] : num_keys;
            const auto run = [&](auto rows_at_once) HWY_ATTR {
                value_tile<Form, decltype(rows_at_once)::value>(
                    p + row, shared_keys, num_lane_keys ? num_lane_keys + row : nullptr,
                    values + strip * strip_stride, value_stride, corrections + row, first,
                    out + row * out_stride + strip * kStrip, out_stride);
            };
            switch (tile_begin[tile + 1] - row) {
                case 6:
                    run(std::integral_constant<int, 6>());
                    break;
                case 5:
                    run(std::integral_constant<int, 5>());
                    break;
                case 4:
                    run(std::integral_constant<int, 4>());
                    break;
                case 3:
                    run(std::integral_constant<int, 3>());
                    break;
                case 2:
                    run(std::integral_constant<int, 2>());
                    break;
                default:
                    run(std::integral_constant<int, 1>());
                    break;
            }
        }
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#endif  // include toggle
