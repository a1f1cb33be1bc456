#include "layers/cuda/step_graphs.h"

#include <algorithm>

#include "layers/cuda/cuda_kernels.h"

namespace ferry {

bool CudaStepGraphs::takes(std::span<const int64_t> num_keys) const {
    return decode_slots(num_keys) <= slot_limit_;
}

void CudaStepGraphs::begin(const StepForm& form) {
    const auto found = std::ranges::find(entries_, form, &Entry::form);
    if (found != entries_.end()) {
        entries_.splice(entries_.begin(), entries_, found);
    } else {
        if (entries_.size() == kMostStepGraphs) {
            kernels_.step_arrays().drop(entries_.back().id);
            entries_.pop_back();
        }
        Entry& entry = entries_.emplace_front();
        entry.form = form;
        entry.id = ++last_id_;
    }
    kernels_.use_form(form, entries_.front().id);
}

void CudaStepGraphs::run(const std::function<void()>& launches) {
    FERRY_CHECK(!entries_.empty(), "a step that did not begin");
    Entry& entry = entries_.front();
    if (!entry.launched) {
        launches();
        entry.launched = true;
        ++counts_.launched;
    } else if (!entry.recorded) {
        entry.graph = CudaGraph::record(kernels_.cuda_device(), launches);
        entry.recorded = true;
        ++counts_.recorded;
    } else {
        ++counts_.repeated;
    }
    if (entry.recorded) entry.graph.launch(kernels_.cuda_device());
    kernels_.use_form({}, 0);
    kernels_.step_arrays().end_step();
}

}  // namespace ferry
