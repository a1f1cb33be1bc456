#include "comm/exchange_kernels.h"

#include <algorithm>

#include "base/cuda_launch.h"

// Products and sums round one by one, as row_codec.cpp has them: the exchange gives the CPU's bits.
namespace ferry {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kScaleValues = static_cast<int>(kWireScaleBlock);

// ---- Blocks

__device__ __forceinline__ MessageHeader& header_of(std::byte* block) {
    return *reinterpret_cast<MessageHeader*>(block);
}
__device__ __forceinline__ const MessageHeader& header_of(const std::byte* block) {
    return *reinterpret_cast<const MessageHeader*>(block);
}
__device__ __forceinline__ const WireEntry* entries_of(const BlockFormat& f,
                                                       const std::byte* block) {
    return reinterpret_cast<const WireEntry*>(block + f.entries_offset);
}
// Counts as far as they can be true: a damaged header must not lead outside the block.
__device__ __forceinline__ int num_entries(const BlockFormat& f, const std::byte* block) {
    return max(0, min(header_of(block).num_entries, f.max_entries));
}

// ---- Values

// 1 where fp8 blocks have one scale: every lane of a warp holds four of 128 values.
__device__ __forceinline__ float scale_of(const float (&values)[4]) {
    float largest =
        fmaxf(fmaxf(fabsf(values[0]), fabsf(values[1])), fmaxf(fabsf(values[2]), fabsf(values[3])));
    for (int distance = kWarp / 2; distance >= 1; distance /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, distance));
    return __fdiv_rn(fmaxf(largest, 1e-4f), kFp8Max);
}

// One f32 row into `count` rows on the wire and their scales. All threads of the block; dim may be
// anything.
template <typename RowOf, typename ScalesOf>
__device__ void encode(const BlockFormat& f, const float* x, int count, RowOf row_of,
                       ScalesOf scales_of) {
    const int dim = f.dim;
    if (f.dtype == DType::fp8_e4m3) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        const int warp = static_cast<int>(threadIdx.x) / kWarp;
        for (int block = warp; block * kScaleValues < dim; block += kThreads / kWarp) {
            const int first = block * kScaleValues + lane * 4;
            float values[4];
            for (int j = 0; j < 4; ++j) values[j] = first + j < dim ? x[first + j] : 0.0f;
            const float scale = scale_of(values);
            uint8_t codes[4];
            for (int j = 0; j < 4; ++j)
                codes[j] =
                    __nv_cvt_float_to_fp8(__fdiv_rn(values[j], scale), __NV_SATFINITE, __NV_E4M3);
            for (int i = 0; i < count; ++i) {
                auto* to = reinterpret_cast<uint8_t*>(row_of(i));
                if (first + 4 <= dim)
                    *reinterpret_cast<uchar4*>(to + first) = {codes[0], codes[1], codes[2],
                                                              codes[3]};
                else
                    for (int j = 0; first + j < dim; ++j) to[first + j] = codes[j];
                if (lane == 0) scales_of(i)[block] = scale;
            }
        }
        return;
    }
    for (int i = static_cast<int>(threadIdx.x); i < dim; i += kThreads) {
        const float value = x[i];
        for (int j = 0; j < count; ++j) {
            if (f.dtype == DType::f32)
                reinterpret_cast<float*>(row_of(j))[i] = value;
            else
                reinterpret_cast<uint16_t*>(row_of(j))[i] =
                    __bfloat16_as_ushort(__float2bfloat16_rn(value));
        }
    }
}

