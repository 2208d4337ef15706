#include "flashloom/ops/adamw_8bit/adamw_8bit.h"

#include <algorithm>

#include "flashloom/core/check.h"
#include "flashloom/ops/adamw_8bit/adamw_8bit_cpu.h"

namespace flashloom {
namespace {

constexpr std::string_view kOp = "adamw_8bit";

void check_tensor(std::string_view argument, const ConstTensorView& view,
                  const ConstTensorView& parameter, std::initializer_list<DType> dtypes) {
  const bool same =
      view.rank == parameter.rank &&
      std::equal(view.shape.begin(), view.shape.begin() + view.rank, parameter.shape.begin());
  check(same, kOp, argument, describe(parameter) + " as the parameter", describe(view));
  check_dtype(kOp, argument, view, dtypes);
  check_contiguous(kOp, argument, view);
  check_cpu(kOp, argument, view);
}

void check_scales(std::string_view argument, const ConstTensorView& view, int64_t elements) {
  check_shape(kOp, argument, view, {(elements + kDynamicCodeBlock - 1) / kDynamicCodeBlock});
  check_dtype(kOp, argument, view, {DType::f32});
  check_contiguous(kOp, argument, view);
  check_cpu(kOp, argument, view);
}

}  // namespace

void adamw_8bit(TensorView parameter, const QuantizedMoment& m, const QuantizedMoment& v,
                ConstTensorView gradient, const AdamwOptions& options, Stream /*stream*/) {
  check(static_cast<bool>(parameter), kOp, "parameter", "a tensor", describe(parameter));
  check_tensor("parameter", parameter, parameter, {DType::f32, DType::bf16});
  check_tensor("m.codes", m.codes, parameter, {DType::u8});
  check_tensor("v.codes", v.codes, parameter, {DType::u8});
  check_scales("m.scales", m.scales, parameter.size());
  check_scales("v.scales", v.scales, parameter.size());
  check_tensor("gradient", gradient, parameter, {DType::f32});
  check_adamw_options(kOp, options);
  detail::adamw_8bit_cpu(parameter, m, v, gradient.as<float>(), options);
}

}  // namespace flashloom
