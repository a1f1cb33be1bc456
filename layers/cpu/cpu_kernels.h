// The CPU backend. Each method is implemented in the file that kernels.h names.
#pragma once
#include <memory>
#include <vector>

#include "layers/cpu/gemm.h"
#include "layers/kernels.h"

namespace ferry {

// Throws Error(usage) unless the set (bits of Highway's targets) has one that the kernels can use.
void check_vector_instructions(int64_t highway_targets);

class CpuKernels : public Kernels {
  public:
    explicit CpuKernels(int num_threads, const CpuOptions& options = {})
        : threads_(num_threads), options_(options) {}

    Device& device() override { return cpu_device(); }
    ThreadPool& threads() override { return threads_; }

    Weight make_weight(const WeightSpec& spec) override;
    int64_t packed_bytes(const WeightSpec& spec) const override;
    void pack(Weight& weight, int64_t group, int64_t first_out, const Tensor& w,
              const Tensor* scales) override;
    void unpack(const Weight& weight, int64_t group, const Tensor& w_f32) override;
    DType row_dtype(DType weights, int64_t in) const override {
        return options_.bf16_activations && rows_as(weights) == DType::bf16 && in % 2 == 0
                   ? DType::bf16
                   : DType::f32;
    }
    void round_rows(const Tensor& x, const Tensor& y, const int64_t* num_rows) override;
    void gemm(const Tensor& x, const Weight& w, const Tensor& y, const Tensor* x_scales) override;
    void grouped_gemm(const Tensor& x, std::span<const int64_t> offsets, const Weight& w,
                      const Tensor& y, const Tensor* x_scales) override;
    void grouped_gemm(const Tensor& x, const int64_t* device_offsets, const Weight& w,
                      const Tensor& y, const Tensor* x_scales) override;
    void grouped_gemm_wire(const WireRows& x, std::span<const int64_t> offsets, const Weight& w,
                           const Tensor& y) override;
    void head_gemm(const Tensor& x, int64_t x_head_stride, const Weight& w,
                   const Tensor& y) override;
    void copy_head_columns(const Tensor& x, int64_t first_column, const Tensor& y) override;
    void quantise_fp8(const Tensor& x, bool power_of_two_scales, const Tensor& q,
                      const Tensor& scales, const int64_t* num_rows) override;
    void tree_sum(const Tensor& parts, const Tensor& y) override;

    void fill_zero(const Tensor& y) override;
    void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& y) override;
    void embed(std::span<const int32_t> tokens, const Tensor& table, const Tensor& y) override;
    void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) override;
    void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps,
                    const Tensor& y) override;
    void add(const Tensor& x, const Tensor& y) override;
    void silu_mul(const Tensor& gate_up, const Tensor& y, const int64_t* num_rows) override;
    void add_rms_norm(const Tensor& x, const Tensor& h, const Tensor& weight, float eps,
                      const Tensor& y) override;
    void rms_norm_quantise(const Tensor& x, const Tensor& weight, float eps,
                           bool power_of_two_scales, const Tensor& q,
                           const Tensor& scales) override;
    void silu_mul_quantise(const Tensor& gate_up, bool power_of_two_scales, const Tensor& q,
                           const Tensor& scales, const int64_t* num_rows) override;

    void rope(const Tensor& x, int64_t first_column, std::span<const int32_t> positions,
              const Tensor& table, bool interleave) override;
    void write_cache(const Tensor& latent, std::span<const int64_t> slots,
                     const Tensor& cache) override;
    void rope_write_cache(const Tensor& latent, std::span<const int32_t> positions,
                          const Tensor& table, bool interleave, std::span<const int64_t> slots,
                          const Tensor& cache) override;
    void read_cache(const Tensor& cache, std::span<const int32_t> pages, int64_t first,
                    const Tensor& out) override;

    KvExpansion kv_expansion(const ModelConfig& config) const override;
    void mla_prefill(const PrefillAttention& attention) override;
    void mla_decode(const DecodeAttention& attention) override;
    void select_keys(const KeySelection& selection) override;

    void gate(const Tensor& scores, const Tensor* bias, const GateParams& params,
              const Tensor& experts, const Tensor& weights) override;
    void log_sum_exp(const Tensor& logits, const Tensor& lse, std::span<int32_t> argmax) override;

  private:
    // Whether such weights lie in compressed panels (compressed_panel.h).
    bool compresses(const WeightSpec& spec) const {
        return options_.compress_weights && spec.dtype == DType::bf16;
    }
    int64_t bytes_of_panel(const WeightSpec& spec) const;
    GemmStrides strides_for(const WeightSpec& spec) const {
        return {.rounds_rows = row_dtype(spec.dtype, spec.in) == DType::bf16,
                .amx_sums = options_.amx_sums,
                .compressed = compresses(spec),
                .int8_rows = options_.int8_activations};
    }
    Buffer take_memory(size_t num_bytes);
    void add_gemm_rows(GemmRows rows, const GemmStrides& strides);
    void run_gemm(const Weight& weight, const GemmStrides& strides);

    ThreadPool threads_;
    CpuOptions options_;
    std::shared_ptr<Buffer> block_;  // of small weights, and how much of it is given out
    size_t block_used_ = 0;
    std::vector<GemmRows> gemm_rows_;  // of the call in progress; kept so that it rarely grows
};

}  // namespace ferry
