#include "launch/doctor.h"

#include <gmock/gmock.h>
#include <sys/resource.h>

#include <map>
#include <nlohmann/json.hpp>

#include "launch/doctor_checks.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

GetEnv environment(std::map<std::string, const char*> values) {
    return [values = std::move(values)](const char* name) -> const char* {
        const auto found = values.find(name);
        return found == values.end() ? nullptr : found->second;
    };
}

Finding files(double read) {
    return {.check = "files",
            .found = "/scratch (lustre)",
            .fix = {},
            .figures = {{"read", read, "GB/s"}}};
}
Finding memlock(Verdict verdict, const std::string& found, const std::string& fix) {
    return {.check = "memlock", .verdict = verdict, .found = found, .fix = fix};
}

std::vector<RankFindings> three_hosts() {
    return {{"a", {memlock(Verdict::ok, "unlimited", ""), files(2.0)}},
            {"a", {memlock(Verdict::ok, "unlimited", "")}},  // second rank of the host
            {"b", {memlock(Verdict::warn, "64 KiB", "ulimit -l unlimited"), files(0.25)}},
            {"c", {memlock(Verdict::ok, "unlimited", ""), files(3.5)}}};
}

TEST(DoctorReport, PutsEqualFindingsTogetherAndNamesWhoDiffers) {
    const DoctorReport report(three_hosts());
    ASSERT_EQ(report.rows().size(), 3u);
    EXPECT_THAT(report.rows()[0].hosts, ElementsAre("a", "c"));
    EXPECT_THAT(report.rows()[1].hosts, ElementsAre("b"));
    EXPECT_THAT(report.rows()[2].hosts, ElementsAre("a", "b", "c"));
    EXPECT_THAT(report.rows()[2].ranges, ElementsAre("read 0.25 .. 3.5 GB/s (lowest on b)"));
    EXPECT_EQ(report.to_text(),
              "check    verdict  hosts  found\n"
              "memlock  ok       a,c    unlimited\n"
              "memlock  warn     b      64 KiB\n"
              "         fix: ulimit -l unlimited\n"
              "files    ok       all 3  /scratch (lustre); read 0.25 .. 3.5 GB/s (lowest on b)\n"
              "0 failed, 1 warning\n");
}

TEST(DoctorReport, JsonHasTheSame) {
    const auto json = nlohmann::json::parse(DoctorReport(three_hosts()).to_json());
    EXPECT_EQ(json["hosts"], (std::vector<std::string>{"a", "b", "c"}));
    EXPECT_EQ(json["failed"], 0);
    EXPECT_EQ(json["warned"], 1);
    EXPECT_EQ(json["checks"][1]["verdict"], "warn");
    EXPECT_EQ(json["checks"][1]["fix"], "ulimit -l unlimited");
    EXPECT_EQ(json["checks"][2]["ranges"][0], "read 0.25 .. 3.5 GB/s (lowest on b)");
}

TEST(DoctorReport, WarnsOfHostsThatMustBeAlikeAndAreNot) {
    const auto build = [](const char* version) {
        return Finding{.check = "mpi", .found = version, .fix = {}, .same_everywhere = true};
    };
    const std::vector<RankFindings> ranks{{"a", {build("4.1.4")}}, {"b", {build("4.1.6")}}};
    const DoctorReport report(ranks);
    EXPECT_EQ(report.count(Verdict::warn), 2);
    EXPECT_THAT(report.rows()[1].finding.fix, HasSubstr("hosts differ"));
    const std::vector<RankFindings> alike{{"a", {build("4.1.4")}}, {"b", {build("4.1.4")}}};
    EXPECT_EQ(DoctorReport(alike).count(Verdict::warn), 0);
}

TEST(DoctorReport, FindingsTravelAsText) {
    const std::vector<Finding> sent{files(1.5), memlock(Verdict::fail, "\"a\"\n\xff", "fix")};
    const std::vector<Finding> got = decode(encode(sent));
    ASSERT_EQ(got.size(), 2u);
    EXPECT_EQ(got[0].figures[0].value, 1.5);
    EXPECT_EQ(got[1].verdict, Verdict::fail);
    EXPECT_THAT(got[1].found, HasSubstr("\"a\"\n"));
}

