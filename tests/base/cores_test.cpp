#include "base/cores.h"

#include <gmock/gmock.h>
#include <sched.h>

namespace ferry {
namespace {

using testing::ElementsAre;

TEST(Cores, RangesReadBack) {
    const std::vector<int> cores{0, 1, 2, 3, 8, 10, 11};
    EXPECT_EQ(core_ranges(cores), "0-3,8,10-11");
    EXPECT_EQ(parse_core_ranges("0-3,8,10-11"), cores);
    EXPECT_EQ(core_ranges({}), "");
    EXPECT_THAT(parse_core_ranges(""), ElementsAre());
}

TEST(Cores, AllowedOnesAreThoseOfTheAffinityMask) {
    cpu_set_t before;
    ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
    const int last = allowed_cores().back();
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(last, &only);
    ASSERT_EQ(sched_setaffinity(0, sizeof only, &only), 0);
    EXPECT_THAT(allowed_cores(), ElementsAre(last));
    sched_setaffinity(0, sizeof before, &before);
}

TEST(Cores, EachIsSharedByThoseWhoMayUseIt) {
    const std::vector<int> all{0, 1, 2, 3, 4, 5};
    EXPECT_EQ(share_of_cores(all, std::vector<std::vector<int>>{all}), 6);
    EXPECT_EQ(share_of_cores(all, std::vector<std::vector<int>>{all, all, all}), 2);
    EXPECT_EQ(share_of_cores(all, std::vector<std::vector<int>>{all, all, all, all}), 1);
    EXPECT_EQ(share_of_cores(all, std::vector<std::vector<int>>(7, all)), 1);  // never none
    const std::vector<int> low{0, 1}, high{2, 3, 4, 5};  // bound: each has its own
    EXPECT_EQ(share_of_cores(low, std::vector<std::vector<int>>{low, high}), 2);
    EXPECT_EQ(share_of_cores(high, std::vector<std::vector<int>>{low, high}), 4);
}

}  // namespace
}  // namespace ferry
