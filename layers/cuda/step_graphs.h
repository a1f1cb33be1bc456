// Steps as CUDA graphs.
#pragma once
#include <list>

#include "base/device_cuda.h"
#include "layers/kernels.h"

namespace ferry {

class CudaKernels;

// Keeps the graphs that were last in use, while scratch memory is where it was when they were
// recorded; where everything else lies is in their keys, or stays for the life of what uses them.
class CudaStepGraphs final : public StepGraphs {
  public:
    explicit CudaStepGraphs(CudaKernels& kernels) : kernels_(kernels) {}

    void run(const StepKey& key, const std::function<void()>& launches) override;
    Counts counts() const override { return counts_; }

  private:
    static constexpr size_t kMostGraphs = 32;
    struct Entry {
        StepKey key;
        uint64_t generation = 0;  // of the memory, after its last step
        bool recorded = false;
        CudaGraph graph;
    };
    Entry* find(const StepKey& key);
    void launch(const StepKey& key, Entry* entry, const std::function<void()>& launches);

    CudaKernels& kernels_;
    std::list<Entry> entries_;  // the last used first
    Counts counts_;
};

}  // namespace ferry
