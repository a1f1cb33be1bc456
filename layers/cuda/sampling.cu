// From rows of logits to tokens, one block per row, as runtime/sampler.h defines it. The CPU ranks
// tokens with a heap; here the kept tokens are described by the last of them: all above a key, and
// the first few in order of id at the key itself (both filters and ties leave a prefix of the
// ranking). The key is found digit by digit with histograms. Sums of weights are integers, so
// their order does not matter and the tokens are the CPU's.
#include "layers/cuda/sampling_launch.h"

#include <cmath>

#include "base/cuda_launch.h"
#include "base/random.h"
#include "layers/sampling_math.h"

namespace ferry {
namespace {

constexpr int kThreads = kSampleThreads, kWarps = kThreads / 32;
constexpr int kDigitsPerThread = kSampleDigits / kThreads;
constexpr uint32_t kEveryTie = 0xffffffffu;

struct Best {
    uint32_t key = 0;  // no token has 0
    int32_t id = 0;
};

struct Shared {
    unsigned long long digits[kSampleDigits];
    unsigned long long sums[kWarps];
    unsigned long long found_before;
    Best best[kWarps];
    int found;
};

// The tokens with a key above `key`, and the first `num_ties` in order of id of those that have it.
struct Prefix {
    uint32_t key = 0;
    uint32_t num_ties = kEveryTie;
};

__device__ Prefix shorter(const Prefix& a, const Prefix& b) {
    if (a.key != b.key) return a.key > b.key ? a : b;
    return a.num_ties < b.num_ties ? a : b;
}

__device__ uint64_t warp_sum(uint64_t value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_xor_sync(~0u, static_cast<unsigned long long>(value), distance);
    return value;
}

__device__ uint64_t block_sum(Shared& shared, uint64_t value) {
    __syncthreads();
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) shared.sums[threadIdx.x / 32] = value;
    __syncthreads();
    uint64_t sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += shared.sums[warp];
    return sum;
}

// Sum over the threads before this one.
__device__ uint64_t block_sum_before(Shared& shared, uint64_t value) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned long long sum = value;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const unsigned long long other = __shfl_up_sync(~0u, sum, distance);
        if (lane >= distance) sum += other;
    }
    __syncthreads();
    if (lane == 31) shared.sums[warp] = sum;
    __syncthreads();
    uint64_t before = sum - value;
    for (int w = 0; w < warp; ++w) before += shared.sums[w];
    return before;
}

__device__ Best better(const Best& a, const Best& b) {
    return b.key > a.key || (b.key == a.key && b.id < a.id) ? b : a;
}

// The highest key, and the lowest id that has it.
__device__ Best block_best(Shared& shared, Best best) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const Best other{__shfl_xor_sync(~0u, best.key, distance),
                         __shfl_xor_sync(~0u, best.id, distance)};
        best = better(best, other);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared.best[threadIdx.x / 32] = best;
    __syncthreads();
    for (int warp = 0; warp < kWarps; ++warp) best = better(best, shared.best[warp]);
    return best;
}

struct Row {
    const float* logits;
    int64_t vocab;
    float max_logit = 0;
    float per_temperature = 1;

    __device__ float weight(float logit) const {
        return token_weight(logit, max_logit, per_temperature);
    }
    __device__ uint64_t units(float logit) const { return weight_units(weight(logit)); }
};

// body(id, logit) for all tokens, among the threads of the block: two loads of four logits on
// their way, where the row begins on 16 bytes.
template <typename Body>
__device__ __forceinline__ void for_tokens(const Row& row, Body&& body) {
    const int vocab = static_cast<int>(row.vocab), thread = static_cast<int>(threadIdx.x);
    int done = 0;
    if (reinterpret_cast<uintptr_t>(row.logits) % sizeof(float4) == 0) {
        constexpr int kLoads = 2, kAtOnce = kLoads * kThreads;
        const auto* quads = reinterpret_cast<const float4*>(row.logits);
        const int num_quads = vocab / 4;
        for (int first = thread; first < num_quads; first += kAtOnce) {
            float4 loaded[kLoads];
#pragma unroll
            for (int i = 0; i < kLoads; ++i)
                loaded[i] = quads[min(first + i * kThreads, num_quads - 1)];
#pragma unroll
            for (int i = 0; i < kLoads; ++i) {
                const int at = first + i * kThreads;
                if (at >= num_quads) break;
                body(4 * at, loaded[i].x);
                body(4 * at + 1, loaded[i].y);
                body(4 * at + 2, loaded[i].z);
                body(4 * at + 3, loaded[i].w);
            }
        }
        done = 4 * num_quads;
    }
    for (int id = done + thread; id < vocab; id += kThreads) body(id, row.logits[id]);
}

