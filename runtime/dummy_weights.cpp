#include "runtime/dummy_weights.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/random.h"
#include "runtime/box.h"
#include "runtime/checksum.h"
#include "runtime/convert_plan.h"

namespace ferry {
namespace {

// Mean square of magnitudes uniform in [1, 2), and of 1, 1.125, ..., 1.875 (fp8's mantissas).
constexpr double kMeanSquare = 7.0 / 3;
constexpr double kFp8MeanSquare = 2.1484375;
// int4: -7, -5, ..., 7. With -8 to 7 all weights had a mean of -0.5 in common, and many tokens
// chose the same experts.
constexpr double kInt4MeanSquare = 21;
constexpr uint64_t kInt4Odd = 0x1111111111111111u;

// The element's bits in every lane of a word.
constexpr uint64_t in_all_lanes(uint32_t bits, DType dtype) {
    switch (size_bytes(dtype)) {
        case 4:
            return uint64_t{bits} * 0x0000000100000001u;
        case 2:
            return uint64_t{bits} * 0x0001000100010001u;
        default:
            return uint64_t{bits} * 0x0101010101010101u;
    }
}

uint32_t bits_of(float value, DType dtype) {
    return dtype == DType::f32    ? std::bit_cast<uint32_t>(value)
           : dtype == DType::bf16 ? f32_to_bf16(value)
                                  : f32_to_fp8_e4m3(value);
}

// Sign and mantissa.
constexpr uint32_t random_bits(DType dtype) {
    return dtype == DType::f32 ? 0x807fffffu : dtype == DType::bf16 ? 0x807fu : 0x87u;
}

// Bytes [first, first + num) of the tensor's stream of words.
void fill(uint64_t key, uint64_t mask, uint64_t pattern, int64_t first, int64_t num,
          std::byte* out) {
    const auto word = [=](uint64_t idx) { return (mix64(key + idx) & mask) | pattern; };
    auto idx = static_cast<uint64_t>(first / 8);
    if (const int64_t skipped = first % 8; skipped != 0) {
        const uint64_t bits = word(idx++);
        const int64_t taken = std::min(num, 8 - skipped);
        std::memcpy(out, reinterpret_cast<const std::byte*>(&bits) + skipped,
                    static_cast<size_t>(taken));
        out += taken;
        num -= taken;
    }
    for (; num >= 8; num -= 8, out += 8) {
        const uint64_t bits = word(idx++);
        std::memcpy(out, &bits, 8);
    }
    if (num > 0) {
        const uint64_t bits = word(idx);
        std::memcpy(out, &bits, static_cast<size_t>(num));
    }
}

}  // namespace

DummyWeights::DummyWeights(ModelConfig config, const DummyOptions& options)
    : config_(std::move(config)), seed_(options.seed) {
    if (options.dtype != DType::f32 && options.dtype != DType::bf16 &&
        options.dtype != DType::fp8_e4m3 && options.dtype != DType::int4x2)
        throw Error(ErrorKind::usage, "dummy weights are f32, bf16, fp8 or int4, not {}",
                    to_string(options.dtype));
    if (options.n_layers < 0 || options.n_layers > config_.n_layers)
        throw Error(ErrorKind::usage, "{} layers of dummy weights, but the model has {}",
                    options.n_layers, config_.n_layers);
    if (options.n_layers > 0) {
        config_.n_layers = options.n_layers;
        config_.n_dense_layers = std::min(config_.n_dense_layers, config_.n_layers);
        std::string& pattern = config_.index_topk_pattern;
        pattern.resize(std::min(pattern.size(), static_cast<size_t>(options.n_layers)));
    }
    config_.n_mtp_layers = options.mtp ? 1 : 0;
    config_.validate("dummy weights");

    const DType plain = options.dtype == DType::f32 ? DType::f32 : DType::bf16;
    for (const TensorSpec& spec : model_tensors(config_)) {
        if (spec.name.ends_with("bias"))
            add(spec.name, {DType::f32, spec.shape}, 0, 0);
        else if (spec.name.ends_with("norm"))
            add(spec.name, {plain, spec.shape}, 0, in_all_lanes(bits_of(1, plain), plain));
        else
            add_random(spec, planned_dtype(spec, plain, options.dtype, options.int4));
    }
}

void DummyWeights::add(const std::string& name, TensorInfo info, uint64_t mask, uint64_t pattern) {
    const uint64_t key = mix64(seed_ ^ checksum(name.data(), name.size()));
    tensors_.emplace(name, Tensor{std::move(info), key, mask, pattern});
}

void DummyWeights::add_random(const TensorSpec& spec, DType dtype) {
    const std::string& name = spec.name;
    const auto in = static_cast<double>(spec.shape.back());
    const auto shape = stored_shape(spec, dtype);
    if (!shape)
        throw Error(ErrorKind::usage, "dummy weights: {} {} cannot be {}", name,
                    describe_shape(spec.shape), to_string(dtype));
    TensorInfo info{dtype, *shape};
    if (dtype == DType::int4x2) {
        const uint16_t scale = f32_to_bf16(static_cast<float>(1 / std::sqrt(in * kInt4MeanSquare)));
        add(name + "_scale", scale_info(info), 0, in_all_lanes(scale, DType::bf16));
        add(name, std::move(info), ~kInt4Odd, kInt4Odd);
        return;
    }
    double smallest = 1;  // magnitude: the pattern's exponent with mantissa 0
    if (dtype == DType::fp8_e4m3) {
        const auto scale = static_cast<float>(1 / std::sqrt(in * kFp8MeanSquare));
        add(name + "_scale", scale_info(info), 0,
            in_all_lanes(std::bit_cast<uint32_t>(scale), DType::f32));
    } else {
        smallest = std::exp2(std::round(std::log2(1 / std::sqrt(in * kMeanSquare))));
    }
    const uint32_t exponent = bits_of(static_cast<float>(smallest), dtype);
    add(name, std::move(info), in_all_lanes(random_bits(dtype), dtype),
        in_all_lanes(exponent, dtype));
}

std::optional<TensorInfo> DummyWeights::find(const std::string& name) const {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? std::nullopt : std::optional(it->second.info);
}

void DummyWeights::read(const std::string& name, std::span<const Range> ranges, void* dst) {
    const auto it = tensors_.find(name);
    if (it == tensors_.end())
        throw Error(ErrorKind::checkpoint, "dummy weights: the model has no tensor {}", name);
    const Tensor& tensor = it->second;
    const int64_t element = size_bytes(tensor.info.dtype);
    for_each_run(tensor.info.shape, ranges, [&](int64_t first, int64_t num, int64_t done) {
        fill(tensor.key, tensor.mask, tensor.pattern, first * element, num * element,
             static_cast<std::byte*>(dst) + done * element);
    });
}

}  // namespace ferry
