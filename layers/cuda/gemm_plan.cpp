#include "layers/cuda/gemm_plan.h"

#include <fmt/core.h>

#include "layers/cuda/cublas_lt.h"

namespace ferry {

std::string GemmShape::describe() const {
    const char* name = inputs == Inputs::f32        ? "f32"
                       : inputs == Inputs::bf16     ? "bf16"
                       : inputs == Inputs::bf16_fp8 ? "bf16 by fp8"
                                                    : "fp8";
    return fmt::format("{} [{} x {}] x [{} x {}]{}{}", name, rows, in, out, in,
                       bf16_result ? " to bf16" : "",
                       batch > 1 ? fmt::format(", {} of them", batch) : "");
}

std::string GemmPlan::describe() const {
    return shape.describe() + ": " + (possible ? algorithm : "not offered by the library");
}

bool fp8_rules_allow(const GemmShape& s) {
    constexpr int64_t kBegin = 16;  // bytes, so values of fp8
    return s.rows % kFp8Multiple == 0 && s.out % kFp8Multiple == 0 && s.in % kBegin == 0 &&
           s.x_stride % kBegin == 0 && s.w_stride % kBegin == 0 &&
           s.result_bytes() * s.y_stride % kBegin == 0 && s.alignment == kBegin;
}

const GemmPlan& CublasLt::plan(const GemmShape& shape) {
    const auto found = plans_.find(shape);
    if (found != plans_.end()) return found->second;
    return plans_.emplace(shape, choose(shape)).first->second;
}

std::vector<const GemmPlan*> CublasLt::plans() const {
    std::vector<const GemmPlan*> all;
    for (const auto& [shape, plan] : plans_) all.push_back(&plan);
    return all;
}

}  // namespace ferry
