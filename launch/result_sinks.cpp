#include "launch/result_sinks.h"

namespace ferry {
namespace {

void count(const Completion& completion, ResultCounts& counts) {
    ++counts.done;
    counts.failed += completion.finish_reason == FinishReason::error ? 1 : 0;
}

}  // namespace

FolderSink::FolderSink(const std::string& dir, int rank, const Journal::Options& options,
                       ResultCounts& counts)
    : journal_(dir, rank, options), counts_(counts) {
    counts_.done += journal_.num_done();
}

bool FolderSink::is_done(int64_t index, int64_t sample) const {
    return journal_.is_done(index, sample);
}

void FolderSink::accept(Completion completion) {
    journal_.append(completion);
    count(completion, counts_);
}

void OrderedSink::expect(int64_t index, int64_t num_results) {
    for (int64_t sample = 0; sample < num_results; ++sample) expect_one(index, sample);
}

void OrderedSink::accept(Completion completion) {
    count(completion, counts_);
    const Key key{completion.index, completion.sample};
    waiting_.emplace(key, std::move(completion));
    while (!expected_.empty()) {
        const auto first = waiting_.find(expected_.front());
        if (first == waiting_.end()) return;
        show_(first->second);
        waiting_.erase(first);
        expected_.pop_front();
    }
}

void ShowingSink::expect(int64_t index, int64_t num_results) {
    keeper_.expect(index, num_results);
    for (int64_t sample = 0; sample < num_results; ++sample)
        if (!keeper_.is_done(index, sample)) shown_.expect_one(index, sample);
}

void ShowingSink::accept(Completion completion) {
    keeper_.accept(completion);
    shown_.accept(std::move(completion));
}

}  // namespace ferry