// Sum of value(id, logit) over all tokens.
template <typename Value>
__device__ uint64_t sum_tokens(Shared& shared, const Row& row, Value&& value) {
    uint64_t sum = 0;
    for_tokens(row, [&](int id, float logit) { sum += value(id, logit); });
    return block_sum(shared, sum);
}

// The best of the tokens ranked after `last`; key 0 when there is none.
__device__ Best find_next(Shared& shared, const Row& row, const Best& last) {
    Best best;
    for_tokens(row, [&](int id, float logit) {
        const Best token{rank_key(logit), id};
        if (token.key < last.key || (token.key == last.key && token.id > last.id))
            best = better(best, token);
    });
    return block_best(shared, best);
}
__device__ Best before_all() {
    return {0xffffffffu, -1};
}

// The best token; key 0 when there is NaN or no finite maximum.
__device__ Best find_best(Shared& shared, const Row& row) {
    bool has_nan = false;
    Best best;
    for_tokens(row, [&](int id, float logit) {
        has_nan |= std::isnan(logit);
        best = better(best, {rank_key(logit), id});
    });
    if (__syncthreads_or(has_nan)) return {};
    best = block_best(shared, best);
    return best.key != 0 && std::isfinite(row.logits[best.id]) ? best : Best{};
}

// The highest key such that the values of the tokens above it sum to less than `target` and with
// its own to at least that; `before`: the sum above it. There is one.
template <typename Value>
__device__ uint32_t select_key(Shared& shared, const Row& row, uint64_t target, uint64_t& before,
                               Value&& value) {
    uint32_t prefix = 0;
    before = 0;
    int shift = 32;
    while (shift > 0) {
        const int bits = shift < kSampleDigitBits ? shift : kSampleDigitBits;
        const int above = shift;  // bits of the key that `prefix` has are those from here on
        shift -= bits;
        __syncthreads();
        for (int i = threadIdx.x; i < kSampleDigits; i += kThreads) shared.digits[i] = 0;
        __syncthreads();
        for_tokens(row, [&](int, float logit) {
            const uint32_t key = rank_key(logit);
            if (above < 32 && key >> above != prefix) return;
            const uint64_t count = value(logit);
            if (count > 0)
                atomicAdd(&shared.digits[key >> shift & ((1u << bits) - 1)],
                          static_cast<unsigned long long>(count));
        });
        __syncthreads();
        // Threads take digits from the highest down.
        const int first = kSampleDigits - 1 - static_cast<int>(threadIdx.x) * kDigitsPerThread;
        uint64_t own = 0;
        for (int i = 0; i < kDigitsPerThread; ++i) own += shared.digits[first - i];
        uint64_t sum = before + block_sum_before(shared, own);
        if (sum < target && target <= sum + own) {
            int digit = first;
            while (sum + shared.digits[digit] < target) sum += shared.digits[digit--];
            shared.found = digit;
            shared.found_before = sum;
        }
        __syncthreads();
        prefix = prefix << bits | static_cast<uint32_t>(shared.found);
        before = shared.found_before;
    }
    return prefix;
}

