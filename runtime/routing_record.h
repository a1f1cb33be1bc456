// What every token chose at every MoE layer of a run (`log.routing`), for `ferry bench exchange
// --routing FILE`. As a file, JSON lines: one about the model, then one per dispatch, by attention
// rank and in order:
//   {"experts": 64, "top_k": 6}
//   {"attention_rank": 0, "layer": 1, "experts": [[3, 60, 7, 21, 0, 44], ...]}
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace ferry {

struct RoutingRecord {
    int64_t num_experts = 0;
    int64_t topk = 0;
    // By attention rank (those that routed anything): [rows, topk] of all dispatches, in order.
    std::vector<std::vector<int32_t>> choices;
};
// `name` stands for the file. Throws Error(input) naming file and line.
RoutingRecord parse_routing_record(const std::string& text, const std::string& name);

// Keeps the choices of this rank, of its first kMaxRows (token, layer) pairs. Off until started.
class RoutingRecorder {
  public:
    static constexpr int64_t kMaxRows = int64_t{1} << 20;

    void start() { on_ = true; }
    // experts: [tokens, topk] i32.
    void add(int layer, const Tensor& experts) {
        if (on_ && experts.rows() > 0) keep(layer, experts);
    }
    // What was kept, as lines of the file.
    std::string lines(int attention_rank) const;
    static std::string first_line(int64_t num_experts, int64_t topk);

  private:
    void keep(int layer, const Tensor& experts);

    struct Dispatch {
        int layer;
        int64_t num_rows;
    };
    bool on_ = false;
    int64_t topk_ = 0;
    int64_t num_rows_ = 0;
    std::vector<Dispatch> dispatches_;
    std::vector<int32_t> choices_;
};
// The process's own; its attention worker adds to it.
RoutingRecorder& routing_recorder();

}  // namespace ferry
