// Every kernel, declared once. layers/cpu/ and layers/cuda/ implement them in files of the same
// names.
//
// All kernels: tensors are row-major, activations f32. They lie in the memory of device(); spans
// lie in host memory. A GPU does its work in the order of the calls, but later:
// device().synchronize(), or a copy to the host, waits for it. Shapes are checked on entry
// (FERRY_CHECK). Zero rows are allowed and do nothing. On the CPU every output element is computed
// by one fixed sequence of operations: it depends on its inputs only, never on the number of rows,
// threads or vector width (DESIGN 4.1).
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "base/tensor.h"
#include "base/thread_pool.h"
#include "comm/tensor_parallel.h"
#include "comm/wire_rows.h"
#include "layers/model_config.h"
#include "layers/sampling.h"
#include "layers/stored_weights.h"

namespace ferry {

// ---- Weights
// ----------------------------------------------------------------------------------------------------------

struct WeightSpec {
    // f32, bf16, fp8_e4m3 (one f32 scale per block of 128 x 128) or int4x2 (one bf16 scale per
    // kInt4Group values of a row, which `in` is a multiple of; GPUs: for grouped_gemm only)
    DType dtype = DType::f32;
    int64_t groups = 1;  // experts or heads; 1 for an ordinary linear layer
    int64_t out = 0;
    int64_t in = 0;
};

// Matrices [groups][out, in] in the backend's own order ("packed"). Made by Kernels::make_weight,
// filled by pack.
struct Weight {
    WeightSpec spec;
    Buffer data;    // packed values
    Buffer scales;  // fp8 only: f32 [groups][ceil(out/128), ceil(in/128)], plain order

    // By group, instead of the two above (CPU): some groups are shared with other ranks.
    struct Group {
        Buffer data, scales;
    };
    std::vector<Group> apart = {};

    std::byte* group_data(int64_t group) const {
        if (!apart.empty()) return apart[static_cast<size_t>(group)].data.as<std::byte>();
        return data.as<std::byte>() + static_cast<int64_t>(data.size_bytes()) / spec.groups * group;
    }
    float* group_scales(int64_t group) const {
        if (!apart.empty()) return apart[static_cast<size_t>(group)].scales.as<float>();
        return scales.as<float>() +
               static_cast<int64_t>(scales.size_bytes() / sizeof(float)) / spec.groups * group;
    }
    // Bytes of values and scales that one use of all groups reads.
    int64_t size_bytes() const {
        size_t sum = data.size_bytes() + scales.size_bytes();
        for (const Group& group : apart) sum += group.data.size_bytes() + group.scales.size_bytes();
        return static_cast<int64_t>(sum);
    }
};

constexpr int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// What Kernels::pack has brought to a device with memory of its own, and the time that its callers
// spent with that, of all threads together.
struct UploadTotals {
    int64_t bytes = 0;
    double seconds = 0;
};

// ---- Attention over the latent cache
// ----------------------------------------------------------------------------------

constexpr int64_t kPageTokens =
    64;  // tokens of one latent-cache page, and the block of keys that attention sums at once

// Keys that decode sums on their own before merging: what threads share out of one long sequence. A
// constant, so that results do not depend on the number of threads.
constexpr int64_t kDecodeSplitTokens = 8 * kPageTokens;

// Where a row of no sequence is written to: nowhere. Such rows fill a step up that a GPU repeats
// (runtime/filled_step.h); they have position -1, and no CPU sees them.
constexpr int64_t kNoSlot = -1;

// Where keys and values of a prompt that is computed in chunks stay expanded from one chunk to the
// next, so that each expands its own rows only, and a prefix from one prompt to the next. Units of
// LayerCache::expanded, one a position, the layers' one after the other; only the leading layers
// where there is no room for all.
struct ExpandedPrompt {
    int64_t first_unit = 0;
    int64_t num_positions = 0;  // room in each of the layers
    int64_t num_layers = 0;     // 0: nowhere, a chunk expands all positions so far
    int64_t num_expanded = 0;   // leading positions that others have expanded before

