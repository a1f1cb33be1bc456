// Everything that Ferry asks of cuBLASLt. The library is opened when the first product is planned,
// so that Ferry also starts where it is not installed.
#pragma once
#include <map>
#include <mutex>
#include <vector>

#include "base/device_cuda.h"
#include "layers/cuda/gemm_plan.h"

namespace ferry {

class CublasLt {
  public:
    explicit CublasLt(CudaDevice& device);
    ~CublasLt();
    CublasLt(const CublasLt&) = delete;
    CublasLt& operator=(const CublasLt&) = delete;

    // How a product of this shape will be done: the library's first choice, asked for once. Throws
    // Error(usage) when the library cannot be opened.
    const GemmPlan& plan(const GemmShape& shape);
    // In the order of the device's stream. `plan` is possible and comes from this object.
    void run(const GemmPlan& plan, const GemmOperands& operands);

    std::vector<const GemmPlan*> plans() const;  // all so far, by shape

  private:
    struct Library;  // the opened library
    GemmPlan choose(const GemmShape& shape);

    CudaDevice& device_;
    std::unique_ptr<Library> library_;
    std::map<GemmShape, GemmPlan> plans_;
    Buffer workspace_;
};

}  // namespace ferry