TEST(DoctorLauncher, SaysWhoStartedThisAndWhetherMpiKnows) {
    EXPECT_EQ(launcher_finding(environment({}), 1).found, "none, 1 task");
    EXPECT_EQ(launcher_finding(environment({{"OMPI_COMM_WORLD_SIZE", "3"}}), 3).found,
              "mpirun, 3 tasks");
    const std::map<std::string, const char*> step{{"SLURM_JOB_ID", "7"},
                                                  {"SLURM_STEP_ID", "0"},
                                                  {"SLURM_PROCID", "1"},
                                                  {"SLURM_STEP_NUM_TASKS", "4"},
                                                  {"SLURM_MPI_TYPE", "pmix"}};
    EXPECT_EQ(launcher_finding(environment(step), 4).verdict, Verdict::ok);
    const Finding alone = launcher_finding(environment(step), 0);
    EXPECT_EQ(alone.verdict, Verdict::fail);
    EXPECT_EQ(alone.found, "srun --mpi=pmix, 4 tasks, each an MPI world of its own");
    EXPECT_THAT(alone.fix, HasSubstr("srun --mpi=pmix"));
    EXPECT_EQ(launcher_finding(environment({{"SLURM_JOB_ID", "7"}}), 1).verdict, Verdict::warn);
}

TEST(DoctorCores, FindsWrongBindings) {
    const CoreFacts good{.own = 8, .allowed = 32, .of_host = 32, .ranks_on_host = 4};
    EXPECT_EQ(core_finding(good).verdict, Verdict::ok);
    EXPECT_EQ(core_finding(good).found,
              "8 for each rank, 32 of the host's 32 allowed, 4 ranks on it");
    const CoreFacts container{
        .own = 1, .allowed = 32, .quota = 4.5, .of_host = 32, .ranks_on_host = 4};
    EXPECT_EQ(core_finding(container).found,
              "1 for each rank, 32 of the host's 32 allowed, a CPU quota of 4.5, 4 ranks on it");
    const CoreFacts one_core{.own = 1, .allowed = 1, .of_host = 32, .ranks_on_host = 4};
    EXPECT_THAT(core_finding(one_core).fix, HasSubstr("--bind-to none"));
    const CoreFacts too_many{.own = 1, .allowed = 2, .of_host = 2, .ranks_on_host = 4};
    EXPECT_THAT(core_finding(too_many).fix, HasSubstr("more ranks than cores"));
    const CoreFacts forgotten{
        .own = 1, .allowed = 1, .of_host = 32, .ranks_on_host = 4, .cpus_per_task = 8};
    EXPECT_THAT(core_finding(forgotten).fix, HasSubstr("SRUN_CPUS_PER_TASK"));
}

TEST(DoctorLimits, MemlockCountsWhereThereIsRdma) {
    LimitFacts facts{.memlock = 64 << 10,
                     .open_files = 1024,
                     .stack = RLIM_INFINITY,
                     .core_file = 0,
                     .remote_memory = false,
                     .num_ranks = 8};
    for (const Finding& finding : limit_findings(facts)) EXPECT_EQ(finding.verdict, Verdict::ok);
    facts.remote_memory = true;
    EXPECT_EQ(limit_findings(facts)[0].verdict, Verdict::fail);
    EXPECT_EQ(limit_findings(facts)[0].found, "64 KiB");
    facts.memlock = RLIM_INFINITY;
    EXPECT_EQ(limit_findings(facts)[0].verdict, Verdict::ok);
    facts.num_ranks = 1000;
    EXPECT_THAT(limit_findings(facts)[1].fix, HasSubstr("ulimit -Hn 4256"));
}

