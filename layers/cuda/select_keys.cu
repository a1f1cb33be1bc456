// Sparse attention: which keys a row attends to (layers/indexer.h). score_keys has the heads of a
// row as the M dimension of tensor-core products, as attention has (mla_decode.cu), over some pages
// of keys; choose_keys, a block for each row, finds the index_topk-th highest score digit by digit,
// then lists what is above it and, of what equals it, the first.
//
// A cache of f32 or of other widths goes through score_keys_plain: f32 throughout. Nothing depends
// on what else is in the batch.
#include "base/cuda_launch.h"
#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/reduce.h"
#include "layers/cuda/tiles.h"
#include "layers/cuda/vector.h"
#include "layers/sampling_math.h"

namespace ferry {
namespace {

constexpr int kKeys = kTileKeys;
constexpr int kDim = 128, kPitch = kDim * 2, kChunks = kPitch / 16;  // of the tensor cores' form
constexpr int kMostHeads = 64;
constexpr int kScoreThreads = 128, kScoreWarps = kScoreThreads / 32;
constexpr int kPagesAtOnce = 4;  // of a block
constexpr int kChooseThreads = 512, kChooseWarps = kChooseThreads / 32;
constexpr int kDigits = 256;

struct Selection {
    const float* q = nullptr;
    const float* weights = nullptr;
    const void* keys = nullptr;
    float* scores = nullptr;  // [rows of the launch, ...]
    int32_t* chosen = nullptr;
    const SelectRow* rows = nullptr;  // of the launch
    const int32_t* pages = nullptr;
    int heads = 0, dim = 0, topk = 0;
    int64_t q_stride = 0, weights_stride = 0, scores_stride = 0, chosen_stride = 0;
};

// Keys [0, num_keys) of a page; the others become zeros.
__device__ void load_keys(std::byte* to, const std::byte* page, int num_keys) {
#pragma unroll
    for (int i = threadIdx.x; i < kKeys * kChunks; i += kScoreThreads) {
        const int key = i / kChunks, chunk = i % kChunks;
        copy_async(to + tile_offset(key, chunk, kPitch), page + key * kPitch + chunk * 16,
                   key < num_keys);
    }
    commit_copies();
}

// Each warp has 16 keys of a page, and all heads.
template <int kHeadTiles>
__global__ __launch_bounds__(kScoreThreads) void score_keys(Selection s) {
    constexpr int kHeads = 16 * kHeadTiles, kPageBytes = kKeys * kPitch;
    const SelectRow row = s.rows[blockIdx.y];
    const int first_key = static_cast<int>(blockIdx.x) * kPagesAtOnce * kKeys;
    if (row.num_keys <= s.topk || first_key >= row.num_keys) return;

    FERRY_DYNAMIC_SHARED(queries);  // [heads, 128] bf16, two pages, [heads] f32
    std::byte* const pages = queries + kHeads * kPitch;
    float* const weights = reinterpret_cast<float*>(pages + 2 * kPageBytes);
    const int num_keys = min(row.num_keys - first_key, kPagesAtOnce * kKeys);
    const int num_tiles = (num_keys + kKeys - 1) / kKeys;
    const int32_t* const page_list = s.pages + row.first_page + first_key / kKeys;
    const auto load_tile = [&](int tile) {
        load_keys(pages + tile % 2 * kPageBytes,
                  static_cast<const std::byte*>(s.keys) +
                      static_cast<int64_t>(page_list[tile]) * kPageBytes,
                  num_keys - tile * kKeys);
    };
    load_tile(0);
    for (int i = threadIdx.x; i < kHeads * kChunks; i += kScoreThreads) {
        const int head = i / kChunks, chunk = i % kChunks;
        const float* const from = s.q + row.batch_row * s.q_stride + head * kDim + chunk * 8;
        const auto a = load<kFloatsPerVector>(from);
        const auto b = load<kFloatsPerVector>(from + kFloatsPerVector);
        *reinterpret_cast<uint4*>(queries + tile_offset(head, chunk, kPitch)) =
            make_uint4(pack_bf16(a.values[0], a.values[1]), pack_bf16(a.values[2], a.values[3]),
                       pack_bf16(b.values[0], b.values[1]), pack_bf16(b.values[2], b.values[3]));
    }
    for (int i = threadIdx.x; i < kHeads; i += kScoreThreads)
        weights[i] = s.weights[row.batch_row * s.weights_stride + i];

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float* const scores = s.scores + blockIdx.y * s.scores_stride + first_key;
    for (int tile = 0; tile < num_tiles; ++tile) {
        wait_for_copies<0>();
        __syncthreads();
        if (tile + 1 < num_tiles) load_tile(tile + 1);
        const std::byte* const page = pages + tile % 2 * kPageBytes;
        float sums[2][2] = {};  // of this thread's heads; eight keys, two of them
#pragma unroll 1
        for (int m = 0; m < kHeadTiles; ++m) {
            float products[2][4] = {};
#pragma unroll
            for (int chunk = 0; chunk < kChunks; chunk += 4) {
                uint32_t a0[4], a1[4];
                load_a(a0, queries, m * 16, chunk, kPitch, lane);
                load_a(a1, queries, m * 16, chunk + 2, kPitch, lane);
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    uint32_t b[4];
                    load_b(b, page, warp * 16 + n * 8, chunk, kPitch, lane);
                    multiply_add(products[n], a0, b[0], b[1]);
                    multiply_add(products[n], a1, b[2], b[3]);
                }
            }
            const float upper = weights[m * 16 + g], lower = weights[m * 16 + g + 8];
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    sums[n][i] = fmaf(upper, fmaxf(products[n][i], 0.0f), sums[n][i]);
                    sums[n][i] = fmaf(lower, fmaxf(products[n][2 + i], 0.0f), sums[n][i]);
                }
        }
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
#pragma unroll
                for (int distance = 4; distance < 32; distance *= 2)
                    sums[n][i] += __shfl_xor_sync(~0u, sums[n][i], distance);
                const int key = tile * kKeys + warp * 16 + n * 8 + 2 * t + i;
                if (g == 0 && key < num_keys) scores[key] = sums[n][i];
            }
    }
}

