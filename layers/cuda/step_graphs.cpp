#include "layers/cuda/step_graphs.h"

#include <algorithm>

#include "layers/cuda/cuda_kernels.h"

namespace ferry {

// Moves the entry to the front; null when there is none.
CudaStepGraphs::Entry* CudaStepGraphs::find(const StepKey& key) {
    if (std::ranges::find(key, kNeverRepeated) != key.end()) return nullptr;
    const auto entry = std::ranges::find(entries_, key, &Entry::key);
    if (entry == entries_.end()) return nullptr;
    entries_.splice(entries_.begin(), entries_, entry);
    return &entries_.front();
}

void CudaStepGraphs::run(const StepKey& key, const std::function<void()>& launches) {
    Entry* entry = find(key);
    if (entry == nullptr || entry->generation != kernels_.memory_generation()) {
        launch(key, entry, launches);
    } else if (!entry->recorded) {
        entry->graph = CudaGraph::record(kernels_.cuda_device(), launches);
        entry->recorded = true;
        ++counts_.recorded;
    } else {
        ++counts_.repeated;
    }
    if (entry != nullptr && entry->recorded) entry->graph.launch(kernels_.cuda_device());
    kernels_.step_arrays().end_step();
}

// Kernel by kernel; from now on they have all that they need.
void CudaStepGraphs::launch(const StepKey& key, Entry* entry,
                            const std::function<void()>& launches) {
    launches();
    ++counts_.launched;
    if (std::ranges::find(key, kNeverRepeated) != key.end()) return;
    if (entry == nullptr) {
        if (entries_.size() == kMostGraphs) entries_.pop_back();
        entry = &entries_.emplace_front();
        entry->key = key;
    }
    entry->graph = {};
    entry->recorded = false;
    entry->generation = kernels_.memory_generation();
}

}  // namespace ferry
