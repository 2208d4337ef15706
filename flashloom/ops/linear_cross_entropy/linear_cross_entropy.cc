#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy.h"

#include <fmt/format.h>

#include <cmath>

#include "flashloom/core/check.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy_cpu.h"

namespace flashloom {
namespace {

constexpr std::string_view kOp = "linear_cross_entropy";

void check_number(bool ok, std::string_view argument, std::string_view expected, float actual) {
  check(ok && std::isfinite(actual), kOp, argument, expected, fmt::format("{}", actual));
}

void check_labels(const ConstTensorView& labels, int64_t vocabulary) {
  const int32_t* label = labels.as<int32_t>();
  for (int64_t t = 0; t < labels.dim(0); ++t) {
    if (label[t] != kIgnoredLabel && (label[t] < 0 || label[t] >= vocabulary)) {
      throw InvalidArgument(kOp, fmt::format("labels[{}]", t),
                            fmt::format("{} or a token in [0, {})", kIgnoredLabel, vocabulary),
                            fmt::format("{}", label[t]));
    }
  }
}

}  // namespace

void linear_cross_entropy(TensorView loss, TensorView dhidden, TensorView dweight,
                          ConstTensorView hidden, ConstTensorView weight, ConstTensorView labels,
                          std::span<std::byte> workspace, const LinearCrossEntropyOptions& options,
                          Stream) {
  check_tensor(kOp, "hidden", hidden, {kAnySize, kAnySize});
  const int64_t tokens = hidden.dim(0);
  const int64_t channels = hidden.dim(1);
  check_tensor(kOp, "weight", weight, {kAnySize, channels}, {DType::f32, DType::bf16});
  const int64_t vocabulary = weight.dim(0);
  check_tensor(kOp, "labels", labels, {tokens}, {DType::i32});
  check_tensor(kOp, "loss", loss, {tokens});
  if (dhidden) {
    check_tensor(kOp, "dhidden", dhidden, {tokens, channels});
  }
  if (dweight) {
    check_tensor(kOp, "dweight", dweight, {vocabulary, channels});
  }
  check_number(true, "gradient_scale", "a finite number", options.gradient_scale);
  check_number(options.label_smoothing >= 0 && options.label_smoothing <= 1, "label_smoothing",
               "a number in [0, 1]", options.label_smoothing);
  check_number(options.z_loss >= 0, "z_loss", "a number >= 0", options.z_loss);
  check_number(options.softcap >= 0, "softcap", "a number > 0, or 0 for none", options.softcap);
  check_number(options.filter >= 0 && options.filter < 1, "filter", "a number in [0, 1)",
               options.filter);
  check(options.filter == 0 || weight.dtype == DType::f32, kOp, "weight", "f32 with a filter",
        describe(weight));
  check(options.filter == 0 || options.label_smoothing == 0 || options.softcap == 0, kOp, "filter",
        "0 with label smoothing and a softcap", fmt::format("{}", options.filter));
  check(options.filter > 0 || !options.filter_weight_gradient, kOp, "filter_weight_gradient",
        "false without a filter", "true");
  check(options.filter > 0 || !options.sort_vocabulary, kOp, "sort_vocabulary",
        "false without a filter", "true");
  check_labels(labels, vocabulary);
  const int64_t needed = linear_cross_entropy_workspace_bytes(
      tokens, channels, vocabulary, dhidden || dweight,
      dweight || options.filter > 0 || options.label_smoothing > 0);
  check(static_cast<int64_t>(workspace.size()) >= needed, kOp, "workspace",
        fmt::format("at least {} bytes", needed), fmt::format("{}", workspace.size()));
  linear_cross_entropy_cpu(loss, dhidden, dweight, hidden, weight, labels, workspace, options);
}

int64_t linear_cross_entropy_workspace_bytes(int64_t tokens, int64_t channels, int64_t vocabulary,
                                             bool with_gradients, bool keeps_logits) {
  // Sizes of tensors that fit an address space; their products with four bytes fit int64 too.
  constexpr int64_t kLimit = int64_t{1} << 28;
  check(tokens >= 0 && tokens <= kLimit, kOp, "tokens", "a size in [0, 2^28]",
        fmt::format("{}", tokens));
  check(channels >= 0 && channels <= kLimit, kOp, "channels", "a size in [0, 2^28]",
        fmt::format("{}", channels));
  check(vocabulary >= 0 && vocabulary <= kLimit, kOp, "vocabulary", "a size in [0, 2^28]",
        fmt::format("{}", vocabulary));
  return linear_cross_entropy_workspace_bytes_cpu(tokens, channels, vocabulary, with_gradients,
                                                  keeps_logits);
}

}  // namespace flashloom