__device__ inline float to_f32(float value) {
    return value;
}
__device__ inline float to_f32(uint16_t value) {
    return __uint_as_float(static_cast<uint32_t>(value) << 16);
}

// A warp has one key after the other.
template <typename Value>
__global__ __launch_bounds__(kScoreThreads) void score_keys_plain(Selection s) {
    const SelectRow row = s.rows[blockIdx.y];
    const int first_key = static_cast<int>(blockIdx.x) * kPagesAtOnce * kKeys;
    const int end_key = min(row.num_keys, first_key + kPagesAtOnce * kKeys);
    if (row.num_keys <= s.topk) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float* const q = s.q + row.batch_row * s.q_stride;
    for (int key = first_key + warp; key < end_key; key += kScoreWarps) {
        const int64_t page = s.pages[row.first_page + key / kKeys];
        const Value* const k =
            static_cast<const Value*>(s.keys) + (page * kKeys + key % kKeys) * s.dim;
        float sum = 0;
        for (int head = 0; head < s.heads; ++head) {
            float dot = 0;
            for (int i = lane; i < s.dim; i += 32)
                dot = fmaf(q[head * s.dim + i], to_f32(k[i]), dot);
            dot = fmaxf(warp_sum(dot), 0.0f);
            sum = fmaf(s.weights[row.batch_row * s.weights_stride + head], dot, sum);
        }
        if (lane == 0) s.scores[blockIdx.y * s.scores_stride + key] = sum;
    }
}

// Of the threads before this one, those whose flag is set; `total`: of all.
__device__ unsigned count_before(unsigned* sums, bool flag, unsigned& total) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned set = __ballot_sync(~0u, flag);
    __syncthreads();  // others have read what was there
    if (lane == 0) sums[warp] = static_cast<unsigned>(__popc(set));
    __syncthreads();
    unsigned before = static_cast<unsigned>(__popc(set & ((1u << lane) - 1)));
    total = 0;
    for (unsigned w = 0; w < kChooseWarps; ++w) {
        if (w < warp) before += sums[w];
        total += sums[w];
    }
    return before;
}