__device__ __forceinline__ float e4m3_to_f32(uint8_t code) {
    const unsigned sign = static_cast<unsigned>(code & 0x80u) << 24, magnitude = code & 0x7fu;
    if (magnitude == 0x7fu) return __uint_as_float(0x7fc00000u | sign);
    const unsigned bits = magnitude < 8 ? __float_as_uint(static_cast<float>(magnitude) * 0x1p-9f)
                                        : (magnitude + (120u << 3)) << 20;
    return __uint_as_float(bits | sign);
}
// Neighbouring values of a row: four where rows are multiples of them, which begin on 16 bytes
// then.
template <int kWidth>
struct __align__(4 * kWidth) Values {
    float at[kWidth];
};
template <int kWidth>
struct __align__(2 * kWidth) Halves {
    uint16_t at[kWidth];
};
template <int kWidth>
struct __align__(kWidth) Codes {
    uint8_t at[kWidth];
};
template <int kWidth>
__device__ __forceinline__ Values<kWidth> values_at(const float* row, int i) {
    return *reinterpret_cast<const Values<kWidth>*>(row + i);
}
template <int kWidth>
__device__ __forceinline__ Values<kWidth> wire_values(const BlockFormat& f, const std::byte* row,
                                                      const float* scales, int i) {
    if (f.dtype == DType::f32) return values_at<kWidth>(reinterpret_cast<const float*>(row), i);
    Values<kWidth> values;
    if (f.dtype == DType::bf16) {
        const auto halves = *reinterpret_cast<const Halves<kWidth>*>(row + 2 * i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
            values.at[j] = __uint_as_float(static_cast<unsigned>(halves.at[j]) << 16);
    } else {
        const auto codes = *reinterpret_cast<const Codes<kWidth>*>(row + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
            values.at[j] = __fmul_rn(e4m3_to_f32(codes.at[j]), scales[i / kScaleValues]);
    }
    return values;
}
// f32 or bf16.
template <int kWidth>
__device__ __forceinline__ void store_wire(const BlockFormat& f, std::byte* row, int i,
                                           const Values<kWidth>& values) {
    if (f.dtype == DType::f32) {
        *reinterpret_cast<Values<kWidth>*>(row + 4 * i) = values;
        return;
    }
    Halves<kWidth> halves;
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
        halves.at[j] = __bfloat16_as_ushort(__float2bfloat16_rn(values.at[j]));
    *reinterpret_cast<Halves<kWidth>*>(row + 2 * i) = halves;
}
// sum + weight * values, or just the product: rounded one by one.
template <int kWidth>
__device__ __forceinline__ void add_weighted(Values<kWidth>& sum, float weight,
                                             const Values<kWidth>& values, bool first) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
        const float product = __fmul_rn(weight, values.at[j]);
        sum.at[j] = first ? product : __fadd_rn(sum.at[j], product);
    }
}

// body(width, i) for all of a row's values, in the threads of a block; rows of f32 are `stride`
// apart.
template <typename Body>
__device__ __forceinline__ void for_values(int dim, int64_t stride, Body&& body) {
    constexpr int kWidth = 4;
    const int thread = static_cast<int>(threadIdx.x);
    if (dim % kWidth == 0 && stride % kWidth == 0)
        for (int i = kWidth * thread; i < dim; i += kWidth * kThreads)
            body(std::integral_constant<int, kWidth>(), i);
    else
        for (int i = thread; i < dim; i += kThreads) body(std::integral_constant<int, 1>(), i);
}

// ---- Sums over the threads of a block, before each and in all

struct Scan {
    int before, total;
};
// `shared`: one int per warp and one more. Ends with a barrier.
__device__ Scan scan(int value, int* shared) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    int sum = value;
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const int other = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(distance));
        if (lane >= distance) sum += other;
    }
    if (lane == kWarp - 1) shared[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        int all = 0;
        for (int i = 0; i < kThreads / kWarp; ++i) {
            const int own = shared[i];
            shared[i] = all;
            all += own;
        }
        shared[kThreads / kWarp] = all;
    }
    __syncthreads();
    const Scan result{shared[warp] + sum - value, shared[kThreads / kWarp]};
    __syncthreads();
    return result;
}
constexpr int kScanInts = kThreads / kWarp + 1;

// ---- Dispatch

template <typename Params>
__device__ __forceinline__ int num_tokens_of(const Params& p) {
    return p.step != nullptr ? min(p.step->num_tokens, p.num_tokens) : p.num_tokens;
}

