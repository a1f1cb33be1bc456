// cuBLASLt's matrices are column-major. Row-major y = x W^T is, column by column, Y = W' x' with
// W' the transpose of a column-major [in x out] matrix: A = W (transposed), B = x, D = y, m = out,
// n = rows, k = in. Scales of x (1 x 128) lie along B's columns, those of W (128 x 128) in A.
#include "layers/cuda/cublas_lt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include "base/cuda_api.h"
#include "base/error.h"

namespace ferry {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA recommends for Hopper

void* open_library() {
    const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
        throw Error(ErrorKind::usage,
                    "{} cannot be opened ({}): device: cuda needs cuBLAS {}; add its folder to "
                    "LD_LIBRARY_PATH",
                    name, dlerror(), CUBLAS_VER_MAJOR);
    return library;
}

template <typename Function>
void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr) throw Error(ErrorKind::usage, "cuBLASLt has no {}", name);
}

}  // namespace

struct CublasLt::Library {
    void* handle_of_library = open_library();
    cublasLtHandle_t handle = nullptr;

    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtGetStatusString) status_string;
    decltype(&cublasLtMatmul) matmul;
    decltype(&cublasLtMatmulDescCreate) desc_create;
    decltype(&cublasLtMatmulDescDestroy) desc_destroy;
    decltype(&cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&cublasLtMatrixLayoutCreate) layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&cublasLtMatrixLayoutSetAttribute) layout_set;
    decltype(&cublasLtMatmulPreferenceCreate) preference_create;
    decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
    decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
    decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
    decltype(&cublasLtMatmulAlgoConfigGetAttribute) config_get;

    Library() {
        find(handle_of_library, "cublasLtCreate", create);
        find(handle_of_library, "cublasLtDestroy", destroy);
        find(handle_of_library, "cublasLtGetStatusString", status_string);
        find(handle_of_library, "cublasLtMatmul", matmul);
        find(handle_of_library, "cublasLtMatmulDescCreate", desc_create);
        find(handle_of_library, "cublasLtMatmulDescDestroy", desc_destroy);
        find(handle_of_library, "cublasLtMatmulDescSetAttribute", desc_set);
        find(handle_of_library, "cublasLtMatrixLayoutCreate", layout_create);
        find(handle_of_library, "cublasLtMatrixLayoutDestroy", layout_destroy);
        find(handle_of_library, "cublasLtMatrixLayoutSetAttribute", layout_set);
        find(handle_of_library, "cublasLtMatmulPreferenceCreate", preference_create);
        find(handle_of_library, "cublasLtMatmulPreferenceDestroy", preference_destroy);
        find(handle_of_library, "cublasLtMatmulPreferenceSetAttribute", preference_set);
        find(handle_of_library, "cublasLtMatmulAlgoGetHeuristic", heuristic);
        find(handle_of_library, "cublasLtMatmulAlgoConfigGetAttribute", config_get);
        check(create(&handle), "start");
    }
    ~Library() {
        destroy(handle);
        dlclose(handle_of_library);
    }

    void check(cublasStatus_t status, const char* what) const {
        if (status != CUBLAS_STATUS_SUCCESS)
            throw Error(
                status == CUBLAS_STATUS_ALLOC_FAILED ? ErrorKind::memory : ErrorKind::communication,
                "cuBLASLt: {}: {}", what, status_string(status));
    }
};

namespace {

// What a plan keeps: descriptors for its launches.
template <typename Library>
struct Descriptors {
    const Library& library;
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
    cublasLtMatmulAlgo_t algorithm{};

    explicit Descriptors(const Library& lib) : library(lib) {}
    ~Descriptors() {
        if (d != nullptr) library.layout_destroy(d);
        if (b != nullptr) library.layout_destroy(b);
        if (a != nullptr) library.layout_destroy(a);
        if (operation != nullptr) library.desc_destroy(operation);
    }
    Descriptors(const Descriptors&) = delete;
    Descriptors& operator=(const Descriptors&) = delete;

    template <typename T>
    void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
        library.check(library.desc_set(operation, attribute, &value, sizeof(value)),
                      "describe a product");
    }
    cublasLtMatrixLayout_t make_layout(cudaDataType_t type, int64_t rows, int64_t columns,
                                       int64_t stride, int64_t batch, int64_t batch_stride) {
        cublasLtMatrixLayout_t layout = nullptr;
        library.check(library.layout_create(&layout, type, static_cast<uint64_t>(rows),
                                            static_cast<uint64_t>(columns), stride),
                      "describe a matrix");
        if (batch > 1) {
            const auto count = static_cast<int32_t>(batch);
            library.check(library.layout_set(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                             sizeof(count)),
                          "describe a batch");
            library.check(library.layout_set(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                             &batch_stride, sizeof(batch_stride)),
                          "describe a batch");
        }
        return layout;
    }
};

