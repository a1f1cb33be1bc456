#include "launch/result_sinks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;

Completion completion_of(int64_t index, int64_t sample = 0,
                         FinishReason reason = FinishReason::stop) {
    Completion completion;
    completion.index = index;
    completion.sample = sample;
    completion.finish_reason = reason;
    completion.id = {std::to_string(index), true};
    return completion;
}

TEST(OrderedSink, ShowsInInputOrderWhateverFinishesFirst) {
    std::vector<std::pair<int64_t, int64_t>> shown;
    ResultCounts counts;
    OrderedSink sink([&](const Completion& c) { shown.emplace_back(c.index, c.sample); }, counts);
    sink.expect(0, 1);
    sink.expect(3, 2);  // lines 1 and 2 were blank
    sink.accept(completion_of(3, 1));
    EXPECT_TRUE(shown.empty());
    sink.accept(completion_of(0, 0, FinishReason::error));
    EXPECT_THAT(shown, ElementsAre(std::pair(0, 0)));
    sink.accept(completion_of(3, 0));
    EXPECT_THAT(shown, ElementsAre(std::pair(0, 0), std::pair(3, 0), std::pair(3, 1)));
    EXPECT_EQ(counts.done, 3);
    EXPECT_EQ(counts.failed, 1);
}

TEST(ShowingSink, KeepsAndShowsWhatIsNewOnly) {
    const testing::TempDir dir;
    prepare_output(dir / "out", "a: 1\n");
    ResultCounts first_counts;
    FolderSink(dir / "out", 0, {}, first_counts).accept(completion_of(0));

    ResultCounts counts;
    FolderSink folder(dir / "out", 0, {}, counts);
    EXPECT_EQ(counts.done, 1);
    std::vector<int64_t> shown;
    ShowingSink sink(folder, [&](const Completion& c) { shown.push_back(c.index); });
    for (int64_t index : {0, 1, 2}) sink.expect(index, 1);
    EXPECT_TRUE(sink.is_done(0, 0));
    EXPECT_FALSE(sink.is_done(1, 0));
    sink.accept(completion_of(2));
    sink.accept(completion_of(1));
    EXPECT_THAT(shown, ElementsAre(1, 2));
    EXPECT_EQ(counts.done, 3);
    folder.sync();
    EXPECT_EQ(merge_output(dir / "out", 3), 3);
}

}  // namespace
}  // namespace ferry
