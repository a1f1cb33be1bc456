// [8] A model in memory with an engine around it: one rank that holds all of it.
#pragma once
#include <functional>
#include <memory>

#include "layers/transformer.h"
#include "runtime/config.h"
#include "runtime/engine.h"
#include "runtime/opened_model.h"

namespace ferry {

// What memory there is and what the model can do decide the engine's sizes. Throws Error(memory)
// when not one page fits.
EngineOptions engine_options(const Config& config, const ModelConfig& model,
                             const Numerics& numerics);

// Throws Error(usage) naming the first setting that asks for more than a rank alone.
void check_one_rank(const Config& config);

// Threads of a rank: engine.threads, or what the machine has for it, shared by `node_size` ranks.
int num_threads(const Config& config, int node_size);

class LoadedEngine {
  public:
    // Bytes read so far, of how many; `verifying`: checksums are compared, before loading.
    using OnProgress = std::function<void(int64_t bytes, int64_t total_bytes, bool verifying)>;

    // Verifies if the configuration says so, then loads. Throws Error(checkpoint), Error(memory).
    LoadedEngine(const Config& config, OpenedModel& model, const OnProgress& on_progress);

    Engine& engine() { return *engine_; }

  private:
    std::unique_ptr<Kernels> kernels_;
    std::unique_ptr<Transformer> transformer_;
    std::unique_ptr<Engine> engine_;
};

}  // namespace ferry
