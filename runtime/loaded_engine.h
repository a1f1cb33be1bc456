// A rank's share of a model in memory, connected to the others', with an engine around it on
// attention ranks.
#pragma once
#include <atomic>
#include <functional>
#include <memory>

#include "comm/node_memory.h"
#include "comm/shared_counter.h"
#include "comm/world.h"
#include "runtime/config.h"
#include "runtime/device_binding.h"
#include "runtime/engine.h"
#include "runtime/opened_model.h"
#include "runtime/rank_model.h"

namespace ferry {

// What memory there is and what the model can do decide the engine's sizes. Throws Error(memory)
// when not one page fits.
EngineOptions engine_options(const Config& config, const ModelConfig& model,
                             const Numerics& numerics);

// Throws Error(usage) naming the first setting that this version does not carry out.
void check_supported(const Config& config);

// With layout.mode from_launcher: disaggregated, attention ranks are the job's first component and
// expert ranks its second. Otherwise the same. Throws Error(usage) when the job has not two of
// them.
Config with_launcher_layout(Config config);

// Who does what. Throws Error(usage) that says what does not fit and what would.
Layout layout_of(const Config& config, const World& world);

// Threads of a rank: engine.threads, or one for each core that it has (World::own_cores).
int threads_of(const Config& config, int own_cores);

class LoadedEngine {
  public:
    // Bytes read so far, of how many; `verifying`: checksums are compared, before loading.
    using OnProgress = std::function<void(int64_t bytes, int64_t total_bytes, bool verifying)>;

    // Verifies if the configuration says so, then loads. Collective over the world. Throws
    // Error(checkpoint), Error(memory), Error(usage).
    LoadedEngine(const Config& config, OpenedModel& model, World& world,
                 const OnProgress& on_progress);

    // Null on ranks that hold experts only.
    Engine* engine() { return engine_.get(); }
    RankFabric& fabric() { return rank_->fabric(); }
    // From which attention ranks claim lines of the input; null when there is one of them.
    SharedCounter* claims() { return claims_.get(); }
    // An expert rank's whole life: returns when every attention rank has closed.
    void serve_experts() { rank_->experts()->run(); }
    // Attention ranks, when all agreed that no step follows.
    void close();
    // After close() on attention ranks and the end of serve_experts() on others: all may begin
    // again. Collective.
    void reopen();
    // Frees everything; the end of an engine after which the job goes on with another. Collective.
    void unload();
    const RankModel& model() const { return *rank_; }
    ExpertWorker* experts() { return rank_->experts(); }
    std::string_view transport_name() const { return transport_->name(); }
    // GPUs that the ranks of this engine compute on, each counted once; 0: none.
    int num_gpus() const { return devices_.num_devices(); }
    Device& device() { return kernels_->device(); }
    UploadTotals uploads() const { return kernels_->upload_totals(); }
    int num_threads() const { return kernels_->threads().num_threads(); }

  private:
    std::unique_ptr<Kernels> make_kernels(const Config& config, const CpuOptions& options);
    void connect(const Config& config, const Layout& layout);
    void load(const Config& config, OpenedModel& model, const EngineOptions& options,
              FabricOptions fabric, const CpuOptions& cpu, const OnProgress& on_progress);

    DeviceTable devices_;  // of a run on GPUs
    World& world_;
    std::atomic<bool> incompressible_ = false;  // CpuOptions
    std::unique_ptr<Transport> transport_;
    std::unique_ptr<Kernels> kernels_;
    std::unique_ptr<BlockTransport> blocks_;  // null: rows go through the host
    std::unique_ptr<SharedCounter> claims_;
    std::unique_ptr<NodeMemory> attention_share_, slice_share_, expert_share_;
    std::unique_ptr<RankModel> rank_;
    std::unique_ptr<Engine> engine_;
};

}  // namespace ferry
