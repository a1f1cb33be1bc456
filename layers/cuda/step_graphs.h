// Steps as CUDA graphs.
#pragma once
#include <list>

#include "base/device_cuda.h"
#include "layers/kernels.h"

namespace ferry {

class CudaKernels;

// Keeps the graphs of the forms that were last in use. The arrays of a form have places of their
// own, its launches depend on the form alone, and all other memory stays where it is, so that a
// graph is never out of date.
class CudaStepGraphs final : public StepGraphs {
  public:
    // `slot_limit`: of attention's partial results (mla_plan.h).
    CudaStepGraphs(CudaKernels& kernels, int64_t slot_limit)
        : kernels_(kernels), slot_limit_(slot_limit) {}

    bool takes(std::span<const int64_t> num_keys) const override;
    void begin(const StepForm& form) override;
    void run(const std::function<void()>& launches) override;
    Counts counts() const override { return counts_; }

  private:
    struct Entry {
        StepForm form;
        uint64_t id = 0;
        bool launched = false, recorded = false;
        CudaGraph graph;
    };

    CudaKernels& kernels_;
    int64_t slot_limit_;
    std::list<Entry> entries_;  // the last used first
    uint64_t last_id_ = 0;
    Counts counts_;
};

}  // namespace ferry
