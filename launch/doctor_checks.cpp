#include "launch/doctor_checks.h"

#include <fmt/format.h>

#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/cgroup.h"
#include "base/error.h"

namespace ferry {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kUnlimited = RLIM_INFINITY;
constexpr uint64_t kMebibyte = uint64_t{1} << 20;
constexpr int64_t kGibibyte = int64_t{1} << 30;

std::string first_line(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

std::string size_text(double bytes) {
    const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;
    for (; bytes >= 1024 && unit + 1 < std::size(units); ++unit) bytes /= 1024;
    return fmt::format("{:.3g} {}", bytes, units[unit]);
}

std::string limit_text(uint64_t bytes) {
    return bytes == kUnlimited ? "unlimited" : size_text(static_cast<double>(bytes));
}

// The value of "Name:   123 kB" in a file of /proc, in bytes.
int64_t proc_bytes(const std::string& path, const std::string& name) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);)
        if (line.starts_with(name + ":"))
            return std::atoll(line.c_str() + name.size() + 1) * int64_t{1024};
    return 0;
}

uint64_t soft_limit(int resource) {
    rlimit limit{};
    return ::getrlimit(static_cast<__rlimit_resource_t>(resource), &limit) == 0 ? limit.rlim_cur
                                                                                : 0;
}

// One thread, of memory that no cache holds.
double copy_gigabytes_per_second() {
    constexpr size_t kBytes = size_t{64} << 20;
    std::vector<char> from(kBytes, 1), to(kBytes, 2);
    double best_s = 1e9;
    for (int i = 0; i < 3; ++i) {
        const auto start = std::chrono::steady_clock::now();
        std::memcpy(to.data(), from.data(), kBytes);
        asm volatile("" : : "r"(to.data()) : "memory");  // the copy is wanted
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        best_s = std::min(best_s, taken.count());
    }
    return 2 * static_cast<double>(kBytes) / best_s * 1e-9;
}

}  // namespace

Finding launcher_finding(const GetEnv& get, int num_ranks) {
    Finding finding{.check = "launcher", .found = {}, .fix = {}};
    const bool in_job = get("SLURM_JOB_ID") != nullptr;
    const bool in_step = get("SLURM_STEP_ID") != nullptr && get("SLURM_PROCID") != nullptr;
    const char* mpi_type = get("SLURM_MPI_TYPE");
    const int num_tasks = launcher_tasks(get);
    if (get("OMPI_COMM_WORLD_SIZE") != nullptr)
        finding.found = in_job ? "mpirun in a Slurm job" : "mpirun";
    else if (in_step)
        finding.found = fmt::format("srun --mpi={}", mpi_type == nullptr ? "none" : mpi_type);
    else
        finding.found = in_job ? "none, in the shell of a Slurm job" : "none";
    finding.found += fmt::format(", {} task{}", num_tasks, num_tasks == 1 ? "" : "s");
    if (num_ranks == 0) {
        finding.verdict = Verdict::fail;
        finding.found += ", each an MPI world of its own";
        finding.fix = in_step ? "start with srun --mpi=pmix (srun --mpi=list shows what there is), "
                                "or with mpirun of the MPI that ferry was built with"
                              : "use mpirun of the MPI that ferry was built with";
    } else if (in_job && !in_step && num_tasks == 1) {
        finding.verdict = Verdict::warn;
        finding.fix = "this looks at one host only; to see all: srun --mpi=pmix ferry doctor";
    }
    return finding;
}

Finding core_finding(const CoreFacts& facts) {
    const bool is_bound = facts.allowed < facts.of_host;
    Finding finding{.check = "cores",
                    .found = fmt::format(
                        "{} for each rank, {} of the host's {} allowed{}, {} rank{} "
                        "on it",
                        facts.own, facts.allowed, facts.of_host,
                        facts.quota ? fmt::format(", a CPU quota of {:.4g}", *facts.quota) : "",
                        facts.ranks_on_host, facts.ranks_on_host == 1 ? "" : "s"),
                    .fix = {}};
    if (facts.cpus_per_task > facts.own) {
        finding.verdict = Verdict::warn;
        finding.fix = fmt::format(
            "Slurm was asked for {} cores per task: export SRUN_CPUS_PER_TASK="
            "$SLURM_CPUS_PER_TASK (srun of 22.05 does not take it from the "
            "job), and look at --cpu-bind",
            facts.cpus_per_task);
    } else if (facts.ranks_on_host > facts.allowed && !is_bound) {
        finding.verdict = Verdict::warn;
        finding.fix = "more ranks than cores: start fewer on each host";
    } else if (is_bound && facts.allowed == 1 && facts.of_host / facts.ranks_on_host > 1) {
        finding.verdict = Verdict::warn;
        finding.fix =
            "each rank is bound to one core and its threads share it: mpirun --bind-to "
            "none, or srun with --cpus-per-task";
    }
    return finding;
}

