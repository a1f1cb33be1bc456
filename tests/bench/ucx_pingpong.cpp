// Active messages of UCX to and fro, what the exchange over UCX is measured against: rank r and
// rank r + n/2 of n are a pair, all pairs at once.
//   mpirun -n 2 ucx_pingpong [seconds per size] [bytes...]
// Latency is half a round trip; MB/s are of one direction at a time, per pair.
#include <fmt/core.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/trace.h"
#include "comm/ucx_api.h"
#include "comm/world.h"

namespace ferry {
namespace {

constexpr unsigned kBall = 1;

class Pair {
  public:
    Pair(World& world, size_t max_bytes) : out_(max_bytes, std::byte{1}), in_(max_bytes) {
        ucp_params_t params{};
        params.field_mask = UCP_PARAM_FIELD_FEATURES;
        params.features = UCP_FEATURE_AM;
        ucx_check(ucp_init(&params, nullptr, &context_), "ucp_init");
        ucp_worker_params_t worker_params{};
        worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
        worker_params.thread_mode = UCS_THREAD_MODE_SINGLE;
        ucx_check(ucp_worker_create(context_, &worker_params, &worker_), "ucp_worker_create");
        ucp_am_handler_param_t handler{};
        handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                             UCP_AM_HANDLER_PARAM_FIELD_ARG;
        handler.id = kBall;
        handler.cb = caught;
        handler.arg = this;
        ucx_check(ucp_worker_set_am_recv_handler(worker_, &handler), "setting a handler");
        ucp_address_t* address = nullptr;
        size_t size = 0;
        ucx_check(ucp_worker_get_address(worker_, &address, &size), "asking for the address");
        const std::vector<std::string> all =
            world.all_gather(std::string(reinterpret_cast<const char*>(address), size));
        ucp_worker_release_address(worker_, address);
        const int half = world.size() / 2;
        serves_ = world.rank() < half;
        ucp_ep_params_t endpoint{};
        endpoint.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS;
        endpoint.address = reinterpret_cast<const ucp_address_t*>(
            all[static_cast<size_t>((world.rank() + half) % world.size())].data());
        ucx_check(ucp_ep_create(worker_, &endpoint, &endpoint_), "connecting");
    }

    // Nanoseconds of `rounds` times there and back.
    int64_t play(size_t size_bytes, int64_t rounds) {
        const int64_t begin = trace_now_ns();
        for (int64_t i = 0; i < rounds; ++i) {
            if (serves_) throw_ball(size_bytes);
            catch_ball();
            if (!serves_) throw_ball(size_bytes);
        }
        return trace_now_ns() - begin;
    }

  private:
    static ucs_status_t caught(void* self, const void*, size_t, void* data, size_t size_bytes,
                               const ucp_am_recv_param_t* param) {
        Pair& pair = *static_cast<Pair*>(self);
        if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) == 0) {
            std::copy_n(static_cast<const std::byte*>(data), size_bytes, pair.in_.data());
            ++pair.num_caught_;
            return UCS_OK;
        }
        ucp_request_param_t receive{};
        receive.op_attr_mask =
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
        receive.cb.recv_am = [](void* request, ucs_status_t status, size_t, void* user) {
            ucx_check(status, "receiving");
            ++static_cast<Pair*>(user)->num_caught_;
            ucp_request_free(request);
        };
        receive.user_data = self;
        ucp_am_recv_data_nbx(pair.worker_, data, pair.in_.data(), size_bytes, &receive);
        return UCS_INPROGRESS;
    }
    void progress() {
        if (ucp_worker_progress(worker_) == 0) ::sched_yield();
    }
    void throw_ball(size_t size_bytes) {
        ucp_request_param_t param{};
        void* request =
            ucp_am_send_nbx(endpoint_, kBall, nullptr, 0, out_.data(), size_bytes, &param);
        if (request == nullptr) return;
        FERRY_CHECK(!UCS_PTR_IS_ERR(request), "an active message was not sent");
        while (ucp_request_check_status(request) == UCS_INPROGRESS) progress();
        ucp_request_free(request);
    }
    void catch_ball() {
        while (num_caught_ == num_awaited_) progress();
        ++num_awaited_;
    }

    std::vector<std::byte> out_, in_;
    ucp_context_h context_ = nullptr;
    ucp_worker_h worker_ = nullptr;
    ucp_ep_h endpoint_ = nullptr;
    bool serves_ = false;
    int64_t num_caught_ = 0, num_awaited_ = 0;
};

void run(int argc, char** argv) {
    World world(&argc, &argv);
    FERRY_CHECK(world.size() % 2 == 0, "an even number of ranks, not {}", world.size());
    const double seconds = argc > 1 ? std::atof(argv[1]) : 0.5;
    std::vector<size_t> sizes;
    for (int i = 2; i < argc; ++i) sizes.push_back(std::strtoull(argv[i], nullptr, 10));
    if (sizes.empty()) sizes = {8, 4096, 65536, 262144, 1 << 20, 2 << 20, 8 << 20, 32 << 20};
    Pair pair(world, *std::max_element(sizes.begin(), sizes.end()));
    if (world.rank() == 0) fmt::print("   bytes  half us (best, median of 5)  MB/s (best)\n");
    for (const size_t size : sizes) {
        world.barrier();
        const int64_t once = std::max<int64_t>(1, pair.play(size, 4) / 4);
        const int64_t rounds = world.all_max(
            std::clamp<int64_t>(static_cast<int64_t>(seconds / 5 * 1e9) / once, 1, 1 << 20));
        std::vector<double> half_us;
        for (int i = 0; i < 5; ++i) {
            world.barrier();
            const int64_t ns = world.all_max(pair.play(size, rounds));
            half_us.push_back(static_cast<double>(ns) * 0.5e-3 / static_cast<double>(rounds));
        }
        std::sort(half_us.begin(), half_us.end());
        if (world.rank() == 0)
            fmt::print("{:8}  {:8.2f} {:8.2f}  {:8.0f}\n", size, half_us[0], half_us[2],
                       static_cast<double>(size) / half_us[0]);
    }
    world.barrier();
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
    ferry::run(argc, argv);
}
