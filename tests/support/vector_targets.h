// Runs a test body under every instruction set of the kernels that this CPU has.
#pragma once
#include <gtest/gtest.h>

#include "layers/cpu/vector_targets.h"
//
#include <hwy/highway.h>

namespace ferry {

template <typename Body>
void for_each_vector_target(Body&& body) {
    for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        hwy::GetChosenTarget().Update(target);
        body();
    }
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace ferry
