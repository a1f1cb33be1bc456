// What an exchange over mapped memory does beside waiting, stage by stage: two threads on two cores
// take turns as an attention and an expert rank, and tell the CPU time of each stage (other load on
// the machine does not count).
//   exchange_stages [rounds]     128 tokens x 7168 bf16, 8 experts each, on two expert ranks
#include <fmt/core.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>
#include <vector>

#include "base/buffer.h"
#include "base/check.h"
#include "comm/row_codec.h"

namespace ferry {
namespace {

constexpr int64_t kTokens = 128, kDim = 7168, kTopk = 8, kExpertRanks = 2;
constexpr int64_t kRowBytes = kDim * 2, kEntries = kTokens * kTopk;

double cpu_ms() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

// As UCX maps them: pages of 4 KiB, unless the machine says otherwise.
std::byte* shared_memory(int64_t size_bytes) {
    void* memory = mmap(nullptr, static_cast<size_t>(size_bytes), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    FERRY_CHECK(memory != MAP_FAILED);
    return static_cast<std::byte*>(memory);
}

void use_core(int core) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    pthread_setaffinity_np(pthread_self(), sizeof cores, &cores);
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

class Stages {
  public:
    Stages()
        : x_(cpu_device(), kTokens * kDim * sizeof(float)),
          out_(cpu_device(), kTokens * kDim * sizeof(float)),
          rows_(cpu_device(), kEntries * kDim * sizeof(float)) {
        std::fill_n(x_.as<float>(), kTokens * kDim, 1.0f);
        std::fill_n(rows_.as<float>(), kEntries * kDim, 1.0f);
    }

    void run(int rounds) {
        std::thread attention([&] {
            use_core(0);
            for (int i = 0; i < rounds; ++i) {
                time(pack_ms_, [&] { pack(); });
                pass(1, 0);
                time(sum_ms_, [&] { sum(); });
            }
        });
        std::thread expert([&] {
            use_core(1);
            for (int i = 0; i < rounds; ++i) {
                await(1);
                time(reply_ms_, [&] { reply(); });
                turn_ = 0;
            }
        });
        attention.join();
        expert.join();
        FERRY_CHECK(out_.as<float>()[kTokens * kDim - 1] == static_cast<float>(kTopk));
        const auto line = [](const char* stage, const std::vector<double>& ms, int64_t read,
                             int64_t written) {
            const double mb = static_cast<double>(read + written) * 1e-6;
            fmt::print("{:8} {:7.2f} ms  {:6.1f} MB read and written  {:5.1f} GB/s\n", stage,
                       median(ms), mb, mb / median(ms));
        };
        line("pack", pack_ms_, kTokens * kDim * 4, kTokens * kRowBytes * kExpertRanks);
        line("reply", reply_ms_, kEntries * kDim * 4, kEntries * kRowBytes);
        line("sum", sum_ms_, kEntries * kRowBytes, kTokens * kDim * 4);
    }

  private:
    template <typename Work>
    void time(std::vector<double>& ms, Work&& work) {
        const double begin = cpu_ms();
        work();
        ms.push_back(cpu_ms() - begin);
    }
    void await(int turn) const {
        while (turn_ != turn) sched_yield();
    }
    void pass(int to, int until) {
        turn_ = to;
        await(until);
    }
    // Row of an entry in order of experts: those of one expert lie together.
    float* row(int64_t token, int64_t k) const {
        return rows_.as<float>() + (k * kTokens + token) * kDim;
    }
    void pack() {
        for (int64_t t = 0; t < kTokens; ++t) {
            std::byte* first = requests_ + t * kRowBytes;
            encode_row(DType::bf16, x_.as<float>() + t * kDim, kDim, first, nullptr);
            for (int64_t e = 1; e < kExpertRanks; ++e)
                std::copy_n(first, kRowBytes, first + e * kTokens * kRowBytes);
        }
    }
    void reply() {
        for (int64_t t = 0; t < kTokens; ++t)
            for (int64_t k = 0; k < kTopk; ++k)
                encode_row(DType::bf16, row(t, k), kDim, replies_ + (t * kTopk + k) * kRowBytes,
                           nullptr, stores_for(kEntries * kRowBytes));
    }
    void sum() {
        std::vector<WeightedRow> terms(kTopk);
        for (int64_t t = 0; t < kTokens; ++t) {
            for (int64_t k = 0; k < kTopk; ++k)
                terms[static_cast<size_t>(k)] = {replies_ + (t * kTopk + k) * kRowBytes, 1.0f};
            sum_rows(DType::bf16, terms, kDim, out_.as<float>() + t * kDim);
        }
    }

    std::byte* requests_ = shared_memory(kExpertRanks * kTokens * kRowBytes);
    std::byte* replies_ = shared_memory(kEntries * kRowBytes);
    Buffer x_, out_, rows_;
    std::vector<double> pack_ms_, reply_ms_, sum_ms_;
    std::atomic<int> turn_{0};
};

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
    ferry::Stages().run(argc > 1 ? std::atoi(argv[1]) : 40);
}
