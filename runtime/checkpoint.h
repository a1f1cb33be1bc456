// [2] A converted checkpoint (checkpoint_format.h) as a source of weights.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "layers/weight_source.h"
#include "runtime/block_sums.h"
#include "runtime/model_description.h"
#include "runtime/stored_tensor.h"

namespace ferry {

class Checkpoint : public WeightSource {
  public:
    // `path` is the folder or its model.h5. Checks that every tensor of the model is there with the
    // right shape and type and lies inside its file; throws one Error(checkpoint) that lists all
    // that is wrong.
    explicit Checkpoint(const std::string& path);
    ~Checkpoint() override;

    const ModelConfig& config() const override { return description_.model; }
    void add_mtp() override { description_.model.n_mtp_layers = 1; }
    std::optional<TensorInfo> find(const std::string& name) const override;
    void read(const std::string& name, std::span<const Range> ranges, void* dst) override;

    const ModelDescription& description() const { return description_; }
    const std::string& directory() const { return directory_; }
    const std::string& config_text() const { return config_text_; }
    const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }

    // A dataset of a shard: what a checksum is of.
    struct Piece {
        std::string name;
        StoredPart part;
        int64_t size_bytes = 0;
        uint64_t checksum = 0;
        TensorInfo info;
        BlockSums blocks;  // none in shards of builds before
    };
    const std::vector<Piece>& pieces() const { return pieces_; }
    const std::vector<std::unique_ptr<InputFile>>& shards() const { return shards_; }

    // Reads pieces `part`, `part` + `num_parts`, ... and compares their checksums, so that
    // `num_parts` processes share the work. Throws one Error(checkpoint) that names every tensor
    // that differs. `progress` gets bytes as they are read, from any thread.
    void verify(ThreadPool& pool, const std::function<void(int64_t bytes)>& progress = {},
                size_t part = 0, size_t num_parts = 1) const;

    // Where all shards have checksums of blocks: read() compares those of what it reads from now
    // on, and require_sound() throws one Error(checkpoint) that names every tensor that differed.
    bool has_block_sums() const;
    void check_reads();
    void require_sound() const;

  private:
    std::string directory_;
    std::string config_text_;
    ModelDescription description_;
    std::vector<std::unique_ptr<InputFile>> shards_;
    std::vector<Piece> pieces_;
    std::map<std::string, StoredTensor> tensors_;
    struct CheckedReads;
    std::unique_ptr<CheckedReads> checked_reads_;
};

// A converted checkpoint (folder or model.h5) or a Hugging Face directory, whichever `path` is.
std::unique_ptr<WeightSource> open_weights(const std::string& path);

}  // namespace ferry
