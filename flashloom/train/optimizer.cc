#include "flashloom/train/optimizer.h"

#include <fmt/format.h>

#include <cmath>

#include "flashloom/core/check.h"
#include "flashloom/ops/adamw/adamw.h"
#include "flashloom/ops/gradient_norm/gradient_norm.h"

namespace flashloom {

Optimizer::Optimizer(const OptimizerOptions& options, int64_t elements, MemoryPlan& plan)
    : options_(options),
      elements_(elements),
      m_(plan.add("adamw.m", MemoryKind::optimizer, DType::f32, {elements})),
      v_(plan.add("adamw.v", MemoryKind::optimizer, DType::f32, {elements})) {}

void Optimizer::bind(const Arena& arena, std::span<const Parameter> parameters) {
  int64_t begin = 0;
  slots_.clear();
  for (const Parameter& parameter : parameters) {
    if (!parameter.trainable()) {
      continue;
    }
    const int64_t size = parameter.value.size();
    check(begin + size <= elements_, "Optimizer::bind", "parameters",
          fmt::format("{} trainable numbers", elements_), "more");
    const auto part = [&](MemoryPlan::Id id) {
      TensorView view = parameter.value;  // contiguous, of the same shape
      view.data = arena[id].slice(0, begin, size).data;
      return view;
    };
    slots_.push_back({parameter, part(m_), part(v_)});
    begin += size;
  }
  check(begin == elements_, "Optimizer::bind", "parameters",
        fmt::format("{} trainable numbers", elements_), fmt::format("{}", begin));
}

std::vector<StateTensor> Optimizer::state() const {
  std::vector<StateTensor> tensors;
  for (const Slot& slot : slots_) {
    tensors.push_back({"m." + slot.parameter.name, slot.m});
    tensors.push_back({"v." + slot.parameter.name, slot.v});
  }
  return tensors;
}

OptimizerStep Optimizer::step(double factor) {
  double sum = 0;
  for (const Slot& slot : slots_) {
    const double squares = sum_of_squares(slot.parameter.gradient);
    if (!std::isfinite(squares)) {
      throw Error(
          fmt::format("the gradient of {} is not finite in step {}; the weights keep the "
                      "values of the step before",
                      slot.parameter.name, steps_ + 1));
    }
    sum += squares;
  }
  OptimizerStep report;
  report.gradient_norm = std::sqrt(sum);
  report.clip = clip_factor(report.gradient_norm, options_.clip_norm);
  report.learning_rate = options_.learning_rate * factor;
  ++steps_;
  for (const Slot& slot : slots_) {
    const bool is_b = slot.parameter.role == ParameterRole::adapter_b;
    const bool decays = takes_weight_decay(slot.parameter.role);
    adamw(slot.parameter.value, slot.m, slot.v, slot.parameter.gradient,
          {.learning_rate =
               static_cast<float>(report.learning_rate * (is_b ? options_.adapter_b_ratio : 1)),
           .beta1 = static_cast<float>(options_.beta1),
           .beta2 = static_cast<float>(options_.beta2),
           .epsilon = static_cast<float>(options_.epsilon),
           .weight_decay = static_cast<float>(decays ? options_.weight_decay : 0),
           .gradient_scale = report.clip,
           .step = steps_});
  }
  return report;
}

}  // namespace flashloom