// A block per expert rank: numbers of its rows and entries, in order of tokens.
__global__ void plan_kernel(PackParams p) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    __shared__ int shared[kScanInts];
    const int rank = static_cast<int>(blockIdx.x);
    const int num_tokens = num_tokens_of(p);
    int rows = 0, entries = 0;
    for (int first = 0; first < num_tokens; first += kThreads) {
        const int token = first + static_cast<int>(threadIdx.x);
        const auto copy_of = [&](int k) {
            const int expert = p.experts[static_cast<int64_t>(token) * p.topk + k];
            const int begin = p.placement.first_copy[expert];
            const int copies = p.placement.first_copy[expert + 1] - begin;
            return begin + (p.attention_rank + token) % copies;
        };
        int num = 0;
        if (token < num_tokens)
            for (int k = 0; k < p.topk; ++k) num += p.placement.copy_rank[copy_of(k)] == rank;
        const Scan row = scan(num > 0 ? 1 : 0, shared), entry = scan(num, shared);
        for (int k = 0, nth = 0; num > 0 && k < p.topk; ++k) {
            const int copy = copy_of(k);
            if (p.placement.copy_rank[copy] != rank) continue;
            p.items[static_cast<int64_t>(token) * p.topk + k] = {
                .expert_rank = rank,
                .row = rows + row.before,
                .entry = entries + entry.before + nth,
                .slot = static_cast<uint16_t>(p.placement.copy_slot[copy]),
                .first = nth == 0};
            ++nth;
        }
        rows += row.total;
        entries += entry.total;
    }
    if (threadIdx.x == 0) {
        MessageHeader header = p.header;
        header.num_rows = rows;
        header.num_entries = entries;
        if (p.step != nullptr) {
            header.agree_any = p.step->agree_any;
            header.agree_max = p.step->agree_max;
            header.sequence += p.step->sequence;
        }
        header_of(p.blocks + rank * p.format.size_bytes) = header;
    }
}

// A block per token: its entries, and its row once for every rank that it goes to.
__global__ void pack_kernel(PackParams p) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    constexpr int kMaxTopk = 64;
    __shared__ int targets[kMaxTopk];  // items that bring the row
    __shared__ int num_targets;
    const int64_t token = blockIdx.x;
    if (token >= num_tokens_of(p)) return;
    const PlanItem* items = p.items + token * p.topk;
    const BlockFormat& f = p.format;
    const auto block_of = [&](const PlanItem& item) {
        return p.blocks + item.expert_rank * f.size_bytes;
    };
    if (threadIdx.x == 0) {
        num_targets = 0;
        for (int k = 0; k < p.topk; ++k)
            if (items[k].first) targets[num_targets++] = k;
    }
    for (int k = static_cast<int>(threadIdx.x); k < p.topk; k += kThreads)
        reinterpret_cast<WireEntry*>(block_of(items[k]) + f.entries_offset)[items[k].entry] = {
            items[k].row, items[k].slot, static_cast<uint16_t>(k), p.weights[token * p.topk + k]};
    __syncthreads();
    encode(
        f, p.x + token * p.x_stride, num_targets,
        [&](int i) {
            const PlanItem& item = items[targets[i]];
            return block_of(item) + f.rows_offset + item.row * f.row_bytes;
        },
        [&](int i) {
            const PlanItem& item = items[targets[i]];
            return reinterpret_cast<float*>(block_of(item) + f.scales_offset) +
                   item.row * f.row_scales;
        });
}

// ---- Expert side

// A block per slot: how many entries name it.
__global__ void count_kernel(UnpackParams p) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    __shared__ int shared[kScanInts];
    const int slot = static_cast<int>(blockIdx.x);
    int num = 0;
    for (int source = 0; source < p.num_sources; ++source) {
        const std::byte* block = p.blocks + source * p.format.size_bytes;
        const WireEntry* entries = entries_of(p.format, block);
        const int count = num_entries(p.format, block);
        for (int e = static_cast<int>(threadIdx.x); e < count; e += kThreads)
            num += entries[e].slot == slot;
    }
    const Scan sum = scan(num, shared);
    if (threadIdx.x == 0) {
        p.counts[slot] = sum.total;
        p.load[slot] += sum.total;
    }
}