LimitFacts limit_facts(int num_ranks) {
    return {.memlock = soft_limit(RLIMIT_MEMLOCK),
            .open_files = soft_limit(RLIMIT_NOFILE),
            .stack = soft_limit(RLIMIT_STACK),
            .core_file = soft_limit(RLIMIT_CORE),
            .remote_memory = !rdma_devices().empty(),
            .num_ranks = num_ranks};
}

std::vector<Finding> limit_findings(const LimitFacts& facts) {
    std::vector<Finding> findings;
    Finding memlock{.check = "memlock", .found = limit_text(facts.memlock), .fix = {}};
    if (facts.memlock != kUnlimited && facts.remote_memory) {
        memlock.verdict = facts.memlock < 64 * kMebibyte ? Verdict::fail : Verdict::warn;
        memlock.fix =
            "RDMA registers its buffers as locked memory: ulimit -l unlimited, for slurmd "
            "too (LimitMEMLOCK=infinity), and PropagateResourceLimitsExcept=MEMLOCK in "
            "slurm.conf";
    } else if (facts.memlock != kUnlimited) {
        memlock.found += ", and no RDMA device that needs more";
    }
    findings.push_back(memlock);

    // A TCP link to every other rank of two kinds, shards, and the libraries' own.
    const uint64_t wanted =
        std::max<uint64_t>(1024, 256 + 4 * static_cast<uint64_t>(facts.num_ranks));
    Finding files{
        .check = "open files",
        .found = facts.open_files == kUnlimited ? "unlimited" : std::to_string(facts.open_files),
        .fix = {}};
    if (facts.open_files < wanted) {
        files.verdict = Verdict::warn;
        files.fix = fmt::format(
            "{} ranks need about {}: ulimit -Hn {} (nofile in limits.conf, LimitNOFILE of slurmd)",
            facts.num_ranks, wanted, wanted);
    }
    findings.push_back(files);

    Finding stack{.check = "stack", .found = limit_text(facts.stack), .fix = {}};
    if (facts.stack < kMebibyte) {
        stack.verdict = Verdict::warn;
        stack.fix = "threads may run out of it: ulimit -s 8192";
    }
    findings.push_back(stack);
    findings.push_back(
        {.check = "core files",
         .found = facts.core_file == 0 ? "none: a crash leaves none" : limit_text(facts.core_file),
         .fix = {}});
    return findings;
}

MemoryFacts memory_facts() {
    MemoryFacts facts;
    facts.total = proc_bytes("/proc/meminfo", "MemTotal");
    facts.available = proc_bytes("/proc/meminfo", "MemAvailable");
    facts.cgroup_limit = cgroup_memory_limit();
    struct statvfs shared {};
    if (::statvfs("/dev/shm", &shared) == 0) {
        facts.shared = static_cast<int64_t>(shared.f_blocks * shared.f_frsize);
        facts.shared_free = static_cast<int64_t>(shared.f_bavail * shared.f_frsize);
    }
    const std::string modes = first_line("/sys/kernel/mm/transparent_hugepage/enabled");
    const size_t begin = modes.find('['), end = modes.find(']');
    if (begin != modes.npos && end != modes.npos)
        facts.huge_pages = modes.substr(begin + 1, end - begin - 1);
    return facts;
}

