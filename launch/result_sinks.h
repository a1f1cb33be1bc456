// Where `ferry generate` puts results: a folder that can be resumed, standard output, or both.
#pragma once
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>

#include "runtime/journal.h"
#include "runtime/request_loop.h"

namespace ferry {

// For the progress line.
struct ResultCounts {
    int64_t done = 0;
    int64_t failed = 0;
};

class FolderSink : public ResultSink {
  public:
    // Requests that the folder has already count as done.
    FolderSink(const std::string& dir, int rank, const Journal::Options& options,
               ResultCounts& counts);

    bool is_done(int64_t index, int64_t sample) const override;
    void accept(Completion completion) override;
    void tick() override { journal_.tick(); }
    void sync() { journal_.sync(); }

  private:
    Journal journal_;
    ResultCounts& counts_;
};

// Gives completions on in order of the input, keeping those that finish early.
class OrderedSink : public ResultSink {
  public:
    using Show = std::function<void(const Completion& completion)>;
    OrderedSink(Show show, ResultCounts& counts) : show_(std::move(show)), counts_(counts) {}

    bool is_done(int64_t, int64_t) const override { return false; }
    void expect(int64_t index, int64_t num_results) override;
    void expect_one(int64_t index, int64_t sample) { expected_.emplace_back(index, sample); }
    void accept(Completion completion) override;

  private:
    using Key = std::pair<int64_t, int64_t>;  // index, sample
    Show show_;
    ResultCounts& counts_;
    std::deque<Key> expected_;
    std::map<Key, Completion> waiting_;
};

// A folder, and a look at each result as it comes.
class ShowingSink : public ResultSink {
  public:
    ShowingSink(ResultSink& keeper, OrderedSink::Show show)
        : keeper_(keeper), shown_(std::move(show), ignored_) {}

    bool is_done(int64_t index, int64_t sample) const override {
        return keeper_.is_done(index, sample);
    }
    void expect(int64_t index, int64_t num_results) override;
    void accept(Completion completion) override;
    void tick() override { keeper_.tick(); }

  private:
    ResultSink& keeper_;
    ResultCounts ignored_;
    OrderedSink shown_;
};

}  // namespace ferry