TEST(DoctorMemory, CountsTheJobsLimitAndSharedMemory) {
    constexpr int64_t kGib = int64_t{1} << 30;
    MemoryFacts facts{.total = 512 * kGib,
                      .available = 500 * kGib,
                      .cgroup_limit = {},
                      .shared = 256 * kGib,
                      .shared_free = 256 * kGib,
                      .huge_pages = "madvise"};
    for (const Finding& finding : memory_findings(facts)) EXPECT_EQ(finding.verdict, Verdict::ok);
    facts.cgroup_limit = 16 * kGib;
    EXPECT_THAT(memory_findings(facts)[0].fix, HasSubstr("--mem=0"));
    facts.shared_free = kGib;
    EXPECT_EQ(memory_findings(facts)[1].verdict, Verdict::warn);
    facts.shared_free = 64 << 20;  // of a container
    EXPECT_EQ(memory_findings(facts)[1].verdict, Verdict::fail);
    facts.huge_pages = "never";
    EXPECT_EQ(memory_findings(facts)[2].verdict, Verdict::warn);
}

TEST(DoctorUcx, ComparesTransportsWithDevices) {
    EXPECT_EQ(ucx_finding("1.13.1", {"tcp/eth0", "posix/memory"}, {}).verdict, Verdict::ok);
    EXPECT_EQ(ucx_finding("1.13.1", {"rc_mlx5/mlx5_0:1"}, {"mlx5_0"}).verdict, Verdict::ok);
    EXPECT_THAT(ucx_finding("1.13.1", {"tcp/eth0"}, {"mlx5_0"}).fix, HasSubstr("goes by TCP"));
    EXPECT_THAT(ucx_finding("1.13.1", {"posix/memory"}, {}).fix, HasSubstr("no transport between"));
    EXPECT_EQ(ucx_finding("1.13.1", {}, {}).verdict, Verdict::fail);
    EXPECT_EQ(ucx_finding("", {}, {}).verdict, Verdict::ok);
}

TEST(DoctorGpu, ComparesDriverBuildAndRanks) {
    const GetEnv none = environment({});
    EXPECT_EQ(gpu_findings({}, "", "", 4, none).size(), 1u);
    EXPECT_EQ(gpu_findings({}, "12.9", "", 4, none)[0].verdict, Verdict::ok);
    GpuFacts facts{.has_driver = true,
                   .driver = "570.86",
                   .cuda_version = 12080,
                   .nccl = "2.28.3",
                   .gpus = {{"H100", int64_t{80} << 30, 0}, {"H100", int64_t{80} << 30, 0}},
                   .problem = {}};
    std::vector<Finding> good = gpu_findings(facts, "12.9.1", "2.28.3", 2, none);
    for (const Finding& finding : good) EXPECT_EQ(finding.verdict, Verdict::ok) << finding.check;
    EXPECT_EQ(good[0].found, "2 x H100, 80 GiB");
    EXPECT_THAT(good[1].found, HasSubstr("CUDA up to 12.8"));
    EXPECT_EQ(gpu_findings(facts, "13.0.0", "", 2, none)[1].verdict, Verdict::fail);
    EXPECT_EQ(gpu_findings(facts, "", "", 2, none)[1].verdict, Verdict::warn);
    EXPECT_THAT(gpu_findings(facts, "12.9", "", 4, none)[0].fix, HasSubstr("4 ranks on a host"));
    facts.gpus[1].used_bytes = int64_t{40} << 30;
    EXPECT_THAT(gpu_findings(facts, "12.9", "", 2, none)[0].fix, HasSubstr("taken"));
    facts.nccl.clear();
    EXPECT_EQ(gpu_findings(facts, "12.9", "2.28.3", 2, none)[2].verdict, Verdict::warn);
}

TEST(DoctorFiles, MeasuresAndLeavesNothing) {
    const testing::TempDir dir;
    const std::vector<Finding> findings = file_findings(dir.path(), 4, "host");
    ASSERT_EQ(findings.size(), 2u);
    EXPECT_NE(findings[0].verdict, Verdict::fail);
    EXPECT_EQ(findings[0].figures.size(), 3u);
    EXPECT_GT(findings[0].figures[0].value, 0);
    EXPECT_EQ(findings[1].verdict, Verdict::ok) << findings[1].found;
    EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
    const std::vector<Finding> missing = file_findings(dir.path() + "/none", 4, "host");
    ASSERT_EQ(missing.size(), 1u);
    EXPECT_EQ(missing[0].verdict, Verdict::fail);
    EXPECT_THAT(missing[0].found, HasSubstr("No such file"));
}

}  // namespace
}  // namespace ferry
