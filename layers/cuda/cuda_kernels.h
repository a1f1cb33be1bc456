// The CUDA backend. Each method is implemented in the file that kernels.h names (.cu).
//
// Tensors lie in the device's memory, host spans anywhere; every method gives its work to the
// device's stream and returns before it is done, unless it returns values to the host
// (log_sum_exp). Sums have a fixed order, which depends on the shape of a row and not on the number
// of rows: results are the same from run to run.
#pragma once
#include <array>
#include <map>
#include <string>
#include <vector>

#include "base/device_cuda.h"
#include "layers/cuda/cublas_lt.h"
#include "layers/cuda/mla_plan.h"
#include "layers/cuda/staged_upload.h"
#include "layers/cuda/step_arrays.h"
#include "layers/kernels.h"

namespace ferry {

class CudaKernels final : public Kernels {
  public:
    CudaKernels(CudaDevice& device, int num_threads);
    ~CudaKernels() override;

    Device& device() override { return device_; }
    ThreadPool& threads() override { return threads_; }

    void begin_step(const StepBatch& batch) override;
    std::unique_ptr<StepGraphs> make_step_graphs(const ModelConfig& model) override;
    std::unique_ptr<TensorParallel> make_tensor_parallel(std::unique_ptr<TensorParallel> host,
                                                         BlockTransport& blocks,
                                                         std::vector<int> members,
                                                         const TensorParallelSizes& sizes) override;
    DType quantised_dtype() const override { return DType::fp8_e4m3; }

    Weight make_weight(const WeightSpec& spec) override;
    int64_t packed_bytes(const WeightSpec& spec) const override;
    void pack(Weight& weight, int64_t group, int64_t first_out, const Tensor& w,
              const Tensor* scales) override;
    UploadTotals upload_totals() const override { return upload_.totals(); }
    void unpack(const Weight& weight, int64_t group, const Tensor& w_f32) override;
    void gemm(const Tensor& x, const Weight& w, const Tensor& y, const Tensor* x_scales) override;
    void grouped_gemm(const Tensor& x, std::span<const int64_t> offsets, const Weight& w,
                      const Tensor& y, const Tensor* x_scales) override;
    // In one launch. On Hopper fp8 rows are multiplied by fp8 weights as they are, and the tensor
    // cores keep some 13 bits of a sum of 128; else fp8 weights are widened in registers. The bits
    // of a row do not depend on how many rows its group has.
    void grouped_gemm(const Tensor& x, const int64_t* device_offsets, const Weight& w,
                      const Tensor& y, const Tensor* x_scales) override;
    void head_gemm(const Tensor& x, int64_t x_head_stride, const Weight& w,
                   const Tensor& y) override;
    void copy_head_columns(const Tensor& x, int64_t first_column, const Tensor& y) override;
    void quantise_fp8(const Tensor& x, bool power_of_two_scales, const Tensor& q,
                      const Tensor& scales, const int64_t* num_rows) override;
    void tree_sum(const Tensor& parts, const Tensor& y) override;

    void fill_zero(const Tensor& y) override;
    void embed(std::span<const int32_t> tokens, const Tensor& table, const Tensor& y) override;
    void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& y) override;
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
    std::unique_ptr<DeviceSampler> make_sampler(int64_t vocab_size, int64_t max_rows) override;

    // Host arrays on the device, in the order of the stream.
    StepArrays& step_arrays() { return step_arrays_; }
    // The stream to launch in; makes the device the calling thread's current one.
    CUstream_st* stream() const {
        device_.make_current();
        return device_.stream();
    }

    // y = x W_g^T with one matrix of w.
    void gemm_group(const Tensor& x, const Weight& w, int64_t group, const Tensor& y,
                    const Tensor* x_scales);
    // Memory that a kernel may use until the next one asks for the same. Grows; contents are lost.
    enum class Scratch { x, w, scales, argmax, attention, num };
    void* scratch(Scratch use, size_t size_bytes);

    // Launches from now on depend on the form and on nothing else, and step arrays belong to
    // `owner`; {} and 0: as usual.
    void use_form(const StepForm& form, uint64_t owner) {
        form_ = form;
        step_arrays_.use(owner);
    }
    CudaDevice& cuda_device() { return device_; }

    // How each product that was seen is computed, one line each.
    std::vector<std::string> describe_plans() const;

  private:
    // The plan of attention over `sequences`, with its arrays on the device.
    struct PlacedDecode {
        DecodePlan plan;
        const DecodeRow* rows = nullptr;
        const DecodeRow* chosen_rows = nullptr;
        const int32_t* pages = nullptr;
    };
    PlacedDecode place_decode(std::span<const SequenceRows> sequences, int64_t first_row,
                              int64_t topk);
    struct PlacedSelection {
        const SelectRow* rows = nullptr;
        const int32_t* pages = nullptr;
        int64_t num_rows = 0, most_keys = 0;
    };
    PlacedSelection place_selection(std::span<const SequenceRows> sequences, int64_t first_row);
    void pack_int4(Weight& weight, int64_t group, int64_t first_out, const Tensor& w,
                   const Tensor* scales);
    void multiply(const GemmShape& shape, const GemmOperands& operands);
    bool multiply_few_rows(const Tensor& x, const Tensor* x_scales, const Weight& w, int64_t group,
                           const Tensor& y);
    bool multiply_fp8(const Tensor& x, const Tensor& x_scales, const Weight& w, int64_t group,
                      const Tensor& y);
    template <bool kSilu>
    void quantise_rows(const Tensor& x, bool power_of_two_scales, const Tensor& q,
                       const Tensor& scales, const int64_t* num_rows);
    Tensor rotated_as_bf16(const Tensor& rope);
    const uint16_t* narrowed(const Tensor& x, int64_t heads, int64_t head_stride, int64_t columns);
    const uint16_t* widened(const Tensor& x, const Tensor& x_scales);
    const uint16_t* widened(const Weight& w, int64_t group);

    CudaDevice& device_;
    CudaDeviceInfo info_;
    ThreadPool threads_;  // of loading
    StepArrays step_arrays_;
    StagedUpload upload_;
    CublasLt cublas_;
    std::map<GemmShape, std::string> few_rows_plans_;  // as they are described
    std::array<Buffer, static_cast<size_t>(Scratch::num)> scratch_;
    bool keeps_scratch_ = false;  // when it grows: launches are repeated as they were recorded
    std::vector<Buffer> kept_scratch_;
    StepForm form_;
    DecodeShape decode_shape_;      // of the model, since its first decode
    int64_t index_topk_ = 0;        // of the model whose steps are repeated
    int64_t max_shared_bytes_ = 0;  // that a block may have
};

}  // namespace ferry
