// switch FIFO NAMESPACE...: an Ethernet switch in user space between network namespaces, for what a
// kernel without netem cannot do: delay, rate, and links that are cut. Each namespace gets a TAP
// device eth0; frames keep their virtio header, so that 64 KiB segments cross in one piece.
// Commands, one a line, into FIFO:  delay US | rate MBIT (0: none) | down PORT | up PORT | quit
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <queue>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;
using std::chrono::duration_cast;
using std::chrono::nanoseconds;

constexpr size_t kHeaderBytes = 10;  // struct virtio_net_hdr, whose own header is no C++
constexpr size_t kMaxFrameBytes = 70000;
constexpr auto kLongestQueue = std::chrono::milliseconds(20);  // beyond it frames are dropped

[[noreturn]] void die(const std::string& what) {
    std::perror(what.c_str());
    std::exit(1);
}

struct Port {
    int tap = -1;
    bool up = true;
    Time sending_until{};    // the namespace's side of the link is busy until then
    Time receiving_until{};  // and the switch's
};

struct Frame {
    Time due;
    uint64_t number;
    size_t port;
    std::vector<char> bytes;
    bool operator<(const Frame& other) const {  // the earliest is on top of the queue
        return due != other.due ? due > other.due : number > other.number;
    }
};

int open_tap(const std::string& name_space) {
    const std::string path = "/run/netns/" + name_space;
    const int target = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (target < 0 || setns(target, CLONE_NEWNET) != 0) die(path);
    close(target);
    const int tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    ifreq request{};
    std::strcpy(request.ifr_name, "eth0");
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (tap < 0 || ioctl(tap, TUNSETIFF, &request) != 0) die("tap in " + name_space);
    int header_bytes = kHeaderBytes;
    if (ioctl(tap, TUNSETVNETHDRSZ, &header_bytes) != 0) die("TUNSETVNETHDRSZ");
    if (ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) != 0) die("TUNSETOFFLOAD");
    return tap;
}

class Switch {
  public:
    explicit Switch(const std::vector<std::string>& namespaces) {
        const int own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
        for (const std::string& each : namespaces) ports_.push_back({.tap = open_tap(each)});
        if (setns(own, CLONE_NEWNET) != 0) die("setns");
        close(own);
    }

    void run(int commands) {
        std::vector<pollfd> polled;
        for (const Port& port : ports_)
            polled.push_back({.fd = port.tap, .events = POLLIN, .revents = 0});
        polled.push_back({.fd = commands, .events = POLLIN, .revents = 0});
        while (!quit_) {
            deliver();
            timespec wait{};
            const timespec* timeout = nullptr;
            if (!queue_.empty()) {
                const auto left = std::max<int64_t>(
                    0, duration_cast<nanoseconds>(queue_.top().due - Clock::now()).count());
                wait = {left / 1000000000, left % 1000000000};
                timeout = &wait;
            }
            if (ppoll(polled.data(), polled.size(), timeout, nullptr) < 0) continue;
            for (size_t i = 0; i < ports_.size(); ++i)
                if (polled[i].revents & POLLIN) receive(i);
            if (polled.back().revents & POLLIN) read_commands(commands);
        }
    }

  private:
    void deliver() {
        while (!queue_.empty() && queue_.top().due <= Clock::now()) {
            const Frame& frame = queue_.top();
            const Port& port = ports_[frame.port];
            // A full TAP drops the frame, as a switch does.
            if (port.up && write(port.tap, frame.bytes.data(), frame.bytes.size()) < 0) ++dropped_;
            queue_.pop();
        }
    }

    void receive(size_t from) {
        char bytes[kMaxFrameBytes];
        for (int i = 0; i < 16; ++i) {
            const ssize_t size = read(ports_[from].tap, bytes, sizeof bytes);
            if (size <= static_cast<ssize_t>(kHeaderBytes) + 12) return;
            if (ports_[from].up) forward(from, bytes, static_cast<size_t>(size));
        }
    }

