// Times what each of several expert ranks computes in one MoE layer of a step: virtual ranks, which
// this machine plays one after the other. For `ferry bench layer --expert-ranks`.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "layers/kernels.h"
#include "layers/numerics.h"
#include "layers/weight_source.h"

namespace ferry {

struct ExpertShareOptions {
    int num_ranks = 1;  // virtual expert ranks, and as many attention ranks that bring rows
    int num_warmups = 2, num_repetitions = 10;
    uint64_t seed = 1;  // of the choices of experts
};

// One virtual rank in one step.
struct ExpertShare {
    int64_t num_experts = 0;  // that it holds
    int64_t num_touched = 0;  // that any row chose
    int64_t num_rows = 0;     // pairs of a token and one of its experts here
    double best_s = 0, median_s = 0;
    double bytes = 0, flops = 0;  // weights of touched experts; of all rows
    bool same_bits = true;        // in every repetition
};

// [workload][virtual rank]. In workload i each attention rank brings tokens[i] tokens to the first
// MoE layer, and each token chooses n_activated_experts different experts, all of them alike
// likely. Experts are spread as contiguous_placement() does; those of one virtual rank are loaded
// at a time. On a GPU the counts lie on the device, as they do behind its exchange. The model has a
// MoE layer, with at least as many experts as ranks.
std::vector<std::vector<ExpertShare>> bench_expert_shares(WeightSource& source,
                                                          const Numerics& numerics,
                                                          Kernels& kernels,
                                                          std::span<const int64_t> tokens,
                                                          const ExpertShareOptions& options);

}  // namespace ferry
