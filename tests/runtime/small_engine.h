// A small golden model on one rank, on the CPU or on an emulated GPU, and an engine over it.
#pragma once
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "runtime/engine.h"
#include "runtime/rank_model.h"
#include "tests/support/golden_models.h"
#include "tests/support/mtp_model.h"

namespace ferry {

inline constexpr int kMicroBatches = 2;
inline constexpr int64_t kMaxTokens = 64;  // of one step

class SmallModel {
  public:
    SmallModel(std::unique_ptr<Kernels> kernels, const std::string& family, int64_t max_tokens,
               bool mtp = false)
        : source_(testing::golden_folder("models/") + family, mtp),
          kernels_(std::move(kernels)),
          transport_(make_self_transport()),
          blocks_(blocks_of(kernels_->device())),
          rank_(source_, *kernels_, {}, fabric(source_.config(), max_tokens, blocks_.get()),
                *transport_) {}

    Kernels& kernels() { return *kernels_; }
    RankModel& rank() { return rank_; }
    const ModelConfig& config() const { return source_.config(); }

  private:
    static std::unique_ptr<BlockTransport> blocks_of(Device& device) {
        auto* gpu = dynamic_cast<CudaDevice*>(&device);
        return gpu != nullptr ? make_self_blocks(*gpu) : nullptr;
    }
    static FabricOptions fabric(const ModelConfig& config, int64_t max_tokens,
                                BlockTransport* blocks) {
        FabricOptions options = single_rank_fabric(config, max_tokens, kMicroBatches);
        options.exchange.stall_timeout_s = 600;  // an emulated GPU under a sanitizer is slow
        options.blocks = blocks;
        return options;
    }

    MtpModel source_;
    std::unique_ptr<Kernels> kernels_;
    std::unique_ptr<Transport> transport_;
    std::unique_ptr<BlockTransport> blocks_;
    RankModel rank_;
};

struct SmallEngineOptions {
    const char* family = "v3";
    int64_t num_pages = 16;
    int64_t max_drafts = 0;
    bool mtp = false;  // the model's own module drafts
    bool cuda_graphs = true;
};

class SmallEngine {
  public:
    explicit SmallEngine(std::unique_ptr<Kernels> kernels, const SmallEngineOptions& options = {})
        : model_(std::move(kernels), options.family, kMaxTokens, options.mtp),
          engine_(model_.kernels(), model_.rank().model(), model_.rank().fabric(),
                  model_.rank().experts(),
                  {.scheduler = {.max_batch = 8,
                                 .max_batch_tokens = kMaxTokens,
                                 .max_drafts = options.max_drafts},
                   .num_pages = options.num_pages,
                   .max_context = 128,
                   .cuda_graphs = options.cuda_graphs},
                  {}, std::nullopt) {}

    Engine* operator->() { return &engine_; }
    const Exchange& exchange() { return model_.rank().fabric().exchange(); }
    int64_t first_moe_layer() const { return model_.config().n_dense_layers; }
    int64_t num_moe_layers() const {
        return model_.config().n_layers - model_.config().n_dense_layers;
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
    SmallModel model_;
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

// Drafts what has come of the same requests before, but one token in three is another.
inline Engine::Drafter drafts_of(const std::vector<Completion>& before) {
    return [&before](const Request& request, std::vector<int32_t>& tokens, int64_t max) {
        const auto same = std::ranges::find(before, request.index, &Completion::index);
        const auto done = std::ssize(tokens) - std::ssize(request.prompt_tokens);
        const int64_t num = std::min(max, std::ssize(same->tokens) - done);
        for (int64_t i = done; i < done + num; ++i) {
            const int32_t right = same->tokens[static_cast<size_t>(i)];
            tokens.push_back((request.index + i) % 3 == 0 ? (right + 1) % 256 : right);
        }
        return num;
    };
}

}  // namespace ferry