    bool holds(int64_t layer) const { return layer < num_layers; }
    int64_t num_units() const { return num_positions * num_layers; }
};

// Rows of one sequence in a step. The latent cache already holds positions [0, first_position +
// num_rows).
struct SequenceRows {
    int64_t first_row = 0;             // in the step's batch
    int64_t num_rows = 0;              // consecutive positions
    int64_t first_position = 0;        // position of first_row in its sequence
    std::span<const int32_t> pages{};  // page of positions [64 i, 64 i + 64) at index i
    ExpandedPrompt expanded{};         // of prompt rows

    int64_t end_position() const { return first_position + num_rows; }
};

// How the expanded form has K and V rebuilt from latents (Mla): of so many heads at a time, which
// bounds their memory, and as what.
struct KvExpansion {
    int64_t heads_at_once = 8;
    DType dtype = DType::f32;  // or bf16
    // Rows of a prompt up to here take the expanded form, where the model chooses keys with those
    // that a row did not choose left out; rows behind take the absorbed form over what they chose.
    // At least index_topk of such a model.
    int64_t positions = std::numeric_limits<int64_t>::max();
};

struct PrefillAttention {
    // Queries [rows, heads, nope + rope] of the whole batch, rope applied.
    Tensor q;
    // Keys and values of ONE sequence, positions [0, first_position + num_rows): [positions, heads,
    // nope + v], as wkv_b makes them from the cached latents, f32 or as kv_expansion() says; and
    // the rotated part of the latents, which serves all heads, f32 or of the type of kv.
    Tensor kv;
    Tensor rope;  // [positions, rope]
    Tensor out;   // [rows, heads, v] of the whole batch
    SequenceRows rows;
    int64_t nope_dim = 0, rope_dim = 0, v_dim = 0;
    float scale = 1;
    // Of sparse attention, else empty: KeySelection::mask of the rows of the batch, of which those
    // of at most topk keys take all. CPU only.
    Tensor mask{};
    int64_t topk = 0;
};

struct DecodeAttention {
    Tensor q_latent;  // [rows, heads, kv_lora]: W_k^T q_nope
    Tensor q_rope;    // [rows, heads, rope]
    Tensor cache;     // one layer: [pages, kPageTokens, kv_lora + rope], f32 or bf16
    Tensor out;       // [rows, heads, kv_lora]
    std::span<const SequenceRows> sequences;  // rows of other forms are simply not listed
    // Of sparse attention, else empty: [rows, index_topk] i32, the positions that a row of more
    // keys attends to, as KeySelection has them. They are attended to as if they were all that
    // there is.
    Tensor chosen{};
    int64_t first_row = 0;  // row of the batch that row 0 of q_latent, q_rope and out is
    float scale = 1;

    bool is_sparse() const { return chosen.count() > 0; }
};

// Of each row the positions that it attends to (layers/indexer.h).
struct KeySelection {
    Tensor q;        // [rows, index heads, index_head_dim], rope applied
    Tensor weights;  // [rows, index heads]
    Tensor keys;     // one layer: [pages, kPageTokens, index_head_dim], f32 or bf16
    int64_t topk = 0;
    // Out: either. Of a row that has no more keys than topk all are chosen.
    Tensor chosen{};  // [rows, topk] i32, ascending
    Tensor mask{};    // [rows, 2 pages] i32: key i is chosen if bit i % 32 of word i / 32 is set
    Tensor scores;    // memory for it: [rows at once, positions] f32
    std::span<const SequenceRows> sequences;
    int64_t first_row = 0;  // row of the batch that row 0 of q, weights and chosen is
};

// ---- Gate
// -------------------------------------------------------------------------------------------------------------

struct GateParams {
    ScoreFunc score_func = ScoreFunc::softmax;
    int64_t topk = 1;
    int64_t num_groups = 1;
    int64_t num_kept_groups = 1;
    bool normalise = false;  // divide by (sum + 1e-20)
    float scaling_factor = 1;
};

// ---- Groups of rows
// ---------------------------------------------------------------------------------------------------

// Rows [offsets[g], offsets[g + 1]) belong to group g. On the device the host never learns them:
// then there may be more rows than offsets.back(), which stay as they are.
struct GroupOffsets {
    std::span<const int64_t> offsets;  // groups + 1
    bool on_device = false;            // else in host memory

