#include "tests/support/guarded_device.h"

#include <sys/mman.h>

#include <cstring>
#include <mutex>

namespace ferry {
namespace {

class GuardedDevice final : public Device {
  public:
    static GuardedDevice& instance() {
        static GuardedDevice device;
        return device;
    }
    DeviceType type() const override { return DeviceType::cuda; }
    std::string name() const override { return "guarded host memory"; }

    void* allocate(size_t size_bytes) override {
        const std::lock_guard lock(mutex_);
        void* data = base_ + used_;
        used_ += (size_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
        FERRY_CHECK(used_ <= kReservedBytes);
        if (num_open_ > 0) protect(PROT_READ | PROT_WRITE);
        return data;
    }
    void free(void* data, size_t size_bytes) noexcept override {
        if (size_bytes > 0) madvise(data, size_bytes, MADV_DONTNEED);  // addresses are not reused
    }
    void copy_from_host(void* device_data, const void* host_data, size_t size_bytes) override {
        FERRY_CHECK(!contains(host_data));
        const Open open;
        if (size_bytes > 0) std::memcpy(device_data, host_data, size_bytes);
    }
    void copy_to_host(void* host_data, const void* device_data, size_t size_bytes) override {
        FERRY_CHECK(!contains(host_data));
        const Open open;
        if (size_bytes > 0) std::memcpy(host_data, device_data, size_bytes);
    }
    void synchronize() override {}

    // The memory may be touched while one of these lives.
    struct Open {
        Open() { instance().change(1); }
        ~Open() { instance().change(-1); }
    };

  private:
    static constexpr size_t kReservedBytes = size_t{1} << 34;
    static constexpr size_t kPageBytes = 4096;

    GuardedDevice()
        : base_(static_cast<std::byte*>(mmap(nullptr, kReservedBytes, PROT_NONE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
        FERRY_CHECK(base_ != MAP_FAILED);
    }
    bool contains(const void* data) const { return data >= base_ && data < base_ + kReservedBytes; }
    void protect(int access) { FERRY_CHECK(used_ == 0 || mprotect(base_, used_, access) == 0); }
    void change(int by) {
        const std::lock_guard lock(mutex_);
        num_open_ += by;
        if (num_open_ == 0) protect(PROT_NONE);
        if (num_open_ == 1 && by == 1) protect(PROT_READ | PROT_WRITE);
    }

    std::byte* base_;
    size_t used_ = 0;
    int num_open_ = 0;
    std::mutex mutex_;
};

using Open = GuardedDevice::Open;

class GuardedKernels final : public Kernels {
  public:
    explicit GuardedKernels(int num_threads) : cpu_(make_cpu_kernels(num_threads)) {}
    Device& device() override { return GuardedDevice::instance(); }
    ThreadPool& threads() override { return cpu_->threads(); }

    // Packed weights are the kernels' own affair: they stay with the CPU's.
    Weight make_weight(const WeightSpec& spec) override { return cpu_->make_weight(spec); }
    int64_t packed_bytes(const WeightSpec& spec) const override { return cpu_->packed_bytes(spec); }
    void pack(Weight& weight, int64_t group, int64_t first_out, const Tensor& w,
              const Tensor* scales) override {
        cpu_->pack(weight, group, first_out, w, scales);
    }
    void unpack(const Weight& weight, int64_t group, const Tensor& w_f32) override {
        cpu_->unpack(weight, group, w_f32);
    }
    void gemm(const Tensor& x, const Weight& w, const Tensor& y, const Tensor* x_scales) override {
        const Open open;
        cpu_->gemm(x, w, y, x_scales);
    }
    void grouped_gemm(const Tensor& x, std::span<const int64_t> offsets, const Weight& w,
                      const Tensor& y, const Tensor* x_scales) override {
        const Open open;
        cpu_->grouped_gemm(x, offsets, w, y, x_scales);
    }
    void grouped_gemm(const Tensor& x, const int64_t* device_offsets, const Weight& w,
                      const Tensor& y, const Tensor* x_scales) override {
        const Open open;
        cpu_->grouped_gemm(x, device_offsets, w, y, x_scales);
    }
    void head_gemm(const Tensor& x, int64_t x_head_stride, const Weight& w,
                   const Tensor& y) override {
        const Open open;
        cpu_->head_gemm(x, x_head_stride, w, y);
    }
    void copy_head_columns(const Tensor& x, int64_t first_column, const Tensor& y) override {
        const Open open;
        cpu_->copy_head_columns(x, first_column, y);
    }
    void quantise_fp8(const Tensor& x, bool power_of_two_scales, const Tensor& q,
                      const Tensor& scales, const int64_t* num_rows) override {
        const Open open;
        cpu_->quantise_fp8(x, power_of_two_scales, q, scales, num_rows);
    }
    void tree_sum(const Tensor& parts, const Tensor& y) override {
        const Open open;
        cpu_->tree_sum(parts, y);
    }
    void fill_zero(const Tensor& y) override {
        const Open open;
        cpu_->fill_zero(y);
    }
    void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& y) override {
        const Open open;
        cpu_->gather_rows(x, rows, y);
    }
    void embed(std::span<const int32_t> tokens, const Tensor& table, const Tensor& y) override {
        const Open open;
        cpu_->embed(tokens, table, y);
    }
    void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) override {
        const Open open;
        cpu_->rms_norm(x, weight, eps, y);
    }
    void add_rms_norm(const Tensor& x, const Tensor& h, const Tensor& weight, float eps,
                      const Tensor& y) override {
        const Open open;
        cpu_->add_rms_norm(x, h, weight, eps, y);
    }
    void rms_norm_quantise(const Tensor& x, const Tensor& weight, float eps,
                           bool power_of_two_scales, const Tensor& q,
                           const Tensor& scales) override {
        const Open open;
        cpu_->rms_norm_quantise(x, weight, eps, power_of_two_scales, q, scales);
    }
    void silu_mul_quantise(const Tensor& gate_up, bool power_of_two_scales, const Tensor& q,
                           const Tensor& scales, const int64_t* num_rows) override {
        const Open open;
        cpu_->silu_mul_quantise(gate_up, power_of_two_scales, q, scales, num_rows);
    }
    void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps,
                    const Tensor& y) override {
        const Open open;
        cpu_->layer_norm(x, weight, bias, eps, y);
    }
    void add(const Tensor& x, const Tensor& y) override {
        const Open open;
        cpu_->add(x, y);
    }
    void silu_mul(const Tensor& gate_up, const Tensor& y, const int64_t* num_rows) override {
        const Open open;
        cpu_->silu_mul(gate_up, y, num_rows);
    }
    void rope(const Tensor& x, int64_t first_column, std::span<const int32_t> positions,
              const Tensor& table, bool interleave) override {
        const Open open;
        cpu_->rope(x, first_column, positions, table, interleave);
    }
    void write_cache(const Tensor& latent, std::span<const int64_t> slots,
                     const Tensor& cache) override {
        const Open open;
        cpu_->write_cache(latent, slots, cache);
    }
    void rope_write_cache(const Tensor& latent, std::span<const int32_t> positions,
                          const Tensor& table, bool interleave, std::span<const int64_t> slots,
                          const Tensor& cache) override {
        const Open open;
        cpu_->rope_write_cache(latent, positions, table, interleave, slots, cache);
    }
    void read_cache(const Tensor& cache, std::span<const int32_t> pages, int64_t first,
                    const Tensor& out) override {
        const Open open;
        cpu_->read_cache(cache, pages, first, out);
    }
    void mla_prefill(const PrefillAttention& attention) override {
        const Open open;
        cpu_->mla_prefill(attention);
    }
    void mla_decode(const DecodeAttention& attention) override {
        const Open open;
        cpu_->mla_decode(attention);
    }
    void select_keys(const KeySelection& selection) override {
        const Open open;
        cpu_->select_keys(selection);
    }
    void gate(const Tensor& scores, const Tensor* bias, const GateParams& params,
              const Tensor& experts, const Tensor& weights) override {
        const Open open;
        cpu_->gate(scores, bias, params, experts, weights);
    }
    void log_sum_exp(const Tensor& logits, const Tensor& lse, std::span<int32_t> argmax) override {
        const Open open;
        cpu_->log_sum_exp(logits, lse, argmax);
    }

  private:
    std::unique_ptr<Kernels> cpu_;
};

}  // namespace

std::unique_ptr<Kernels> make_guarded_kernels(int num_threads) {
    return std::make_unique<GuardedKernels>(num_threads);
}

}  // namespace ferry
