#include "flashloom/train/optimizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "flashloom/core/check.h"
#include "flashloom/core/parallel.h"
#include "flashloom/ops/adamw/adamw.h"
#include "flashloom/ops/gradient_norm/gradient_norm.h"
#include "flashloom/train/non_finite.h"

namespace flashloom {
namespace {

// bitsandbytes' limit: of vectors, whose moments are few and matter much, 8 bits save nothing.
constexpr int64_t kLeastQuantized = 4096;

constexpr std::array<std::string_view, 2> kOptimizers = {"adamw", "adamw8bit"};
constexpr std::array<std::string_view, 3> kUpdates = {"stochastic", "master", "nearest"};

template <class Enum, size_t kCount>
Enum parse(const char* function, const std::array<std::string_view, kCount>& names,
           std::string_view name) {
  std::string expected;
  for (size_t i = 0; i < kCount; ++i) {
    if (name == names[i]) {
      return static_cast<Enum>(i);
    }
    expected += (i == 0 ? "" : i + 1 < kCount ? ", " : " or ") + std::string(names[i]);
  }
  throw InvalidArgument(function, "name", expected, fmt::format("\"{}\"", name));
}

// Rows as they lie in memory.
TensorView flat(const TensorView& view) {
  return view.reshape({view.size()});
}

void convert(const TensorView& to, const TensorView& from) {
  constexpr int64_t kTile = 16384;
  const int64_t count = to.size();
  parallel_for(tile_count(count, kTile), [&](int64_t tile) {
    for (int64_t i = tile * kTile; i < std::min(count, (tile + 1) * kTile); ++i) {
      if (to.dtype == DType::f32) {
        to.as<float>()[i] = static_cast<float>(from.as<bf16>()[i]);
      } else {
        to.as<bf16>()[i] = bf16(from.as<float>()[i]);
      }
    }
  });
}

}  // namespace

std::string_view optimizer_name(OptimizerMoments moments) {
  return kOptimizers[static_cast<size_t>(moments)];
}

std::string_view bf16_updates_name(Bf16Updates updates) {
  return kUpdates[static_cast<size_t>(updates)];
}

OptimizerMoments parse_optimizer(std::string_view name) {
  return parse<OptimizerMoments>("parse_optimizer", kOptimizers, name);
}

Bf16Updates parse_bf16_updates(std::string_view name) {
  return parse<Bf16Updates>("parse_bf16_updates", kUpdates, name);
}

TensorView Optimizer::Slot::of_part(const TensorView& whole) const {
  return flat(whole).slice(0, part.first, part.count);
}

Optimizer::Optimizer(const OptimizerOptions& options, std::span<const Parameter> parameters,
                     MemoryPlan& plan, RankOf place)
    : options_(options), divided_(!place.alone()) {
  std::vector<int64_t> sizes;
  for (const Parameter& parameter : parameters) {
    if (parameter.trainable()) {
      sizes.push_back(parameter.value.size());
    }
  }
  const Shards shards(sizes, place.ranks, kDynamicCodeBlock);
  int64_t position = 0;
  for (const Parameter& parameter : parameters) {
    if (!parameter.trainable()) {
      continue;
    }
    const int64_t size = parameter.value.size();
    const TensorPart part = shards.of(place.rank)[slots_.size()];
    const bool quantized = options.moments == OptimizerMoments::bits8 && size >= kLeastQuantized;
    const auto add = [&](std::string_view what, DType dtype, int64_t count) {
      return plan.add(fmt::format("{}.{}", what, parameter.name), MemoryKind::optimizer, dtype,
                      {count});
    };
    const auto moment = [&](std::string_view name) {
      Moment ids = {.values = add(name, quantized ? DType::u8 : DType::f32, part.count)};
      if (quantized) {
        ids.scales = add(fmt::format("{}_scales", name), DType::f32,
                         tile_count(part.count, kDynamicCodeBlock));
      }
      return ids;
    };
    Slot slot;
    slot.parameter = parameter;
    slot.part = part;
    slot.position = position + part.first;
    slot.m_ids = moment("m");
    slot.v_ids = moment("v");
    if (parameter.value.dtype == DType::bf16 && options.bf16_updates == Bf16Updates::master) {
      slot.master_id = add("master", DType::f32, part.count);
    }
    slots_.push_back(std::move(slot));
    position += size;
  }
  gradient_norms_.resize(slots_.size());
}

void Optimizer::bind(const Arena& arena, std::span<const Parameter> parameters) {
  size_t next = 0;
  for (const Parameter& parameter : parameters) {
    if (!parameter.trainable()) {
      continue;
    }
    check(next < slots_.size() && slots_[next].parameter.name == parameter.name &&
              slots_[next].parameter.value.size() == parameter.value.size() &&
              slots_[next].parameter.value.dtype == parameter.value.dtype,
          "Optimizer::bind", "parameters", "those that were planned for", parameter.name);
    Slot& slot = slots_[next++];
    const auto bound = [&](const Moment& ids) {
      return QuantizedMoment{arena[ids.values], ids.scales < 0 ? TensorView() : arena[ids.scales]};
    };
    slot.parameter = parameter;
    slot.m = bound(slot.m_ids);
    slot.v = bound(slot.v_ids);
    if (slot.master_id >= 0) {
      slot.master = arena[slot.master_id];
      convert(slot.master, slot.of_part(parameter.value));
    }
  }
  check(next == slots_.size(), "Optimizer::bind", "parameters",
        fmt::format("{} that are trained", slots_.size()), fmt::format("{}", next));
}

std::vector<StateTensor> Optimizer::state() const {
  std::vector<StateTensor> tensors;
  for (const Slot& slot : slots_) {
    const int64_t size = slot.parameter.value.size();
    // A state of one number for each `of` of the parameter's.
    const auto add = [&](std::string_view what, const TensorView& view, int64_t of) {
      if (view) {
        StateTensor& tensor =
            tensors.emplace_back(fmt::format("{}.{}", what, slot.parameter.name), view);
        if (divided_) {
          tensor.size = tile_count(size, of);
          tensor.first = slot.part.first / of;
        }
      }
    };
    add("m", slot.m.codes, 1);
    add("m_scales", slot.m.scales, kDynamicCodeBlock);
    add("v", slot.v.codes, 1);
    add("v_scales", slot.v.scales, kDynamicCodeBlock);
    add("master", slot.master, 1);
  }
  return tensors;
}

OptimizerStep Optimizer::step(double factor,
                              const std::function<void(std::span<double>)>& sum_ranks) {
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    gradient_norms_[i] =
        slot.part.count > 0 ? sum_of_squares(slot.of_part(slot.parameter.gradient)) : 0;
  }
  if (sum_ranks) {
    sum_ranks(gradient_norms_);
  }
  double sum = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const double squares = gradient_norms_[i];
    if (!std::isfinite(squares)) {
      throw NonFiniteGradient(fmt::format("the gradient of {}", slots_[i].parameter.name));
    }
    gradient_norms_[i] = std::sqrt(squares);
    sum += squares;
  }
  OptimizerStep report;
  report.gradient_norm = std::sqrt(sum);
  report.clip = clip_factor(report.gradient_norm, options_.clip_norm);
  report.learning_rate = options_.learning_rate * factor;
  ++steps_;
  for (const Slot& slot : slots_) {
    if (slot.part.count > 0) {
      update(slot, report);
    }
  }
  return report;
}

