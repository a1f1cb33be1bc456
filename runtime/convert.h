// `ferry convert`: a Hugging Face directory -> a folder of sharded HDF5 (checkpoint.h reads it).
#pragma once
#include <functional>
#include <string>

#include "base/thread_pool.h"
#include "runtime/convert_plan.h"

namespace ferry {

struct ConvertProgress {
    int64_t done_bytes = 0;  // written, shards that were already there included
    int64_t total_bytes = 0;
    int64_t kept_shards = 0;  // found complete from an earlier run
    double seconds = 0;
    double bytes_per_second = 0;  // of this run
};
// Called from working threads, one at a time, a few times per second and at the end.
using ConvertProgressFn = std::function<void(const ConvertProgress&)>;

// Converts, or goes on where an interrupted conversion of the same input stopped: complete shards
// are kept. Files appear under their names only when they are whole and on disk; model.h5 is the
// last of them. Memory: a few times 8 MiB per thread. Throws Error(checkpoint) naming file and
// tensor for broken input, a full disk, or an output folder that holds something else; Error(usage)
// for options that do not fit the model.
ConvertProgress convert_checkpoint(const std::string& hf_directory,
                                   const std::string& out_directory, const ConvertOptions& options,
                                   const ConvertProgressFn& progress = {});

// Its parts, for processes that share the work: every shard by whoever claims it, then the master.
// What of the plan is in the folder already; throws when the folder holds another checkpoint.
std::vector<bool> find_finished_shards(const ConversionPlan& plan,
                                       const std::string& out_directory);
void convert_shard(const HfModel& model, const ConversionPlan& plan, size_t shard_idx,
                   const std::string& out_directory, ThreadPool& pool,
                   const std::function<void(int64_t bytes)>& written);
// Needs all shards in place. Also copies the tokenizer's files.
void finish_conversion(const HfModel& model, const ConversionPlan& plan,
                       const std::string& out_directory);

}  // namespace ferry