// Sum over the threads before this one.
__device__ unsigned sum_before(unsigned* sums, unsigned value) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned sum = value;
#pragma unroll
    for (unsigned distance = 1; distance < 32; distance *= 2) {
        const unsigned other = __shfl_up_sync(~0u, sum, distance);
        if (lane >= distance) sum += other;
    }
    __syncthreads();  // others have read what was there
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    unsigned before = sum - value;
    for (unsigned w = 0; w < warp; ++w) before += sums[w];
    return before;
}

__global__ __launch_bounds__(kChooseThreads) void choose_keys(Selection s) {
    __shared__ unsigned digits[kDigits], sums[kChooseWarps];
    __shared__ unsigned found_digit, found_before;
    const SelectRow row = s.rows[blockIdx.x];
    if (row.num_keys <= s.topk) return;
    const int num_keys = row.num_keys, thread = static_cast<int>(threadIdx.x);
    const float* const scores = s.scores + blockIdx.x * s.scores_stride;

    // `lowest` becomes the topk-th highest; `num_equal`: how many that equal it are chosen.
    uint32_t lowest = 0;
    auto num_equal = static_cast<unsigned>(s.topk);
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = thread; i < kDigits; i += kChooseThreads) digits[i] = 0;
        __syncthreads();
        for (int key = thread; key < num_keys; key += kChooseThreads) {
            const uint32_t rank = rank_key(scores[key]);
            if (shift == 24 || rank >> (shift + 8) == lowest)
                atomicAdd(&digits[rank >> shift & (kDigits - 1)], 1u);
        }
        __syncthreads();
        // Threads take digits from the highest down.
        const int digit = kDigits - 1 - thread;
        const unsigned count = digit >= 0 ? digits[digit] : 0;
        const unsigned before = sum_before(sums, count);
        if (before < num_equal && before + count >= num_equal) {
            found_digit = static_cast<unsigned>(digit);
            found_before = before;
        }
        __syncthreads();
        lowest = lowest << 8 | found_digit;
        num_equal -= found_before;
        __syncthreads();
    }

    int32_t* const chosen = s.chosen + row.batch_row * s.chosen_stride;
    unsigned num_chosen = 0, num_seen = 0, total = 0;  // of those that equal it
    for (int begin = 0; begin < num_keys; begin += kChooseThreads) {
        const int key = begin + thread;
        const uint32_t rank = key < num_keys ? rank_key(scores[key]) : 0;
        const bool equal = key < num_keys && rank == lowest;
        const unsigned equal_before = num_seen + count_before(sums, equal, total);
        num_seen += total;
        const bool takes = key < num_keys && (rank > lowest || (equal && equal_before < num_equal));
        const unsigned at = num_chosen + count_before(sums, takes, total);
        num_chosen += total;
        if (takes) chosen[at] = key;
    }
}

void launch_score(const Selection& s, bool tensor_cores, bool bf16, int64_t num_rows,
                  int64_t most_keys, CUstream_st* stream) {
    LaunchShape shape{.grid = {static_cast<unsigned>(ceil_div(most_keys, kPagesAtOnce * kKeys)),
                               static_cast<unsigned>(num_rows)},
                      .block = {kScoreThreads}};
    if (!tensor_cores)
        return launch(bf16 ? score_keys_plain<uint16_t> : score_keys_plain<float>, shape, stream,
                      s);
    shape.shared_bytes = static_cast<size_t>(s.heads * (kPitch + 4) + 2 * kKeys * kPitch);
    launch(s.heads == 16   ? score_keys<1>
           : s.heads == 32 ? score_keys<2>
           : s.heads == 48 ? score_keys<3>
                           : score_keys<4>,
           shape, stream, s);
}

}  // namespace

