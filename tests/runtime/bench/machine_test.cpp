#include "runtime/bench/machine.h"

#include <gmock/gmock.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "base/cores.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Ten seconds on a node of four cores of which this rank uses one.
MachineSpan quiet(int node = 0) {
    return {.node = node,
            .before = {.steady_s = 100, .realtime_s = 5000, .flops_per_cpu_s = 1e11},
            .after = {.steady_s = 110,
                      .realtime_s = 5010,
                      .node_busy_s = 10,
                      .own_cpu_s = 10,
                      .flops_per_cpu_s = 1.02e11}};
}

TEST(ClockDoubts, NoneOnAQuietMachine) {
    EXPECT_THAT(clock_doubts({quiet()}, 4), IsEmpty());
    MachineSpan second = quiet();
    second.after.node_busy_s = 0;  // the node's figures are taken from its first rank
    MachineSpan first = quiet();
    first.after.node_busy_s = 20;  // of both
    EXPECT_THAT(clock_doubts({first, second}, 4), IsEmpty());
}

TEST(ClockDoubts, EachHasItsReason) {
    MachineSpan others = quiet();
    others.after.node_busy_s = 14;  // 4 of 40 core seconds
    EXPECT_THAT(clock_doubts({others}, 4), ElementsAre(HasSubstr("others used 10 %")));
    MachineSpan stolen = quiet();
    stolen.after.node_steal_s = 2;
    EXPECT_THAT(clock_doubts({stolen}, 4), ElementsAre(HasSubstr("5 % of its cores' time")));
    MachineSpan hot = quiet(3);
    hot.after.num_throttles = 7;
    EXPECT_THAT(clock_doubts({hot}, 4), ElementsAre(HasSubstr("node 3: cores were throttled 7")));
    MachineSpan slow = quiet();
    slow.after.flops_per_cpu_s = 0.8e11;
    EXPECT_THAT(clock_doubts({quiet(), slow}, 4),
                ::testing::Contains(HasSubstr("rank 1: its core's speed changed by -20 %")));
    MachineSpan drift = quiet();
    drift.after.realtime_s += 0.05;
    EXPECT_THAT(clock_doubts({drift}, 4), ElementsAre(HasSubstr("drifted by 50.0 ms")));
}

// A benchmark of several layouts: each has a peak of its own.
TEST(Machine, PeakMemoryBeginsAnew) {
    constexpr size_t kBytes = 64 << 20;
    void* memory =
        ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    std::memset(memory, 1, kBytes);
    const int64_t before = memory_use().peak_bytes;
    ::munmap(memory, kBytes);
    if (::access("/proc/self/clear_refs", W_OK) != 0) GTEST_SKIP() << "not known here";
    reset_peak_memory();
    EXPECT_LT(memory_use().peak_bytes, before - (32 << 20));
}

TEST(Machine, HasItsCoresWhateverARankIsBoundTo) {
    const int64_t cores = machine_info().cores;
    cpu_set_t all, one;
    ASSERT_EQ(::sched_getaffinity(0, sizeof all, &all), 0);
    CPU_ZERO(&one);
    CPU_SET(allowed_cores()[0], &one);
    ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
    EXPECT_EQ(machine_info().cores, cores);
    ASSERT_EQ(::sched_setaffinity(0, sizeof all, &all), 0);
}

TEST(Machine, KnowsItself) {
    const MachineInfo info = machine_info();
    EXPECT_GE(info.cores, 1);
    EXPECT_GT(info.memory_bytes, 1 << 20);
    EXPECT_THAT(info.kernel, HasSubstr("Linux"));
    EXPECT_GT(memory_use().resident_bytes, 1 << 20);
    EXPECT_GE(memory_use().peak_bytes, memory_use().resident_bytes / 2);
    const MachineSample before = sample_machine(), after = sample_machine();
    EXPECT_GT(after.steady_s, before.steady_s);
    EXPECT_GT(after.own_cpu_s, before.own_cpu_s);
    EXPECT_GT(after.flops_per_cpu_s, 1e8);
}

}  // namespace
}  // namespace ferry