void Optimizer::update(const Slot& slot, const OptimizerStep& report) const {
  const bool is_b = slot.parameter.role == ParameterRole::adapter_b;
  const bool decays = takes_weight_decay(slot.parameter.role);
  const AdamwOptions options = {
      .learning_rate =
          static_cast<float>(report.learning_rate * (is_b ? options_.adapter_b_ratio : 1)),
      .beta1 = static_cast<float>(options_.beta1),
      .beta2 = static_cast<float>(options_.beta2),
      .epsilon = static_cast<float>(options_.epsilon),
      .weight_decay = static_cast<float>(decays ? options_.weight_decay : 0),
      .gradient_scale = report.clip,
      .step = steps_,
      .rounding = options_.bf16_updates == Bf16Updates::stochastic ? AdamwRounding::stochastic
                                                                   : AdamwRounding::nearest,
      .seed = options_.seed,
      .position = slot.position};
  const TensorView weight = slot.of_part(slot.parameter.value);
  const TensorView target = slot.master ? slot.master : weight;
  const TensorView gradient = slot.of_part(slot.parameter.gradient);
  if (slot.m.scales) {
    adamw_8bit(target, slot.m, slot.v, gradient, options);
  } else {
    adamw(target, slot.m.codes, slot.v.codes, gradient, options);
  }
  if (slot.master) {
    convert(weight, slot.master);
  }
}

}  // namespace flashloom