// A block per slot: where its rows begin, and the row of each of its entries.
__global__ void place_kernel(UnpackParams p) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    __shared__ int shared[kScanInts];
    const int slot = static_cast<int>(blockIdx.x);
    int before = 0;
    for (int other = static_cast<int>(threadIdx.x); other < slot; other += kThreads)
        before += p.counts[other];
    int next = scan(before, shared).total;
    if (threadIdx.x == 0) {
        p.offsets[slot] = next;
        if (slot + 1 == p.num_slots) p.offsets[slot + 1] = next + p.counts[slot];
    }
    for (int source = 0; source < p.num_sources; ++source) {
        const std::byte* block = p.blocks + source * p.format.size_bytes;
        const WireEntry* entries = entries_of(p.format, block);
        const int count = num_entries(p.format, block);
        for (int first = 0; first < count; first += kThreads) {
            const int e = first + static_cast<int>(threadIdx.x);
            const bool mine = e < count && entries[e].slot == slot;
            const Scan place = scan(mine ? 1 : 0, shared);
            if (mine)
                p.position[static_cast<int64_t>(source) * p.format.max_entries + e] =
                    next + place.before;
            next += place.total;
        }
    }
}

// A block per (entry, source).
__global__ void unpack_kernel(UnpackParams p) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const BlockFormat& f = p.format;
    const std::byte* block = p.blocks + blockIdx.y * f.size_bytes;
    for (int e = static_cast<int>(blockIdx.x); e < num_entries(f, block);
         e += static_cast<int>(gridDim.x)) {
        const int row = entries_of(f, block)[e].row;
        const int64_t place = p.position[static_cast<int64_t>(blockIdx.y) * f.max_entries + e];
        if (row < 0 || row >= f.max_rows || place >= p.max_rows) continue;
        const std::byte* from = block + f.rows_offset + row * f.row_bytes;
        const float* scales =
            reinterpret_cast<const float*>(block + f.scales_offset) + row * f.row_scales;
        float* to = p.rows + place * f.dim;
        for_values(f.dim, f.dim, [&](auto width, int i) {
            *reinterpret_cast<Values<width>*>(to + i) = wire_values<width>(f, from, scales, i);
        });
    }
}

__device__ void write_reply_header(const ReplyParams& p, std::byte* reply, int num_rows) {
    MessageHeader header = header_of(p.request.blocks);
    header.flags = kWireReply;
    header.num_rows = num_rows;
    header.num_entries = 0;
    header.agree_any = 0;
    header.agree_max = 0;
    for (int source = 0; source < p.request.num_sources; ++source) {
        const MessageHeader& other =
            header_of(p.request.blocks + source * p.request.format.size_bytes);
        header.agree_any |= other.agree_any;
        header.agree_max = max(header.agree_max, other.agree_max);
    }
    header_of(reply) = header;
}

// A block per (entry, source). Reduced: the first entry of a row does the row.
__global__ void reply_kernel(ReplyParams p) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const BlockFormat& from = p.request.format;
    const BlockFormat& to = p.format;
    const std::byte* block = p.request.blocks + blockIdx.y * from.size_bytes;
    std::byte* reply = p.blocks + blockIdx.y * to.size_bytes;
    const int count = num_entries(from, block);
    const WireEntry* entries = entries_of(from, block);
    const int32_t* position =
        p.request.position + static_cast<int64_t>(blockIdx.y) * from.max_entries;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        write_reply_header(p, reply, p.reduced ? header_of(block).num_rows : count);
    const auto y_of = [&](int e) {
        const int64_t place = position[e] < p.request.max_rows ? position[e] : 0;
        return p.y + place * from.dim;
    };
    for (int e = static_cast<int>(blockIdx.x); e < count; e += static_cast<int>(gridDim.x)) {
        if (p.reduced && e > 0 && entries[e - 1].row == entries[e].row) continue;
        const int row = p.reduced ? entries[e].row : e;
        if (row < 0 || row >= to.max_rows) continue;
        std::byte* out = reply + to.rows_offset + row * to.row_bytes;
        for_values(to.dim, to.dim, [&](auto width, int i) {
            auto values = values_at<width>(y_of(e), i);
            if (p.reduced) {
                const auto own = values;
                add_weighted<width>(values, entries[e].weight, own, true);
                for (int next = e + 1; next < count && entries[next].row == row; ++next)
                    add_weighted<width>(values, entries[next].weight,
                                        values_at<width>(y_of(next), i), false);
            }
            store_wire<width>(to, out, i, values);
        });
    }
}

// ---- Combine