std::vector<Finding> memory_findings(const MemoryFacts& facts) {
    const auto gib = [](int64_t bytes) { return static_cast<double>(bytes) / kGibibyte; };
    const bool limited = facts.cgroup_limit && *facts.cgroup_limit < facts.total;
    Finding memory{.check = "memory", .found = {}, .fix = {}};
    memory.figures = {{"total", gib(facts.total), "GiB"},
                      {"available", gib(facts.available), "GiB"}};
    if (limited) {
        memory.figures.push_back({"allowed to this job", gib(*facts.cgroup_limit), "GiB"});
        if (*facts.cgroup_limit < facts.total / 2) {
            memory.verdict = Verdict::warn;
            memory.fix =
                "the job may use less than half of the host: sbatch --mem=0 asks for all of it";
        }
    } else if (facts.available < facts.total / 2) {
        memory.verdict = Verdict::warn;
        memory.fix = "half of the memory is taken: end what else runs here, or sbatch --exclusive";
    }

    Finding shared{.check = "/dev/shm", .found = {}, .fix = {}};
    shared.figures = {{"size", gib(facts.shared), "GiB"}, {"free", gib(facts.shared_free), "GiB"}};
    // Ranks of a host share replicated weights there, and MPI and UCX their messages.
    if (facts.shared_free < kGibibyte / 4) {
        shared.verdict = Verdict::fail;
        shared.fix =
            "MPI, UCX and shared weights need it: in a container give it with --shm-size, else "
            "mount -o remount,size=50% /dev/shm, and remove what dead jobs left there";
    } else if (facts.shared_free < facts.total / 8) {
        shared.verdict = Verdict::warn;
        shared.fix =
            "the weights that a host's ranks share may not fit: remove what dead jobs left "
            "there, or mount -o remount,size=50% /dev/shm";
    }

    Finding pages{.check = "huge pages",
                  .found = facts.huge_pages.empty() ? "not known" : facts.huge_pages,
                  .fix = {}};
    if (facts.huge_pages == "never") {
        pages.verdict = Verdict::warn;
        pages.fix =
            "large weights are read slower: echo madvise > "
            "/sys/kernel/mm/transparent_hugepage/enabled";
    }
    return {memory, shared, pages};
}

Finding cpu_finding() {
    std::string model, flags;
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        const size_t colon = line.find(": ");
        if (colon == line.npos) continue;
        if (model.empty() && line.starts_with("model name")) model = line.substr(colon + 2);
        if (flags.empty() && line.starts_with("flags")) flags = line.substr(colon + 1) + ' ';
    }
    Finding finding{.check = "cpu", .found = model.empty() ? "not known" : model, .fix = {}};
    const auto has = [&](const char* flag) { return flags.find(flag) != flags.npos; };
    if (has(" avx512f "))
        finding.found += has(" avx512_bf16 ") ? ", AVX-512 with BF16" : ", AVX-512";
    else if (has(" avx2 "))
        finding.found += ", AVX2";
    else if (!flags.empty()) {
        finding.verdict = Verdict::warn;
        finding.fix = "no AVX2: the CPU kernels run at a fraction of their speed";
    }
    finding.same_everywhere = true;
    finding.figures = {{"copies", copy_gigabytes_per_second(), "GB/s"}};
    return finding;
}

std::vector<std::string> rdma_devices() {
    std::vector<std::string> names;
    std::error_code missing;
    for (const auto& entry : fs::directory_iterator("/sys/class/infiniband", missing))
        names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
}

Finding ucx_finding(const std::string& version, const std::vector<std::string>& transports,
                    const std::vector<std::string>& devices) {
    Finding finding{.check = "ucx", .found = {}, .fix = {}, .same_everywhere = true};
    if (version.empty()) {
        finding.found = "not built in";
        if (!devices.empty()) {
            finding.verdict = Verdict::warn;
            finding.fix = fmt::format(
                "there is {}: build with libucx-dev for exchange.transport ucx", devices.front());
        }
        return finding;
    }
    finding.found = fmt::format("{}: {}", version, fmt::join(transports, " "));
    const auto any = [&](std::initializer_list<const char*> names) {
        return std::any_of(transports.begin(), transports.end(), [&](const std::string& transport) {
            return std::any_of(names.begin(), names.end(),
                               [&](const char* name) { return transport.starts_with(name); });
        });
    };
    if (transports.empty()) {
        finding.found = version + ": no transport at all";
        finding.verdict = Verdict::fail;
        finding.fix = "UCX_TLS or UCX_NET_DEVICES leave none: unset them; see ucx_info -d";
    } else if (!any({"tcp", "rc", "dc", "ud"})) {
        finding.verdict = Verdict::warn;
        finding.fix = "no transport between hosts: UCX_TLS and UCX_NET_DEVICES leave none";
    } else if (!devices.empty() && !any({"rc", "dc", "ud"})) {
        finding.verdict = Verdict::warn;
        finding.fix = fmt::format(
            "there is {}, but UCX goes by TCP: look at UCX_TLS, UCX_NET_DEVICES, "
            "memlock, and whether this UCX has its ib component (ucx_info -d)",
            devices.front());
    } else if (devices.empty()) {
        finding.found += ", no RDMA device here";
    }
    return finding;
}