    // For kernels that take one: how many rows there are, in the device's memory; null: all.
    const int64_t* num_rows() const {
        return on_device ? offsets.data() + offsets.size() - 1 : nullptr;
    }
};

// ---- Steps that are repeated
// ----------------------------------------------------------------------------------------------

// What the launches of a step that is repeated depend on, beside what lies in memory.
struct StepForm {
    int64_t num_rows = 0;  // with those that fill it up; 0: of a step that is of no such form
    int64_t num_keys = 0;  // at most, of a row

    bool operator==(const StepForm&) const = default;
};

// Graphs that are kept, those that were last in use.
constexpr size_t kMostStepGraphs = 16;

// A step whose work a device records and does again as a whole, instead of kernel by kernel (CUDA
// graphs): for steps that differ only in what lies in memory. What it does depends on the forms
// that it was given so far and on nothing else, so that ranks which go through the same forms
// launch, record and repeat together. Must not outlive the kernels.
class StepGraphs {
  public:
    virtual ~StepGraphs() = default;
    // Whether rows of so many keys can be a step that is repeated.
    virtual bool takes(std::span<const int64_t> num_keys) const = 0;
    // A step of that form comes: Kernels::begin_step for all of its batches, then run().
    virtual void begin(const StepForm& form) = 0;
    // Does what `launches` gives to the kernels, or did when the form was the same. The first time
    // of a form everything takes its place, the second time it is recorded.
    virtual void run(const std::function<void()>& launches) = 0;

    struct Counts {
        int64_t launched = 0;  // steps, kernel by kernel
        int64_t recorded = 0;  // and launched as a whole
        int64_t repeated = 0;
    };
    virtual Counts counts() const = 0;
};

// ---- Kernels
// ----------------------------------------------------------------------------------------------------------

struct StepBatch;      // batch.h
class BlockTransport;  // comm/block_transport.h

class Kernels {
  public:
    virtual ~Kernels() = default;
    virtual Device& device() = 0;
    virtual ThreadPool& threads() = 0;

    // Host arrays of a step. Kernels may be given any host span at any time. A GPU keeps a copy of
    // each, found again by where the span begins, and uploads it when it says something new: once
    // per step, not once per layer. begin_step brings the copies of a batch (or micro-batch) up to
    // date ahead of its first kernel; a step that is repeated needs it each time. Does nothing on
    // the CPU.
    virtual void begin_step(const StepBatch&) {}
    // Of that model. Null where steps are not repeated.
    virtual std::unique_ptr<StepGraphs> make_step_graphs(const ModelConfig& /*model*/) {
        return nullptr;
    }

    // Tensor parallelism whose rows lie in the memory of device() and go from GPU to GPU in the
    // order of its work, over kGroupChannel of `blocks` (tensor_parallel.cpp). members: world ranks
    // of the group in order. `host`: of the same group, tells the members' numbers of rows. Null
    // where the host can read the rows. Throws Error(usage) when sums have too many parts.
    virtual std::unique_ptr<TensorParallel> make_tensor_parallel(
        std::unique_ptr<TensorParallel> /*host*/, BlockTransport& /*blocks*/,
        std::vector<int> /*members*/, const TensorParallelSizes& /*sizes*/) {
        return nullptr;
    }