// A block per token. Exact: in order of k. Reduced: partial sums in order of expert ranks.
__global__ void combine_kernel(CombineParams p) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const BlockFormat& f = p.format;
    const int64_t token = blockIdx.x;
    const PlanItem* items = p.items + token * p.topk;
    const float* weights = p.weights + token * p.topk;
    float* out = p.out + token * p.out_stride;
    const auto row_of = [&](const PlanItem& item, int row) {
        return p.blocks + item.expert_rank * f.size_bytes + f.rows_offset + row * f.row_bytes;
    };
    const bool takes_part = token < num_tokens_of(p);
    for_values(f.dim, p.out_stride, [&](auto width, int i) {
        Values<width> sum{};
        if (!takes_part) {
            // its items are those of another step
        } else if (!p.reduced) {
            for (int k = 0; k < p.topk; ++k)
                add_weighted<width>(
                    sum, weights[k],
                    wire_values<width>(f, row_of(items[k], items[k].entry), nullptr, i), k == 0);
        } else {
            bool first = true;
            for (int last = -1;;) {
                int next = -1;
                for (int k = 0; k < p.topk; ++k)
                    if (items[k].first && items[k].expert_rank > last &&
                        (next < 0 || items[k].expert_rank < items[next].expert_rank))
                        next = k;
                if (next < 0) break;
                const auto values =
                    wire_values<width>(f, row_of(items[next], items[next].row), nullptr, i);
#pragma unroll
                for (int j = 0; j < width; ++j)
                    sum.at[j] = first ? values.at[j] : __fadd_rn(sum.at[j], values.at[j]);
                first = false;
                last = items[next].expert_rank;
            }
        }
        *reinterpret_cast<Values<width>*>(out + i) = sum;
    });
}

LaunchShape blocks_of(int64_t x, int64_t y = 1) {
    return {.grid = {.x = static_cast<unsigned>(x), .y = static_cast<unsigned>(y)},
            .block = {.x = kThreads}};
}

}  // namespace

void launch_plan(const PackParams& p, CUstream_st* stream) {
    launch_early(plan_kernel, blocks_of(p.num_ranks), stream, p);
}
void launch_pack(const PackParams& p, CUstream_st* stream) {
    if (p.num_tokens > 0) launch_early(pack_kernel, blocks_of(p.num_tokens), stream, p);
}
void launch_order(const UnpackParams& p, CUstream_st* stream) {
    if (p.num_slots == 0) return;
    launch_early(count_kernel, blocks_of(p.num_slots), stream, p);
    launch_early(place_kernel, blocks_of(p.num_slots), stream, p);
}
// Blocks take entries in turns: how many there are only the headers know, at most as many as fit.
unsigned entry_blocks(int max_entries) {
    constexpr int kMostBlocks = 1024;
    return static_cast<unsigned>(std::clamp(max_entries, 1, kMostBlocks));
}
void launch_unpack(const UnpackParams& p, CUstream_st* stream) {
    if (p.format.max_entries > 0)
        launch_early(unpack_kernel, blocks_of(entry_blocks(p.format.max_entries), p.num_sources),
                     stream, p);
}
void launch_reply(const ReplyParams& p, CUstream_st* stream) {
    launch_early(reply_kernel,
                 blocks_of(entry_blocks(p.request.format.max_entries), p.request.num_sources),
                 stream, p);
}
void launch_combine(const CombineParams& p, CUstream_st* stream) {
    if (p.num_tokens > 0) launch_early(combine_kernel, blocks_of(p.num_tokens), stream, p);
}
void launch_copy(void* to, const void* from, size_t size_bytes, CUstream_st* stream) {
    if (size_bytes > 0)
        check_cuda(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDefault, stream),
                   "copy memory on the GPU");
}
void launch_copy_rows(void* to, const void* from, size_t row_bytes, int64_t stride_bytes,
                      int64_t num_rows, CUstream_st* stream) {
    if (num_rows > 0)
        check_cuda(
            cudaMemcpy2DAsync(to, row_bytes, from, static_cast<size_t>(stride_bytes), row_bytes,
                              static_cast<size_t>(num_rows), cudaMemcpyDefault, stream),
            "copy rows on the GPU");
}

}  // namespace ferry