std::vector<Finding> gpu_findings(const GpuFacts& facts, const std::string& built_cuda,
                                  const std::string& built_nccl, int ranks_on_host,
                                  const GetEnv& get) {
    const auto version = [](int number) {
        return fmt::format("{}.{}", number / 1000, number % 1000 / 10);
    };
    const std::string built = built_cuda.empty() ? "ferry is built without CUDA"
                                                 : "ferry is built with CUDA " + built_cuda;
    Finding gpu{.check = "gpu", .found = {}, .fix = {}, .same_everywhere = true};
    if (!facts.has_driver && facts.gpus.empty()) {
        gpu.found = fmt::format("none; {}", built);
        return {gpu};
    }
    gpu.found = facts.gpus.empty()
                    ? fmt::format("driver without a GPU{}{}", facts.problem.empty() ? "" : ": ",
                                  facts.problem)
                    : fmt::format("{} x {}, {:.0f} GiB", facts.gpus.size(), facts.gpus[0].name,
                                  static_cast<double>(facts.gpus[0].total_bytes) / kGibibyte);
    const bool taken = std::any_of(facts.gpus.begin(), facts.gpus.end(), [](const Gpu& each) {
        return each.used_bytes > each.total_bytes / 10;
    });
    if (facts.gpus.empty() || !facts.problem.empty()) {
        gpu.verdict = Verdict::warn;
        gpu.fix =
            "look at nvidia-smi; in a job ask for GPUs (--gpus-per-node), in a container pass "
            "the driver's libraries in";
    } else if (taken) {
        gpu.verdict = Verdict::warn;
        gpu.fix = "more than a tenth of a GPU's memory is taken: nvidia-smi shows by whom";
    } else if (static_cast<size_t>(ranks_on_host) > facts.gpus.size() && !built_cuda.empty()) {
        gpu.verdict = Verdict::warn;
        gpu.fix = fmt::format("{} ranks on a host with {} GPUs: one rank for each GPU",
                              ranks_on_host, facts.gpus.size());
    }

    Finding cuda{.check = "cuda",
                 .found = fmt::format("driver {}, CUDA up to {}; {}", facts.driver,
                                      version(facts.cuda_version), built),
                 .fix = {},
                 .same_everywhere = true};
    int major = 0, minor = 0;
    std::sscanf(built_cuda.c_str(), "%d.%d", &major, &minor);
    if (built_cuda.empty()) {
        cuda.verdict = Verdict::warn;
        cuda.fix = "to use the GPUs build with nvcc in PATH";
    } else if (facts.cuda_version < major * 1000) {  // newer minor versions run on older drivers
        cuda.verdict = Verdict::fail;
        cuda.fix = fmt::format("a driver for CUDA {}, or a build with CUDA {}", built_cuda,
                               version(facts.cuda_version));
    }

    const char* visible = get("CUDA_VISIBLE_DEVICES");
    if (visible != nullptr) gpu.found += fmt::format(", CUDA_VISIBLE_DEVICES={}", visible);

    Finding nccl{.check = "nccl",
                 .found = facts.nccl.empty() ? "no library found" : facts.nccl,
                 .fix = {},
                 .same_everywhere = true};
    if (built_nccl.empty()) {
        nccl.found += "; ferry is built without NCCL";
    } else if (facts.nccl.empty()) {
        nccl.verdict = Verdict::warn;
        nccl.fix = "exchange.transport nccl needs libnccl.so.2 in LD_LIBRARY_PATH";
    }
    return {gpu, cuda, nccl};
}

}  // namespace ferry
