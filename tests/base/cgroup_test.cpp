#include "base/cgroup.h"

#include <gtest/gtest.h>

#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using testing::TempDir;

void write(const TempDir& root, const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root / path).parent_path());
    testing::write_file(root / path, text);
}

TEST(Cgroup, TheLeastLimitOnTheWayUpCounts) {
    const TempDir root;
    EXPECT_FALSE(cgroup_memory_limit(root.path()));
    write(root, "proc/self/cgroup", "0::/jobs/step\n");
    write(root, "sys/fs/cgroup/memory.max", "max\n");
    write(root, "sys/fs/cgroup/jobs/memory.max", "5000\n");
    write(root, "sys/fs/cgroup/jobs/step/memory.max", "8000\n");
    write(root, "sys/fs/cgroup/jobs/cpu.max", "max 100000\n");
    EXPECT_EQ(cgroup_memory_limit(root.path()), 5000);
    EXPECT_FALSE(cgroup_cpu_quota(root.path()));
    write(root, "sys/fs/cgroup/jobs/step/cpu.max", "150000 100000\n");
    EXPECT_EQ(cgroup_cpu_quota(root.path()), 1.5);
}

// Of a container the folders are at the top, whatever their path on the host.
TEST(Cgroup, VersionOne) {
    const TempDir root;
    write(root, "proc/self/cgroup", "9:cpuset:/x\n4:cpu,cpuacct:/docker/1\n2:memory:/docker/1\n");
    write(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    write(root, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "50000\n");
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    EXPECT_FALSE(cgroup_cpu_quota(root.path()));
    EXPECT_FALSE(cgroup_memory_limit(root.path()));
    write(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000\n");
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "3000000000\n");
    EXPECT_EQ(cgroup_cpu_quota(root.path()), 2.0);
    EXPECT_EQ(cgroup_memory_limit(root.path()), 3000000000);
}

}  // namespace
}  // namespace ferry