    // Linear (linear.cpp, gemm.cpp; linear_pack.cpp; quantise.cpp). make_weight allocates; `pack`
    // fills one group, or the output rows [first_out, first_out + w.rows()) of it, from plain [out,
    // in] of the same dtype in host memory; first_out and w.rows() are multiples of 128 except at
    // the end. `scales` (fp8): [ceil(rows/128), ceil(in/128)] f32.
    virtual Weight make_weight(const WeightSpec& spec) = 0;
    virtual int64_t packed_bytes(const WeightSpec& spec) const = 0;
    virtual void pack(Weight& weight, int64_t group, int64_t first_out, const Tensor& w,
                      const Tensor* scales) = 0;
    virtual UploadTotals upload_totals() const { return {}; }
    // The packed values back as plain f32 [out, in] in host memory (tests).
    virtual void unpack(const Weight& weight, int64_t group, const Tensor& w_f32) = 0;

    // On a GPU, products with bf16 weights round x to bf16; those with fp8 weights are fp8 by fp8
    // on Hopper and else widen both sides to bf16; sums are f32 in an order that may depend on m.
    //
    // x is f32, or row_dtype() of the weights' type and `in`: what gemm rounds such rows to in any
    // case, so that layers which share them need not do it each. Rows of that type begin at even
    // addresses of 4 bytes.
    virtual DType row_dtype(DType /*weights*/, int64_t /*in*/) const { return DType::f32; }
    // y = x, of that type. num_rows: as of quantise_fp8.
    virtual void round_rows(const Tensor& /*x*/, const Tensor& /*y*/,
                            const int64_t* /*num_rows*/ = nullptr) {
        FERRY_CHECK(false, "rows are rounded where they are multiplied");
    }
    // y[m, out] = x[m, in] W^T. One accumulation over k per element: acc = fma(x_k, w_k, acc), k
    // ascending from 0. fp8: one such accumulation per 128-block of k, then y = fma(block sum,
    // scale, y) block after block. x may be a column range (row stride). With x_scales [m,
    // ceil(in/128)] x holds what quantise_fp8 makes and the scale of a block is x_scale * w_scale.
    // On a GPU y may be bf16 too, rounded from the f32 sums.
    virtual void gemm(const Tensor& x, const Weight& w, const Tensor& y,
                      const Tensor* x_scales = nullptr) = 0;
    // Rows [offsets[g], offsets[g+1]) of x use group g: y = x W_g^T. offsets: groups + 1 entries.
    virtual void grouped_gemm(const Tensor& x, std::span<const int64_t> offsets, const Weight& w,
                              const Tensor& y, const Tensor* x_scales = nullptr) = 0;
    // The same with offsets [groups + 1] in the memory of device(): how many rows a group has is
    // not known to the host. The last offset may be less than x.rows(); what is behind it stays as
    // it is.
    virtual void grouped_gemm(const Tensor& x, const int64_t* device_offsets, const Weight& w,
                              const Tensor& y, const Tensor* x_scales = nullptr) = 0;
    // As the first, for rows in the form in which they travelled, which become f32 a block at a
    // time. CPU only.
    virtual void grouped_gemm_wire(const WireRows& /*x*/, std::span<const int64_t> /*offsets*/,
                                   const Weight& /*w*/, const Tensor& /*y*/) {
        FERRY_CHECK(false, "rows that travel to a GPU lie together there, as f32");
    }
    // Per head: y[m, h, out] = x[m, h, in] W_h^T; groups = heads. x and y rows may be strided,
    // heads too (x_head_stride elements between heads of x; y heads are contiguous).
    virtual void head_gemm(const Tensor& x, int64_t x_head_stride, const Weight& w,
                           const Tensor& y) = 0;
    // y[m, h, :] = x[m, h, first_column : first_column + y.dim(2)]; x [m, heads, head_dim]. On a
    // GPU y may be bf16 too, rounded.
    virtual void copy_head_columns(const Tensor& x, int64_t first_column, const Tensor& y) = 0;
    // fp8 activations (MODEL.md "Quantisation"): per row and 128 columns, scale = max(|x|,
    // 1e-4)/448 (rounded up to a power of two when asked); q = e4m3(x / scale), of
    // quantised_dtype(): values as f32 on the CPU, where q may be x, codes on a GPU.
    // num_rows, here and below: in the memory of device(), of so many leading rows only; null: of
    // all.
    virtual DType quantised_dtype() const { return DType::f32; }
    virtual void quantise_fp8(const Tensor& x, bool power_of_two_scales, const Tensor& q,
                              const Tensor& scales, const int64_t* num_rows = nullptr) = 0;
    // y = parts[0] + ... + parts[n-1] by halves: sum[0, n) = sum[0, n/2) + sum[n/2, n). parts: [n,
    // rows, dim].
    virtual void tree_sum(const Tensor& parts, const Tensor& y) = 0;

