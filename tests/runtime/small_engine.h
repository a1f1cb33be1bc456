// An engine over a small golden model on one rank, on the CPU or on an emulated GPU.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "runtime/engine.h"
#include "runtime/hf_model.h"
#include "runtime/rank_model.h"
#include "tests/support/golden_models.h"

namespace ferry {

inline constexpr int kMicroBatches = 2;
inline constexpr int64_t kMaxTokens = 64;  // of one step

struct SmallEngineOptions {
    const char* family = "v3";
    int64_t num_pages = 16;
    bool cuda_graphs = true;
};

class SmallEngine {
  public:
    explicit SmallEngine(std::unique_ptr<Kernels> kernels, const SmallEngineOptions& options = {})
        : source_(testing::golden_folder("models/") + options.family),
          kernels_(std::move(kernels)),
          transport_(make_self_transport()),
          blocks_(blocks_of(kernels_->device())),
          rank_(source_, *kernels_, {}, fabric(source_.config(), blocks_.get()), *transport_),
          engine_(*kernels_, rank_.model(), rank_.fabric(), rank_.experts(),
                  {.scheduler = {.max_batch = 8, .max_batch_tokens = kMaxTokens},
                   .num_pages = options.num_pages,
                   .max_context = 128,
                   .cuda_graphs = options.cuda_graphs},
                  {}, std::nullopt) {}

    Engine* operator->() { return &engine_; }
    const Exchange& exchange() { return rank_.fabric().exchange(); }
    int64_t first_moe_layer() const { return source_.config().n_dense_layers; }
    int64_t num_moe_layers() const {
        return source_.config().n_layers - source_.config().n_dense_layers;
    }
    std::vector<Completion> run(const std::vector<Request>& requests) {
        for (const Request& request : requests) engine_.submit(request);
        while (engine_.step()) {
        }
        std::vector<Completion> finished = engine_.take_finished();
        std::ranges::sort(finished, {}, &Completion::index);
        return finished;
    }

  private:
    static std::unique_ptr<BlockTransport> blocks_of(Device& device) {
        auto* gpu = dynamic_cast<CudaDevice*>(&device);
        return gpu != nullptr ? make_self_blocks(*gpu) : nullptr;
    }
    static FabricOptions fabric(const ModelConfig& config, BlockTransport* blocks) {
        FabricOptions options = single_rank_fabric(config, kMaxTokens, kMicroBatches);
        options.blocks = blocks;
        return options;
    }

    HfModel source_;
    std::unique_ptr<Kernels> kernels_;
    std::unique_ptr<Transport> transport_;
    std::unique_ptr<BlockTransport> blocks_;
    RankModel rank_;
    Engine engine_;
};

inline Request request(int64_t index, const SamplingParams& sampling) {
    Request made{.index = index,
                 .sample = 0,
                 .id = {fmt::format("r{}", index), false},
                 .prompt_tokens = {},
                 .sampling = sampling};
    for (int64_t i = 0; i < 3 + index; ++i)
        made.prompt_tokens.push_back(static_cast<int32_t>((7 + index * 31 + i * 17) % 256));
    return made;
}

}  // namespace ferry
