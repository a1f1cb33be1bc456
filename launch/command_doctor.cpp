// `ferry doctor`: is this place fit for a run?
#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <thread>

#include "base/cgroup.h"
#include "base/cores.h"
#include "base/error.h"
#include "comm/ucx_transports.h"
#include "comm/world.h"
#include "launch/command_line.h"
#include "launch/commands.h"
#include "launch/doctor_checks.h"
#include "launch/keeper.h"
#include "launch/text_output.h"
#include "launch/version_config.h"

namespace ferry {
namespace {

struct Arguments {
    std::string dir = ".";
    int size_mib = 256;
    bool json = false;
};

std::string host_name() {
    char name[256] = {};
    ::gethostname(name, sizeof name - 1);
    return name;
}

// Collective: every host must see what the first rank writes.
Finding shared_finding(const std::string& dir, World& world) {
    Finding finding{.check = "shared", .found = {}, .fix = {}};
    std::string marker;
    if (world.rank() == 0) {
        marker = fmt::format("{}/.ferry-doctor-{}-{}.shared", dir, world.host(), ::getpid());
        const int fd = ::open(marker.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0) marker.clear();  // "files" says why
        if (fd >= 0) ::close(fd);
    }
    marker = world.broadcast(marker, 0);
    // Network file systems keep old listings of folders for some seconds.
    bool seen = false;
    for (int i = 0; i < 50 && !seen && !marker.empty(); ++i) {
        if (i > 0) ::usleep(100000);
        seen = ::access(marker.c_str(), F_OK) == 0;
    }
    world.barrier();
    if (world.rank() == 0 && !marker.empty()) ::unlink(marker.c_str());
    if (marker.empty()) {
        finding.verdict = Verdict::fail;
        finding.found = dir + ": not writable on the first host";
    } else {
        finding.verdict = seen ? Verdict::ok : Verdict::fail;
        finding.found = seen ? dir + ": all hosts see the same files"
                             : fmt::format("{}: does not show what {} wrote", dir, world.host(0));
    }
    if (finding.verdict == Verdict::fail)
        finding.fix =
            "checkpoints and results must lie on a file system of all hosts: choose with "
            "--dir, and mount it everywhere";
    return finding;
}

void add_all(std::vector<Finding>& findings, std::vector<Finding> more) {
    findings.insert(findings.end(), more.begin(), more.end());
}

// Collective if there is a world. Files and the machine itself are looked at by one rank of a host.
std::vector<Finding> examine(const Arguments& arguments, World* world) {
    const bool first_of_host = world == nullptr || world->node_rank() == 0;
    const int ranks_on_host = world == nullptr ? 1 : world->node_size();
    const int num_ranks = world == nullptr ? 0 : world->size();
    std::vector<Finding> findings;
    findings.push_back(
        {.check = "ferry",
         .found = fmt::format("{} ({}, {})", FERRY_VERSION, FERRY_BUILD_TYPE, FERRY_COMPILER),
         .fix = {},
         .same_everywhere = true});
    findings.push_back(
        {.check = "mpi",
         .found = num_ranks == 0
                      ? mpi_version()
                      : fmt::format("{}, {} rank{} on {} host{}", mpi_version(), num_ranks,
                                    num_ranks == 1 ? "" : "s", world->num_nodes(),
                                    world->num_nodes() == 1 ? "" : "s"),
         .fix = {},
         .same_everywhere = true});
    findings.push_back(launcher_finding(own_environment, num_ranks));
    const char* cpus = own_environment("SLURM_CPUS_PER_TASK");
    const bool in_step = own_environment("SLURM_STEP_ID") != nullptr;
    const int allowed = static_cast<int>(allowed_cores().size());
    findings.push_back(
        core_finding({.own = world == nullptr ? usable_cores(allowed) : world->own_cores(),
                      .allowed = allowed,
                      .quota = cgroup_cpu_quota(),
                      .of_host = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN)),
                      .ranks_on_host = ranks_on_host,
                      .cpus_per_task = cpus == nullptr || !in_step ? 0 : std::atoi(cpus)}));
    add_all(findings, limit_findings(limit_facts(std::max(1, num_ranks))));
    if (first_of_host) {
        findings.push_back(cpu_finding());
        add_all(findings, memory_findings(memory_facts()));
        findings.push_back(ucx_finding(FERRY_VERSION_UCX, ucx_transports(), rdma_devices()));
        add_all(findings, gpu_findings(gpu_facts(), FERRY_VERSION_CUDA, FERRY_VERSION_NCCL,
                                       ranks_on_host, own_environment));
        std::vector<Finding> files = file_findings(arguments.dir, arguments.size_mib,
                                                   world == nullptr ? host_name() : world->host());
        for (Finding& finding : files)
            if (finding.check == "hdf5" && finding.verdict == Verdict::ok)
                finding.found = fmt::format("{} {}", FERRY_VERSION_HDF5, finding.found);
        add_all(findings, files);
    }
    if (world != nullptr && world->num_nodes() > 1)
        findings.push_back(shared_finding(arguments.dir, *world));
    return findings;
}

int publish(const Arguments& arguments, std::span<const RankFindings> ranks) {
    const DoctorReport report(ranks);
    print_text(arguments.json ? report.to_json() : report.to_text());
    return report.count(Verdict::fail);
}

// The number of failed checks, on the rank that prints.
int examine_ranks(const Arguments& arguments, World& world) {
    const std::vector<std::string> all = world.all_gather(encode(examine(arguments, &world)));
    if (world.rank() != 0) return 0;
    std::vector<RankFindings> ranks;
    for (int rank = 0; rank < world.size(); ++rank)
        ranks.push_back({world.host(rank), decode(all[static_cast<size_t>(rank)])});
    return publish(arguments, ranks);
}

int examine_and_publish(const Arguments& arguments) {
    go_on_under_keeper();
    bool ranks_met = false;
    try {
        World world = start_world();
        ranks_met = true;
        return examine_ranks(arguments, world);
    } catch (const Error& error) {
        // Every task a world of its own, and this is the first: the check "launcher" says so.
        if (ranks_met || error.kind() != ErrorKind::usage) throw;
        return publish(arguments,
                       std::vector<RankFindings>{{host_name(), examine(arguments, nullptr)}});
    }
}

void doctor(const Arguments& arguments) {
    const int num_failed = examine_and_publish(arguments);
    if (num_failed > 0)
        throw Error(ErrorKind::usage, "doctor: {} check{} failed", num_failed,
                    num_failed == 1 ? "" : "s");
}

}  // namespace

void add_doctor(Command& app) {
    Command command = app.add_command(
        "doctor",
        "Is this place fit for a run? Checks MPI and its launcher, cores, limits, memory, UCX, "
        "GPUs, "
        "HDF5 and files, on all hosts when started by srun or mpirun, with what to do");
    const auto arguments = std::make_shared<Arguments>();
    command.option("--dir", arguments->dir, "Folder whose file system is measured").show_default();
    command.option("--size", arguments->size_mib, "MiB that each host writes and reads there")
        .in_range(1, 1 << 20)
        .show_default();
    command.flag("--json", arguments->json, "For machines");
    command.footer("Exit code: 0 when no check failed (warnings do not count), else 2.");
    command.on_run([arguments] { doctor(*arguments); });
}

}  // namespace ferry