    // Elementwise and norms (elementwise.cpp, rms_norm.cpp).
    virtual void fill_zero(const Tensor& y) = 0;  // all bytes; y contiguous
    // y[i] = x[rows[i]].
    virtual void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& y) = 0;
    virtual void embed(std::span<const int32_t> tokens, const Tensor& table, const Tensor& y) = 0;
    // y = x / sqrt(mean(x^2) + eps) * weight. Sum of squares in 16 interleaved partial sums, then
    // by halves.
    virtual void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) = 0;
    // y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias; y may be x. Sums as of
    // rms_norm.
    virtual void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps,
                            const Tensor& y) = 0;
    virtual void add(const Tensor& x, const Tensor& y) = 0;  // y += x
    // h += x; y = rms_norm(h). The bits of add and rms_norm.
    virtual void add_rms_norm(const Tensor& x, const Tensor& h, const Tensor& weight, float eps,
                              const Tensor& y) = 0;
    // y[m, i] = silu(gate_up[m, i]) * gate_up[m, inter + i]; y f32, or of row_dtype(): rounded.
    virtual void silu_mul(const Tensor& gate_up, const Tensor& y,
                          const int64_t* num_rows = nullptr) = 0;
    // rms_norm and silu_mul whose result is quantised as quantise_fp8 does, without being stored.
    virtual void rms_norm_quantise(const Tensor& x, const Tensor& weight, float eps,
                                   bool power_of_two_scales, const Tensor& q,
                                   const Tensor& scales) = 0;
    virtual void silu_mul_quantise(const Tensor& gate_up, bool power_of_two_scales, const Tensor& q,
                                   const Tensor& scales, const int64_t* num_rows = nullptr) = 0;

    // RoPE (rope.cpp). table: [positions, r] f32, cos and sin interleaved (rope.h). Rotates r
    // columns of each head in place, from first_column on: x [m, heads, head_dim].
    virtual void rope(const Tensor& x, int64_t first_column, std::span<const int32_t> positions,
                      const Tensor& table, bool interleave) = 0;
    // Writes latent rows [m, kv_lora + rope] to their cache slots: slot = page * kPageTokens +
    // position % kPageTokens. cache: [pages, kPageTokens, kv_lora + rope], f32 or bf16 (rounded to
    // nearest even). Or rows and a cache of another width.
    virtual void write_cache(const Tensor& latent, std::span<const int64_t> slots,
                             const Tensor& cache) = 0;
    // Both in one: rope of latent rows [m, kv_lora + rope] as of one head, then write_cache, with
    // their bits. What is left in `latent` is not said.
    virtual void rope_write_cache(const Tensor& latent, std::span<const int32_t> positions,
                                  const Tensor& table, bool interleave,
                                  std::span<const int64_t> slots, const Tensor& cache) = 0;
    // Reads positions [first, first + n) of a sequence back as f32: out [n, kv_lora + rope].
    virtual void read_cache(const Tensor& cache, std::span<const int32_t> pages, int64_t first,
                            const Tensor& out) = 0;

    // MLA (mla_prefill.cpp, mla_decode.cpp). Keys are summed in blocks of kPageTokens at absolute
    // positions with a running maximum (FlashAttention-2 order), so results do not depend on
    // chunking. Decode does so within splits of kDecodeSplitTokens at absolute positions, and
    // merges the splits in order. Softmax in f32.
    virtual KvExpansion kv_expansion(const ModelConfig& /*config*/) const { return {}; }
    virtual void mla_prefill(const PrefillAttention& attention) = 0;
    virtual void mla_decode(const DecodeAttention& attention) = 0;
    // Sparse attention (select_keys.cpp). A score's heads are summed in 16 interleaved partial
    // sums, then by halves; equal scores go to the lower position.
    virtual void select_keys(const KeySelection& selection) = 0;

    // Gate (gate.cpp). scores [m, experts] = x W^T (from gemm); bias: [experts] f32 or null. Ties
    // go to the lower index. Out: experts [m, topk] i32 by falling choice, weights [m, topk] f32.
    virtual void gate(const Tensor& scores, const Tensor* bias, const GateParams& params,
                      const Tensor& experts, const Tensor& weights) = 0;

    // Head statistics (logits.cpp). Per row the log of the sum of exponentials and the arg-max
    // (lowest index on ties).
    virtual void log_sum_exp(const Tensor& logits, const Tensor& lse,
                             std::span<int32_t> argmax) = 0;

    // What chooses tokens where the logits lie, for at most max_rows rows at once; null where the
    // host can read them (runtime/sampler.h).
    virtual std::unique_ptr<DeviceSampler> make_sampler(int64_t /*vocab_size*/,
                                                        int64_t /*max_rows*/) {
        return nullptr;
    }
};

