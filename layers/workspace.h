// Memory of intermediate activations: one block, handed out and taken back like a stack. Steps
// never allocate.
#pragma once
#include "base/buffer.h"
#include "layers/numerics.h"

namespace ferry {

class Workspace {
  public:
    Workspace(Device& device, size_t size_bytes, const Numerics& numerics)
        : buffer_(device, size_bytes), numerics_(numerics) {}

    // Uninitialised memory, valid until the innermost Scope ends. Running out is a broken
    // invariant: sizes follow from the largest step (Transformer::workspace_bytes).
    Tensor take(DType dtype, std::initializer_list<int64_t> shape) {
        const Tensor view(static_cast<std::byte*>(buffer_.data()) + used_, dtype, shape);
        const size_t bytes = static_cast<size_t>(view.count() * size_bytes(dtype));
        used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
        peak_ = std::max(peak_, used_);
        FERRY_CHECK(used_ <= buffer_.size_bytes(), "workspace of {} bytes is too small for {}",
                    buffer_.size_bytes(), view.describe());
        return view;
    }

    const Numerics& numerics() const { return numerics_; }
    bool quantises(DType weight) const {
        return numerics_.fp8_activations && weight == DType::fp8_e4m3;
    }
    size_t peak_bytes() const { return peak_; }

    // Gives back what was taken since.
    class Scope {
      public:
        explicit Scope(Workspace& workspace) : workspace_(workspace), used_(workspace.used_) {}
        ~Scope() { workspace_.used_ = used_; }
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;

      private:
        Workspace& workspace_;
        size_t used_;
    };

  private:
    static constexpr size_t kAlignment = 256;

    Buffer buffer_;
    Numerics numerics_;
    size_t used_ = 0;
    size_t peak_ = 0;
};

}  // namespace ferry
