#include "runtime/stored_tensor.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "runtime/box.h"

namespace ferry {
namespace {

constexpr int64_t kDirectBytes = int64_t{1} << 20;   // runs from here on are read where they go
constexpr int64_t kMaxGapBytes = int64_t{64} << 10;  // smaller holes are read over
constexpr int64_t kSpanBytes = int64_t{4} << 20;

// Gathers short runs that lie near each other into one read.
class RunReader {
  public:
    ~RunReader() { FERRY_CHECK(runs_.empty() || std::uncaught_exceptions() > 0); }

    void add(const InputFile& file, int64_t offset, int64_t num_bytes, std::byte* dst) {
        if (num_bytes >= kDirectBytes) {
            file.read_at(offset, static_cast<size_t>(num_bytes), dst);
            return;
        }
        if (!continues_span(file, offset, num_bytes)) {
            flush();
            file_ = &file;
            begin_ = offset;
        }
        runs_.push_back({offset, num_bytes, dst});
        end_ = offset + num_bytes;
    }

    void flush() {
        if (runs_.size() == 1) {
            file_->read_at(begin_, static_cast<size_t>(runs_[0].num_bytes), runs_[0].dst);
        } else if (!runs_.empty()) {
            thread_local std::vector<std::byte> span;
            span.resize(static_cast<size_t>(std::max(end_ - begin_, kSpanBytes)));
            file_->read_at(begin_, static_cast<size_t>(end_ - begin_), span.data());
            for (const Run& run : runs_)
                std::memcpy(run.dst, span.data() + (run.offset - begin_),
                            static_cast<size_t>(run.num_bytes));
        }
        runs_.clear();
    }

  private:
    struct Run {
        int64_t offset, num_bytes;
        std::byte* dst;
    };
    bool continues_span(const InputFile& file, int64_t offset, int64_t num_bytes) const {
        return !runs_.empty() && file_ == &file && offset >= end_ &&
               offset - end_ <= kMaxGapBytes && offset + num_bytes - begin_ <= kSpanBytes;
    }

    const InputFile* file_ = nullptr;
    int64_t begin_ = 0, end_ = 0;
    std::vector<Run> runs_;
};

// Elements [first, first + num) of a tensor, which may go over several parts.
void add_run(RunReader& reader, const StoredTensor& tensor, int64_t row_elements, int64_t first,
             int64_t num, std::byte* dst) {
    const int64_t element_bytes = size_bytes(tensor.info.dtype);
    const int64_t row = first / row_elements;
    auto part = std::upper_bound(tensor.parts.begin(), tensor.parts.end(), row,
                                 [](int64_t r, const StoredPart& p) { return r < p.first_row; });
    for (--part; num > 0; ++part) {
        const int64_t part_begin = part->first_row * row_elements;
        const int64_t part_end = part_begin + part->num_rows * row_elements;
        const int64_t taken = std::min(num, part_end - first);
        reader.add(*part->file, part->offset_bytes + (first - part_begin) * element_bytes,
                   taken * element_bytes, dst);
        first += taken;
        num -= taken;
        dst += taken * element_bytes;
    }
}

}  // namespace

std::optional<int64_t> checked_count(std::span<const int64_t> shape) {
    int64_t count = 1;
    for (int64_t extent : shape) {
        if (extent < 0 || (extent > 0 && count > (int64_t{1} << 59) / extent)) return std::nullopt;
        count *= extent;
    }
    return count;
}

int64_t size_bytes(const TensorInfo& info) {
    return checked_count(info.shape).value_or(0) * size_bytes(info.dtype);
}

std::vector<Range> whole_box(std::span<const int64_t> shape) {
    std::vector<Range> ranges;
    for (int64_t extent : shape) ranges.push_back({0, extent});
    return ranges;
}

namespace {

// Elements of `dst` that a file has once for tensor.repeat of them.
void read_repeated(const StoredTensor& tensor, std::span<const Range> ranges, std::byte* dst) {
    const auto element_bytes = static_cast<size_t>(size_bytes(tensor.info.dtype));
    const Range columns = ranges.back();
    StoredTensor once = tensor;
    once.repeat = 1;
    once.info.shape.back() /= tensor.repeat;
    std::vector<Range> box(ranges.begin(), ranges.end());
    const int64_t first = columns.begin / tensor.repeat;
    const int64_t end = (columns.begin + columns.num + tensor.repeat - 1) / tensor.repeat;
    box.back() = {first, end - first};
    int64_t num_rows = 1;
    for (size_t i = 0; i + 1 < box.size(); ++i) num_rows *= box[i].num;
    std::vector<std::byte> values(static_cast<size_t>(num_rows * box.back().num) * element_bytes);
    read_box(once, box, values.data());
    for (int64_t row = 0; row < num_rows; ++row)
        for (int64_t i = columns.begin; i < columns.begin + columns.num; ++i) {
            const int64_t from = row * box.back().num + i / tensor.repeat - first;
            std::memcpy(dst, values.data() + static_cast<size_t>(from) * element_bytes,
                        element_bytes);
            dst += element_bytes;
        }
}

}  // namespace

void read_box(const StoredTensor& tensor, std::span<const Range> ranges, void* dst) {
    if (tensor.repeat > 1) return read_repeated(tensor, ranges, static_cast<std::byte*>(dst));
    const int64_t element_bytes = size_bytes(tensor.info.dtype);
    int64_t row_elements = 1;
    for (size_t i = 1; i < tensor.info.shape.size(); ++i) row_elements *= tensor.info.shape[i];
    RunReader reader;
    for_each_run(tensor.info.shape, ranges, [&](int64_t first, int64_t num, int64_t done) {
        add_run(reader, tensor, row_elements, first, num,
                static_cast<std::byte*>(dst) + done * element_bytes);
    });
    reader.flush();
}

}  // namespace ferry