// Bits of a bf16 value in compressed weights, at most, of matrices with 512 inputs and more.
constexpr double kCompressedBits = 12.4;

struct CpuOptions {
    // Rows that bf16 weights multiply are rounded to bf16 too (if their length is even), and of
    // each pair of k the second product is added first. That is what the instruction for it does
    // (AVX512_BF16, twice the speed); where there is none, FMAs give the same bits, but for values
    // below the normal numbers, of which only rows' are zeros then too. Attention rounds its
    // queries, keys, probabilities and values alike (cpu/attention-inl.h).
    bool bf16_activations = false;
    // Products of rows so rounded are summed as AMX does (cpu/amx.h), by AMX where there is one;
    // elsewhere by FMAs, which takes longer than without. Attention is not.
    bool amx_sums = false;
    // Rows that int4 weights multiply are rounded to int8, with a scale for each 32 values, after
    // they were to bf16: sums of a group are whole numbers (cpu/gemm_int8.cpp). About twice as
    // fast.
    bool int8_activations = false;
    // bf16 weights are held in 12.25 bits a value, without loss: the same bits from a quarter less
    // memory, and faster where memory is what products wait for (compressed_panel.h). pack throws
    // Error(checkpoint) for weights that have too many different exponents.
    bool compress_weights = false;
    // If not null, pack does not throw for those but sets this, and what it packed is of no use.
    std::atomic<bool>* incompressible = nullptr;
};

// Whether the processor multiplies pairs of bf16 (vdpbf16ps), and adds them as two FMAs do, the
// second product of a pair first; tried before the first use.
bool uses_bf16_dots();
// Whether the processor has AMX and its sums are those of cpu/amx.h; tried before the first use.
bool uses_amx();

// Throws Error(usage) when the CPU lacks the vector instructions that the kernels need (AVX2 + FMA,
// or NEON).
std::unique_ptr<Kernels> make_cpu_kernels(int num_threads, const CpuOptions& options = {});

// Kernels of one GPU (base/device_cuda.h); the threads help to load weights. Throws Error(usage)
// when there is none, or CUDA was not built.
std::unique_ptr<Kernels> make_cuda_kernels(int ordinal, int num_threads = 1);

}  // namespace ferry
