#include "layers/weight_loader.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <numeric>

#include "base/error.h"

namespace ferry {
namespace {

constexpr int64_t kPieceBytes = int64_t{256} << 10;  // stays in cache between read and packing
// Of a weight that one thread fills: a huge page. Threads that touch the same one for the first
// time at once would both be given one by the kernel, cleared, and one of them would be thrown
// away.
constexpr int64_t kTaskBytes = int64_t{2} << 20;

// fn(i) for [0, num) by all threads; what one throws is thrown here at the end.
template <typename Fn>
void in_parallel(ThreadPool& threads, int64_t num, Fn&& fn) {
    std::exception_ptr failure;
    std::mutex mutex;
    threads.parallel_for(num, [&](int64_t i, int) {
        try {
            fn(i);
        } catch (...) {
            const std::lock_guard lock(mutex);
            if (!failure) failure = std::current_exception();
        }
    });
    if (failure) std::rethrow_exception(failure);
}

std::vector<Range> whole_box(std::span<const int64_t> shape) {
    std::vector<Range> box;
    for (int64_t extent : shape) box.push_back({0, extent});
    return box;
}

int64_t count_elements(std::span<const Range> box) {
    int64_t count = 1;
    for (const Range& range : box) count *= range.num;
    return count;
}

void widen(const void* from, DType dtype, int64_t count, float* to) {
    for (int64_t i = 0; i < count; ++i) {
        switch (dtype) {
            case DType::f32:
                to[i] = static_cast<const float*>(from)[i];
                break;
            case DType::bf16:
                to[i] = bf16_to_f32(static_cast<const uint16_t*>(from)[i]);
                break;
            default:
                to[i] = fp8_e4m3_to_f32(static_cast<const uint8_t*>(from)[i]);
        }
    }
}

// Memory of this thread for a piece on its way: a huge page, since a cache holds no more than a
// part of a piece whose small pages lie anywhere.
std::span<std::byte> staging_memory(int64_t num_bytes) {
    thread_local Buffer memory;
    const size_t size = static_cast<size_t>(num_bytes);
    if (memory.size_bytes() < size)
        memory = Buffer(cpu_device(), std::max(size, static_cast<size_t>(kTaskBytes)));
    return {memory.as<std::byte>(), size};
}

Buffer view_of(const Buffer& buffer) {
    return Buffer::adopt(buffer.data(), buffer.size_bytes(), [] {});
}

Range scale_range(Range range) {
    return {range.begin / kScaleBlock, ceil_div(range.num, kScaleBlock)};
}

}  // namespace

ModelPart ModelPart::whole(const ModelConfig& config) {
    ModelPart part;
    std::vector<int32_t>& all =
        part.experts.emplace_back(static_cast<size_t>(config.n_routed_experts));
    std::iota(all.begin(), all.end(), 0);
    return part;
}

namespace {

// Of one list for all MoE layers, or one per MoE layer.
template <typename T>
std::span<const T> list_of(const std::vector<std::vector<T>>& lists, const ModelConfig& config,
                           int64_t layer) {
    if (lists.empty() || !config.is_moe_layer(layer)) return {};
    return lists.size() == 1 ? lists[0] : lists[static_cast<size_t>(layer - config.n_dense_layers)];
}

}  // namespace

std::span<const int32_t> ModelPart::experts_of(const ModelConfig& config, int64_t layer) const {
    return list_of(experts, config, layer);
}

std::span<const SharedExpert> NodeShares::shared_experts_of(const ModelConfig& config,
                                                            int64_t layer) const {
    return list_of(shared_experts, config, layer);
}

WeightLoader::WeightLoader(WeightSource& source, Kernels& kernels,
                           std::function<void(int64_t)> progress)
    : source_(source), kernels_(kernels), progress_(std::move(progress)) {}

void WeightLoader::read(const std::string& name, std::span<const Range> box,
                        std::span<std::byte> to) {
    source_.read(name, box, to.data());
    bytes_read_ += static_cast<int64_t>(to.size());
}

void WeightLoader::tell_progress() const {
    if (progress_) progress_(bytes_read_);
}

Buffer WeightLoader::take(size_t size_bytes) {
    return is_shared() ? share_->take(size_bytes) : Buffer(kernels_.device(), size_bytes);
}

Weight WeightLoader::make_weight(const WeightSpec& spec) {
    if (!is_shared()) return kernels_.make_weight(spec);
    Weight weight{.spec = spec,
                  .data = share_->take(static_cast<size_t>(kernels_.packed_bytes(spec))),
                  .scales = {}};
    if (spec.dtype == DType::fp8_e4m3)
        weight.scales = share_->take(static_cast<size_t>(
            4 * spec.groups * ceil_div(spec.out, kScaleBlock) * ceil_div(spec.in, kScaleBlock)));
    return weight;
}

TensorInfo WeightLoader::info(const std::string& name) const {
    const std::optional<TensorInfo> found = source_.find(name);
    if (!found) throw Error(ErrorKind::checkpoint, "tensor {} is missing", name);
    return *found;
}
DType WeightLoader::dtype(const std::string& name) const {
    return info(name).dtype;
}
std::vector<int64_t> WeightLoader::shape(const std::string& name) const {
    return info(name).shape;
}

OwnedTensor WeightLoader::plain(const std::string& name) {
    const TensorInfo tensor = info(name);
    const std::vector<Range> box = whole_box(tensor.shape);
    const int64_t num = count_elements(box);
    Buffer memory = take(static_cast<size_t>(num) * sizeof(float));
    OwnedTensor result =
        tensor.shape.size() == 1
            ? OwnedTensor(std::move(memory), DType::f32, {num})
            : OwnedTensor(std::move(memory), DType::f32, {tensor.shape[0], num / tensor.shape[0]});
    if (!is_mine(num_plain_++)) return result;
    std::vector<std::byte> stored(static_cast<size_t>(num * size_bytes(tensor.dtype)));
    read(name, box, stored);
    tell_progress();
    std::vector<float> wide(static_cast<size_t>(num));
    widen(stored.data(), tensor.dtype, num, wide.data());
    kernels_.device().copy_from_host(result.view().data(), wide.data(), wide.size() * 4);
    return result;
}

OwnedTensor WeightLoader::rows(const std::string& name, Range rows, Weight* packed) {
    const TensorInfo tensor = info(name);
    if (tensor.dtype != DType::f32 && tensor.dtype != DType::bf16)
        throw Error(ErrorKind::checkpoint, "tensor {} is {}, only f32 and bf16 rows are supported",
                    name, to_string(tensor.dtype));
    const int64_t columns = tensor.shape[1], row_bytes = columns * size_bytes(tensor.dtype);
    OwnedTensor result(take(static_cast<size_t>(rows.num * row_bytes)), tensor.dtype,
                       {rows.num, columns});
    if (packed != nullptr)
        *packed = make_weight({.dtype = tensor.dtype, .groups = 1, .out = rows.num, .in = columns});
    const bool in_place = kernels_.device().type() == DeviceType::cpu;
    const int64_t rows_per_piece =
        std::max<int64_t>(1, kTaskBytes / row_bytes / kScaleBlock) * kScaleBlock;
    const auto load_piece = [&](int64_t i) {
        if (!is_mine(i)) return;
        const int64_t first = i * rows_per_piece;
        const int64_t num = std::min(rows_per_piece, rows.num - first);
        const Range box[] = {{rows.begin + first, num}, {0, columns}};
        std::vector<std::byte> staging(in_place ? 0 : static_cast<size_t>(num * row_bytes));
        std::byte* to = in_place ? result.view().row<std::byte>(first) : staging.data();
        read(name, box, {to, static_cast<size_t>(num * row_bytes)});
        if (!in_place)
            kernels_.device().copy_from_host(result.view().row<std::byte>(first), to,
                                             staging.size());
        if (packed != nullptr)
            kernels_.pack(*packed, 0, first, Tensor(to, tensor.dtype, {num, columns}), nullptr);
    };
    const int64_t num_pieces = ceil_div(rows.num, rows_per_piece);
    if (in_place)
        in_parallel(kernels_.threads(), num_pieces, load_piece);
    else
        for (int64_t i = 0; i < num_pieces; ++i) load_piece(i);
    tell_progress();
    return result;
}

Weight WeightLoader::linear(const std::string& name) {
    const TensorInfo tensor = info(name);
    return linear(name, {0, tensor.shape[0]}, {0, tensor.shape[1]});
}

Weight WeightLoader::linear(const std::string& name, Range out, Range in) {
    const TensorInfo tensor = info(name);
    Weight weight = make_weight({.dtype = tensor.dtype, .groups = 1, .out = out.num, .in = in.num});
    const int64_t rows_per_piece =
        std::max<int64_t>(1, kPieceBytes / (in.num * size_bytes(tensor.dtype)) / kScaleBlock) *
        kScaleBlock;
    std::vector<Piece> pieces;
    for (int64_t first = 0; first < out.num; first += rows_per_piece) {
        const Range rows{out.begin + first, std::min(rows_per_piece, out.num - first)};
        pieces.push_back({0,
                          first,
                          rows.num,
                          is_mine(first / rows_per_piece),
                          {rows, in},
                          {scale_range(rows), scale_range(in)}});
    }
    fill(name, weight, pieces);
    return weight;
}

// Those that the node's ranks share lie in its memory, once; all its expert ranks take it, those
// that do not hold them too.
Weight WeightLoader::make_expert_weight(const WeightSpec& spec, std::span<const int32_t> experts,
                                        std::span<const SharedExpert> shared) {
    if (shared.empty()) return kernels_.make_weight(spec);
    const HeldAlike held_alike(*this, shares_.experts);
    WeightSpec one = spec;
    one.groups = 1;
    Weight weight{.spec = spec, .data = {}, .scales = {}};
    weight.apart.resize(experts.size());
    for (const SharedExpert& copies : shared) {
        Weight memory = make_weight(one);
        for (size_t group = 0; group < experts.size(); ++group) {
            if (experts[group] != copies.expert) continue;
            Weight::Group& place = weight.apart[group];
            place.data = std::exchange(memory.data, view_of(memory.data));
            place.scales = std::exchange(memory.scales, view_of(memory.scales));
        }
    }
    for (Weight::Group& place : weight.apart) {
        if (place.data.data() != nullptr) continue;
        Weight memory = kernels_.make_weight(one);
        place = {std::move(memory.data), std::move(memory.scales)};
    }
    return weight;
}

Weight WeightLoader::experts(const std::string& name, std::span<const int32_t> experts,
                             std::span<const SharedExpert> shared) {
    const TensorInfo tensor = info(name);
    const int64_t out = tensor.shape[1], in = tensor.shape[2];
    Weight weight = make_expert_weight({.dtype = tensor.dtype,
                                        .groups = static_cast<int64_t>(experts.size()),
                                        .out = out,
                                        .in = in},
                                       experts, shared);
    const int64_t rows_per_piece =
        std::max<int64_t>(1, kPieceBytes / (in * size_bytes(tensor.dtype)) / kScaleBlock) *
        kScaleBlock;
    std::vector<Piece> pieces;
    for (size_t group = 0; group < experts.size(); ++group) {
        const auto copies = std::ranges::find(shared, experts[group], &SharedExpert::expert);
        const bool again = std::ranges::find(experts.first(group), experts[group]) !=
                           experts.begin() + static_cast<int64_t>(group);
        for (int64_t first = 0; first < out; first += rows_per_piece) {
            const Range rows{first, std::min(rows_per_piece, out - first)};
            const bool mine =
                copies == shared.end() ||
                (!again && first / rows_per_piece % copies->num_holders == copies->holder);
            pieces.push_back({static_cast<int64_t>(group),
                              first,
                              rows.num,
                              mine,
                              {{experts[group], 1}, rows, {0, in}},
                              {{experts[group], 1}, scale_range(rows), scale_range({0, in})}});
        }
    }
    fill(name, weight, pieces);
    return weight;
}

void WeightLoader::fill(const std::string& name, Weight& weight, const Piece& piece) {
    thread_local std::vector<float> scales;
    const int64_t in = weight.spec.in;
    const std::span<std::byte> staging =
        staging_memory(count_elements(piece.box) * size_bytes(weight.spec.dtype));
    read(name, piece.box, staging);
    const Tensor w(staging.data(), weight.spec.dtype, {piece.num_out, in});
    if (weight.spec.dtype != DType::fp8_e4m3) {
        kernels_.pack(weight, piece.group, piece.first_out, w, nullptr);
        return;
    }
    scales.resize(static_cast<size_t>(count_elements(piece.scale_box)));
    read(name + "_scale", piece.scale_box, std::as_writable_bytes(std::span(scales)));
    const Tensor scale_rows(scales.data(), DType::f32,
                            {ceil_div(piece.num_out, kScaleBlock), ceil_div(in, kScaleBlock)});
    kernels_.pack(weight, piece.group, piece.first_out, w, &scale_rows);
}

void WeightLoader::fill(const std::string& name, Weight& weight, const std::vector<Piece>& pieces) {
    const int64_t num = static_cast<int64_t>(pieces.size());
    if (num == 0) return;
    const int64_t piece_bytes = count_elements(pieces[0].box) * size_bytes(weight.spec.dtype);
    const bool huge_pages = weight.size_bytes() >= kTaskBytes;
    const int64_t at_once = huge_pages ? std::max<int64_t>(1, kTaskBytes / piece_bytes) : 1;
    in_parallel(kernels_.threads(), ceil_div(num, at_once), [&](int64_t task) {
        for (int64_t i = task * at_once; i < std::min(num, (task + 1) * at_once); ++i)
            if (pieces[static_cast<size_t>(i)].mine)
                fill(name, weight, pieces[static_cast<size_t>(i)]);
    });
    tell_progress();
}

OwnedTensor WeightLoader::dequantised(const std::string& name, Range out, Weight* packed) {
    const TensorInfo tensor = info(name);
    const int64_t in = tensor.shape[1];
    const int64_t count_values = out.num * in;
    std::vector<std::byte> stored(static_cast<size_t>(count_values * size_bytes(tensor.dtype)));
    read(name, std::vector<Range>{out, {0, in}}, stored);
    const Tensor values(stored.data(), tensor.dtype, {out.num, in});
    OwnedTensor result(cpu_device(), DType::f32, {out.num, in});
    widen(stored.data(), tensor.dtype, count_values, result.view().as<float>());
    if (tensor.dtype != DType::fp8_e4m3) {
        if (packed != nullptr) kernels_.pack(*packed, 0, 0, values, nullptr);
        tell_progress();
        return result;
    }
    FERRY_CHECK(out.begin % kScaleBlock == 0, "rows {}+{} of {}", out.begin, out.num, name);
    const int64_t blocks = ceil_div(in, kScaleBlock);
    std::vector<float> scales(static_cast<size_t>(ceil_div(out.num, kScaleBlock) * blocks));
    read(name + "_scale", std::vector<Range>{scale_range(out), {0, blocks}},
         std::as_writable_bytes(std::span(scales)));
    const Tensor scale_rows(scales.data(), DType::f32, {ceil_div(out.num, kScaleBlock), blocks});
    if (packed != nullptr) kernels_.pack(*packed, 0, 0, values, &scale_rows);
    for (int64_t row = 0; row < out.num; ++row)
        for (int64_t i = 0; i < in; ++i)
            result.view().row<float>(row)[i] *=
                scales[static_cast<size_t>(row / kScaleBlock * blocks + i / kScaleBlock)];
    tell_progress();
    return result;
}

}  // namespace ferry