// As of place_decode.
CudaKernels::PlacedSelection CudaKernels::place_selection(std::span<const SequenceRows> sequences,
                                                          int64_t first_row) {
    PlacedSelection placed;
    std::vector<SelectRow> rows;
    std::vector<int32_t> pages;
    for (const SequenceRows& sequence : sequences) {
        for (int64_t i = 0; i < sequence.num_rows; ++i)
            rows.push_back({.batch_row = static_cast<int32_t>(sequence.first_row + i - first_row),
                            .num_keys = static_cast<int32_t>(sequence.first_position + i + 1),
                            .first_page = static_cast<int32_t>(pages.size())});
        const int64_t used = ceil_div(sequence.end_position(), kPageTokens);
        FERRY_CHECK(std::ssize(sequence.pages) >= used, "{} pages for {} positions",
                    sequence.pages.size(), sequence.end_position());
        pages.insert(pages.end(), sequence.pages.begin(), sequence.pages.begin() + used);
        placed.most_keys = std::max(placed.most_keys, sequence.end_position());
    }
    placed.num_rows = std::ssize(rows);
    const int64_t page_bytes = placed.num_rows * ceil_div(form_.num_keys, kPageTokens) * 4;
    const auto* key = reinterpret_cast<const std::byte*>(sequences.data());
    placed.rows = static_cast<const SelectRow*>(
        step_arrays_.on_device(key + 3, std::as_bytes(std::span(rows))));
    placed.pages = static_cast<const int32_t*>(step_arrays_.on_device(
        key + 4, std::as_bytes(std::span(pages)), static_cast<size_t>(page_bytes)));
    return placed;
}

void CudaKernels::select_keys(const KeySelection& s) {
    const int64_t tokens = s.q.rows(), heads = s.q.dim(1), dim = s.q.dim(2);
    const int64_t topk = s.topk, at_once = s.scores.rows();
    check_shape(s.q, "q", DType::f32, {tokens, heads, dim});
    check_shape(s.weights, "weights", DType::f32, {tokens, heads});
    check_shape(s.keys, "keys", s.keys.dtype(), {s.keys.dim(0), kPageTokens, dim});
    check_shape(s.chosen, "chosen", DType::i32, {tokens, topk});
    const bool bf16 = s.keys.dtype() == DType::bf16;
    FERRY_CHECK(bf16 || s.keys.dtype() == DType::f32, "keys are {}", s.keys.describe());
    const PlacedSelection placed = place_selection(s.sequences, s.first_row);
    const int64_t most_keys = std::min(std::max(placed.most_keys, form_.num_keys), s.scores.dim(1));
    FERRY_CHECK(at_once > 0 && placed.most_keys <= most_keys, "scores of {} rows of {} keys: {}",
                at_once, placed.most_keys, s.scores.describe());
    if (most_keys <= topk) return;
    const bool tensor_cores = bf16 && dim == kDim && heads % 16 == 0 && heads <= kMostHeads &&
                              s.q.row_stride() % kFloatsPerVector == 0;
    Selection selection{.q = s.q.as<float>(),
                        .weights = s.weights.as<float>(),
                        .keys = s.keys.data(),
                        .scores = s.scores.as<float>(),
                        .chosen = s.chosen.as<int32_t>(),
                        .pages = placed.pages,
                        .heads = static_cast<int>(heads),
                        .dim = static_cast<int>(dim),
                        .topk = static_cast<int>(topk),
                        .q_stride = s.q.row_stride(),
                        .weights_stride = s.weights.row_stride(),
                        .scores_stride = s.scores.row_stride(),
                        .chosen_stride = s.chosen.row_stride()};
    const int64_t most_rows = std::min<int64_t>(at_once, kMaxGridYZ);
    for (int64_t begin = 0; begin < placed.num_rows; begin += most_rows) {
        const int64_t num = std::min(most_rows, placed.num_rows - begin);
        selection.rows = placed.rows + begin;
        launch_score(selection, tensor_cores, bf16, num, most_keys, stream());
        launch(choose_keys, {.grid = {static_cast<unsigned>(num)}, .block = {kChooseThreads}},
               stream(), selection);
    }
}

}  // namespace ferry