// What top_k, top_p and min_p keep. `best_key`: of the best token, which is always kept.
__device__ Prefix keep(Shared& shared, const Row& row, const SampleQuery& query,
                       uint32_t best_key) {
    Prefix kept;
    const bool has_top_k = query.top_k > 0 && query.top_k < row.vocab;
    if (has_top_k) {
        const uint64_t target = static_cast<uint64_t>(query.top_k);
        uint64_t before;
        kept.key = select_key(shared, row, target, before, [](float) { return 1; });
        kept.num_ties = static_cast<uint32_t>(target - before);
    }
    if (query.top_p < 1) {
        uint64_t total = sum_tokens(shared, row, [&](int, float logit) -> uint64_t {
            return !has_top_k || rank_key(logit) > kept.key ? row.units(logit) : 0;
        });
        // Ties have the same logit, so the same weight.
        const auto units_at = [&](uint32_t key) {
            const uint32_t bits = key >> 31 ? key & 0x7fffffffu : ~key;
            return weight_units(
                token_weight(float_of_bits(bits), row.max_logit, row.per_temperature));
        };
        if (has_top_k) total += kept.num_ties * units_at(kept.key);
        const uint64_t target = units_enough(query.top_p, total);
        uint64_t before;
        const uint32_t key =
            select_key(shared, row, target, before, [&](float logit) { return row.units(logit); });
        const uint64_t each = units_at(key);
        kept = shorter(kept, {key, static_cast<uint32_t>((target - before + each - 1) / each)});
    }
    if (query.min_p > 0) {
        Best light;
        for_tokens(row, [&](int id, float logit) {
            if (row.weight(logit) < query.min_p) light = better(light, {rank_key(logit), id});
        });
        light = block_best(shared, light);
        if (light.key != 0) kept = shorter(kept, {light.key, 0});
    }
    const bool has_best = kept.key < best_key || (kept.key == best_key && kept.num_ties > 0);
    return has_best ? kept : Prefix{best_key, 1};
}

// Units of a kept token; of those at the key itself as if there were ties left.
__device__ uint64_t kept_units(const Row& row, const Prefix& kept, float logit) {
    return rank_key(logit) < kept.key ? 0 : row.units(logit);
}

// Where a warp with `running` units before its ids [begin, end) and `ties_left` comes to more than
// `target`: lanes have neighbouring ids.
__device__ int32_t find_drawn(const Row& row, const Prefix& kept, int64_t begin, int64_t end,
                              uint64_t running, uint64_t ties_left, uint64_t target) {
    const int lane = threadIdx.x % 32;
    constexpr int kAhead = 4;
    for (int64_t begin_ahead = begin; begin_ahead < end; begin_ahead += 32 * kAhead) {
        float logits[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
            logits[i] = row.logits[min(begin_ahead + 32 * i + lane, end - 1)];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int64_t first = begin_ahead + 32 * i;
            const bool is_there = first + lane < end;
            const bool is_tie = is_there && rank_key(logits[i]) == kept.key;
            const unsigned ties = __ballot_sync(~0u, is_tie);
            const auto ties_before = static_cast<uint64_t>(__popc(ties & ((1u << lane) - 1)));
            const bool counts = is_there && (!is_tie || ties_before < ties_left);
            unsigned long long sum = counts ? kept_units(row, kept, logits[i]) : 0;
#pragma unroll
            for (int distance = 1; distance < 32; distance *= 2) {
                const unsigned long long other = __shfl_up_sync(~0u, sum, distance);
                if (lane >= distance) sum += other;
            }
            const unsigned beyond = __ballot_sync(~0u, running + sum > target);
            if (beyond != 0)
                return static_cast<int32_t>(first + __ffs(static_cast<int>(beyond)) - 1);
            running += __shfl_sync(~0u, sum, 31);
            ties_left -= min(ties_left, static_cast<uint64_t>(__popc(ties)));
        }
    }
    return -1;  // the sums say otherwise
}

// Warps have neighbouring ranges of ids.
__device__ int32_t draw(Shared& shared, const Row& row, const Prefix& kept, double uniform) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t range = (row.vocab + kWarps - 1) / kWarps;
    const int64_t begin = min(row.vocab, warp * range), end = min(row.vocab, begin + range);
    uint64_t above = 0, ties = 0, each = 0;
