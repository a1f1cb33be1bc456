// Which results of ferry bench throughput belong together: the cases of one sweep may come from one
// job or from many (slurm/bench-sweep.sbatch writes a file for each).
#pragma once
#include <map>
#include <string>
#include <vector>

#include "runtime/report/results.h"

namespace ferry::report {

class Sweeps {
  public:
    // Results are of one sweep when they measured the same model and workload (rates of arrival
    // aside) with the same settings (those that benchmarks sweep aside) on the same kind of
    // machine, and no case is in two of them.
    explicit Sweeps(const Results& results);

    size_t of(const BenchResult& bench) const { return sweep_.at(&bench); }
    // "before: " when there are several sweeps, else empty.
    std::string prefix(const BenchResult& bench) const;

  private:
    std::map<const BenchResult*, size_t> sweep_;
    std::vector<std::string> names_;
};

}  // namespace ferry::report