// The library's name for what it will run.
template <typename Library>
std::string name_algorithm(const Library& library, const cublasLtMatmulHeuristicResult_t& found) {
    const auto value = [&](cublasLtMatmulAlgoConfigAttributes_t attribute) {
        int32_t number = -1;
        size_t written = 0;
        library.config_get(&found.algo, attribute, &number, sizeof(number), &written);
        return number;
    };
    return fmt::format(
        "algorithm {}, tile {}, stages {}, split-k {}, {:.2f} waves, workspace {} KiB",
        value(CUBLASLT_ALGO_CONFIG_ID), value(CUBLASLT_ALGO_CONFIG_TILE_ID),
        value(CUBLASLT_ALGO_CONFIG_STAGES_ID), value(CUBLASLT_ALGO_CONFIG_SPLITK_NUM),
        static_cast<double>(found.wavesCount), found.workspaceSize >> 10);
}

}  // namespace

CublasLt::CublasLt(CudaDevice& device) : device_(device) {}

CublasLt::~CublasLt() {
    plans_.clear();  // before the library
}

GemmPlan CublasLt::choose(const GemmShape& shape) {
    GemmPlan plan;
    plan.shape = shape;
    const bool fp8 = shape.inputs == GemmShape::Inputs::fp8;
    if (shape.inputs == GemmShape::Inputs::bf16_fp8 || (fp8 && !fp8_rules_allow(shape)))
        return plan;
    device_.make_current();
    if (library_ == nullptr) {
        library_ = std::make_unique<Library>();
        workspace_ = Buffer(device_, kWorkspaceBytes);
    }
    const Library& library = *library_;
    auto descriptors = std::make_shared<Descriptors<Library>>(library);
    Descriptors<Library>& d = *descriptors;
    const cudaDataType_t type = shape.inputs == GemmShape::Inputs::f32    ? CUDA_R_32F
                                : shape.inputs == GemmShape::Inputs::bf16 ? CUDA_R_16BF
                                                                          : CUDA_R_8F_E4M3;
    library.check(library.desc_create(&d.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                  "describe a product");
    d.set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    d.set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    if (fp8) {
        d.set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
        d.set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
        // Only to be looked at: launches set their own.
        d.set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, workspace_.data());
        d.set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, workspace_.data());
    }
    d.a =
        d.make_layout(type, shape.in, shape.out, shape.w_stride, shape.batch, shape.w_batch_stride);
    d.b = d.make_layout(type, shape.in, shape.rows, shape.x_stride, shape.batch,
                        shape.x_batch_stride);
    d.d = d.make_layout(shape.bf16_result ? CUDA_R_16BF : CUDA_R_32F, shape.out, shape.rows,
                        shape.y_stride, shape.batch, shape.y_batch_stride);

    cublasLtMatmulPreference_t preference = nullptr;
    library.check(library.preference_create(&preference), "describe a preference");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
        library.check(library.preference_set(preference, attribute, &value, sizeof(value)),
                      "describe a preference");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    // Parts of a split sum are added in a fixed order: never in place as they come.
    prefer(
        CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE});
    const auto alignment = static_cast<uint32_t>(shape.alignment);
    for (auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
        prefer(attribute, alignment);
    cublasLtMatmulHeuristicResult_t found{};
    int num_found = 0;
    const cublasStatus_t status = library.heuristic(library.handle, d.operation, d.a, d.b, d.d, d.d,
                                                    preference, 1, &found, &num_found);
    library.preference_destroy(preference);

    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return plan;
    library.check(status, "choose an algorithm");
    if (num_found == 0 || found.state != CUBLAS_STATUS_SUCCESS) return plan;
    plan.possible = true;
    plan.algorithm = name_algorithm(library, found);
    plan.workspace_bytes = found.workspaceSize;
    d.algorithm = found.algo;
    plan.descriptor_data = std::move(descriptors);
    return plan;
}

void CublasLt::run(const GemmPlan& plan, const GemmOperands& operands) {
    FERRY_CHECK(plan.possible, "{}", plan.describe());
    const Library& library = *library_;
    auto& d = *static_cast<Descriptors<Library>*>(plan.descriptor_data.get());
    if (plan.shape.inputs == GemmShape::Inputs::fp8) {
        d.set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, operands.w_scales);
        d.set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, operands.x_scales);
    }
    const float one = 1, zero = 0;
    library.check(library.matmul(library.handle, d.operation, &one, operands.w, d.a, operands.x,
                                 d.b, &zero, operands.y, d.d, operands.y, d.d, &d.algorithm,
                                 workspace_.data(), workspace_.size_bytes(), device_.stream()),
                  "multiply");
}

}  // namespace ferry