    void forward(size_t from, const char* bytes, size_t size) {
        uint64_t to_address = 0, from_address = 0;
        std::memcpy(&to_address, bytes + kHeaderBytes, 6);
        std::memcpy(&from_address, bytes + kHeaderBytes + 6, 6);
        port_of_[from_address] = from;
        const Time now = Clock::now();
        Port& source = ports_[from];
        if (source.sending_until - now > kLongestQueue) return void(++dropped_);
        source.sending_until = std::max(now, source.sending_until) + on_the_wire(size);
        const bool broadcast = (bytes[kHeaderBytes] & 1) != 0;
        const auto known = port_of_.find(to_address);
        for (size_t port = 0; port < ports_.size(); ++port) {
            const bool wanted =
                broadcast || known == port_of_.end() ? port != from : port == known->second;
            if (wanted && ports_[port].up) enqueue(port, source.sending_until, bytes, size);
        }
    }

    void enqueue(size_t to, Time sent, const char* bytes, size_t size) {
        Port& port = ports_[to];
        const Time arrives = sent + delay_;
        if (port.receiving_until - arrives > kLongestQueue) return void(++dropped_);
        port.receiving_until = std::max(arrives, port.receiving_until + on_the_wire(size));
        queue_.push({.due = port.receiving_until,
                     .number = num_frames_++,
                     .port = to,
                     .bytes = std::vector<char>(bytes, bytes + size)});
    }

    nanoseconds on_the_wire(size_t size) const {
        if (megabits_ <= 0) return nanoseconds(0);
        // A large segment crosses a real wire as several frames with their own preambles and gaps.
        const size_t payload = size - kHeaderBytes;
        const double bits = 8.0 * static_cast<double>(payload + (payload / 1448 + 1) * 24);
        return nanoseconds(static_cast<int64_t>(bits * 1e3 / megabits_));
    }

    void read_commands(int commands) {
        char text[512];
        const ssize_t size = read(commands, text, sizeof text);
        if (size > 0) line_.append(text, static_cast<size_t>(size));
        for (size_t end; (end = line_.find('\n')) != std::string::npos; line_.erase(0, end + 1)) {
            char word[16] = {};
            double value = 0;
            if (std::sscanf(line_.c_str(), "%15s %lf", word, &value) < 1) continue;
            const std::string command = word;
            const auto port = static_cast<size_t>(value);
            if (command == "delay")
                delay_ = nanoseconds(static_cast<int64_t>(value * 1e3));
            else if (command == "rate")
                megabits_ = value;
            else if ((command == "down" || command == "up") && port < ports_.size())
                ports_[port].up = command == "up";
            else if (command == "quit")
                quit_ = true;
            std::printf("%s %g (%lu frames, %lu dropped)\n", word, value,
                        static_cast<unsigned long>(num_frames_),
                        static_cast<unsigned long>(dropped_));
            std::fflush(stdout);
        }
    }

    std::vector<Port> ports_;
    std::map<uint64_t, size_t> port_of_;  // by Ethernet address
    std::priority_queue<Frame> queue_;
    nanoseconds delay_{0};
    double megabits_ = 0;
    uint64_t num_frames_ = 0;
    uint64_t dropped_ = 0;
    std::string line_;
    bool quit_ = false;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: %s FIFO NAMESPACE...\n", argv[0]);
        return 2;
    }
    prctl(PR_SET_TIMERSLACK, 1);
    Switch ethernet(std::vector<std::string>(argv + 2, argv + argc));
    unlink(argv[1]);
    if (mkfifo(argv[1], 0600) != 0) die(argv[1]);
    const int commands = open(argv[1], O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (commands < 0) die(argv[1]);
    std::printf("switch with %d ports\n", argc - 2);
    std::fflush(stdout);
    ethernet.run(commands);
    unlink(argv[1]);
}
