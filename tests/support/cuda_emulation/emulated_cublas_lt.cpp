// layers/cuda/cublas_lt.h on the emulated machine: plain loops, in the order of the stream. fp8 is
// offered where the emulated GPU is a Hopper.
#include "base/cuda_api.h"
#include "base/dtype.h"
#include "layers/cuda/cublas_lt.h"
#include "options.h"

namespace ferry {

struct CublasLt::Library {};

namespace {

float element(const GemmShape& shape, const void* data, int64_t index) {
    switch (shape.inputs) {
        case GemmShape::Inputs::f32:
            return static_cast<const float*>(data)[index];
        case GemmShape::Inputs::bf16:
            return bf16_to_f32(static_cast<const uint16_t*>(data)[index]);
        default:
            return fp8_e4m3_to_f32(static_cast<const uint8_t*>(data)[index]);
    }
}

// k ascending; of fp8 block after block of 128, each times its scales.
float dot(const GemmShape& s, const GemmOperands& o, int64_t batch, int64_t row, int64_t column) {
    const int64_t x = batch * s.x_batch_stride + row * s.x_stride;
    const int64_t w = batch * s.w_batch_stride + column * s.w_stride;
    const int64_t scale_stride = (s.in + 511) / 512 * 4;
    float sum = 0, block = 0;
    for (int64_t k = 0; k < s.in; ++k) {
        block = std::fma(element(s, o.x, x + k), element(s, o.w, w + k), block);
        const bool ends = k + 1 == s.in || (s.inputs == GemmShape::Inputs::fp8 && k % 128 == 127);
        if (!ends) continue;
        const float scale = s.inputs == GemmShape::Inputs::fp8
                                ? o.x_scales[k / 128 * s.rows + row] *
                                      o.w_scales[column / 128 * scale_stride + k / 128]
                                : 1;
        sum = std::fma(block, scale, sum);
        block = 0;
    }
    return sum;
}

}  // namespace

CublasLt::CublasLt(CudaDevice& device) : device_(device) {}
CublasLt::~CublasLt() = default;

GemmPlan CublasLt::choose(const GemmShape& shape) {
    GemmPlan plan;
    plan.shape = shape;
    plan.algorithm = "plain loops";
    plan.possible = shape.inputs != GemmShape::Inputs::fp8 ||
                    (cuda_emulation::options().capability == 90 && fp8_rules_allow(shape));
    return plan;
}

void CublasLt::run(const GemmPlan& plan, const GemmOperands& operands) {
    FERRY_CHECK(plan.possible, "{}", plan.describe());
    const auto work = [s = plan.shape, o = operands](int64_t batch, int64_t row) {
        for (int64_t column = 0; column < s.out; ++column) {
            const int64_t at = batch * s.y_batch_stride + row * s.y_stride + column;
            const float value = dot(s, o, batch, row, column);
            if (s.bf16_result)
                static_cast<uint16_t*>(o.y)[at] = f32_to_bf16(value);
            else
                static_cast<float*>(o.y)[at] = value;
        }
    };
    cuda_emulation::submit(device_.stream(), [work, s = plan.shape] {
        for (int64_t batch = 0; batch < s.batch; ++batch)
            for (int64_t row = 0; row < s.rows; ++row) work(batch, row);
    });
}

}  // namespace ferry
