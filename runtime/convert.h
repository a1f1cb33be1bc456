// `ferry convert`: a Hugging Face directory -> a folder of sharded HDF5 (checkpoint.h reads it).
#pragma once
#include <functional>
#include <string>

#include "base/thread_pool.h"
#include "comm/world.h"
#include "runtime/convert_plan.h"

namespace ferry {

struct ConvertProgress {
    int64_t done_bytes = 0;   // written, shards that were already there included
    int64_t total_bytes = 0;  // while it works: of this node's ranks
    int64_t kept_shards = 0;  // found complete from an earlier run
    double seconds = 0;
    double bytes_per_second = 0;  // of this run
};
// Called from working threads, one at a time, a few times per second and at the end.
using ConvertProgressFn = std::function<void(const ConvertProgress&)>;

// Converts, or goes on where an interrupted conversion of the same input stopped: complete shards
// are kept. Files appear under their names only when they are whole and on disk; model.h5 is the
// last of them. Memory: a few times 8 MiB per thread. Throws Error(checkpoint) naming file and
// tensor for broken input, a full disk, or an output folder that holds something else or that
// another conversion is writing; Error(usage) for options that do not fit the model.
//
// With a world, all of its ranks call this and share the shards; rank 0 reports progress. What one
// rank throws, the others do not learn: the caller must end them.
ConvertProgress convert_checkpoint(const std::string& hf_directory,
                                   const std::string& out_directory, const ConvertOptions& options,
                                   const ConvertProgressFn& progress = {}, World* world = nullptr);

// Its parts.
// Which rank writes which unfinished shard (finished ones: -1), so that all write about as much.
std::vector<int> assign_shards(const ConversionPlan& plan, const std::vector<bool>& finished,
                               int num_ranks);
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