#pragma unroll 4
    for (int64_t id = begin + lane; id < end; id += 32) {
        const float logit = row.logits[id];
        const uint32_t key = rank_key(logit);
        if (key < kept.key) continue;
        const uint64_t units = row.units(logit);
        if (key > kept.key) {
            above += units;
        } else {
            ++ties;
            each = units;
        }
    }
    above = warp_sum(above);
    ties = warp_sum(ties);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        each = max(each, static_cast<uint64_t>(__shfl_xor_sync(
                             ~0u, static_cast<unsigned long long>(each), distance)));
    const auto before_warp = [&](uint64_t of_warp) {
        const uint64_t before = block_sum_before(shared, lane == 0 ? of_warp : 0);
        return static_cast<uint64_t>(__shfl_sync(~0u, static_cast<unsigned long long>(before), 0));
    };
    const uint64_t ties_before = before_warp(ties);
    const uint64_t ties_left = kept.num_ties > ties_before ? kept.num_ties - ties_before : 0;
    const uint64_t own = above + min(ties, ties_left) * each;
    const uint64_t running = before_warp(own);
    const uint64_t target = units_to_draw(uniform, block_sum(shared, lane == 0 ? own : 0));
    if (running <= target && target < running + own) {
        const int32_t id = find_drawn(row, kept, begin, end, running, ties_left, target);
        if (lane == 0) shared.found = id;
    }
    __syncthreads();
    return shared.found;
}

// The logits after bans and penalties, in global memory.
__device__ const float* adjust(const SampleParams& p, const SampleQuery& query,
                               const float* logits) {
    if (query.repetition_penalty == 1.0f && query.num_banned == 0) return logits;
    float* const adjusted = p.adjusted + blockIdx.x * p.vocab;
    for (int64_t id = threadIdx.x; id < p.vocab; id += kThreads) adjusted[id] = logits[id];
    __syncthreads();
    // A token that comes twice gets the same value twice.
    for (int i = threadIdx.x; query.repetition_penalty != 1.0f && i < query.num_tokens;
         i += kThreads) {
        const int32_t id = p.tokens[query.first_token + i];
        if (id < 0 || id >= p.vocab) continue;
        const float logit = logits[id];
        adjusted[id] = logit > 0 ? __fdiv_rn(logit, query.repetition_penalty)
                                 : exact_mul(logit, query.repetition_penalty);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < query.num_banned; i += kThreads) {
        const int32_t id = p.tokens[query.first_banned + i];
        if (id >= 0 && id < p.vocab) adjusted[id] = -INFINITY;
    }
    __syncthreads();
    return adjusted;
}

__device__ double uniform_of(const SampleQuery& query) {
    const auto bits =
        philox4x32({query.position, query.sample, static_cast<uint32_t>(query.id_hash),
                    static_cast<uint32_t>(query.id_hash >> 32)},
                   {static_cast<uint32_t>(query.seed), static_cast<uint32_t>(query.seed >> 32)});
    return uniform_f64(bits[0], bits[1]);
}

__global__ __launch_bounds__(kThreads) void sample(SampleParams p) {
    FERRY_DYNAMIC_SHARED(memory);
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const SampleQuery query = p.queries[blockIdx.x];
    SampleResult result;
    const auto finish = [&] {
        if (threadIdx.x == 0) p.results[blockIdx.x] = result;
    };
    Row raw{p.logits + query.row * p.logits_stride, p.vocab};
    const Best raw_best = find_best(shared, raw);
    if (raw_best.key == 0) return finish();
    raw.max_logit = raw.logits[raw_best.id];
    Row row{adjust(p, query, raw.logits), p.vocab};
    const Best best = row.logits == raw.logits ? raw_best : find_best(shared, row);
    if (best.key == 0) return finish();
    row.max_logit = row.logits[best.id];
    row.per_temperature = query.per_temperature;
    result.token = query.per_temperature == 0
                       ? best.id
                       : draw(shared, row, keep(shared, row, query, best.key), uniform_of(query));
    result.logit = raw.logits[result.token];
    result.max_logit = raw.max_logit;
    if (query.num_top >= 0) {
        result.units = sum_tokens(shared, raw, [&](int, float logit) { return raw.units(logit); });
        Best last = before_all();
        for (int i = 0; i < query.num_top; ++i) {
            last = find_next(shared, raw, last);
            if (threadIdx.x == 0) p.top[query.first_top + i] = {last.id, raw.logits[last.id]};
        }
    }
    finish();
}

}  // namespace

void launch_sample(const SampleParams& params, int num_queries, CUstream_st* stream) {
    launch(sample,
           {.grid = {static_cast<unsigned>(num_queries)},
            .block = {kThreads},
            .shared_bytes = sizeof(Shared)},
           stream, params);
}

}  // namespace ferry
