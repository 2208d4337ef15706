#include "flashloom/ops/embedding/embedding.h"

#include <fmt/format.h>

#include "flashloom/core/check.h"
#include "flashloom/ops/embedding/embedding_cpu.h"

namespace flashloom {
namespace {

constexpr std::string_view kForward = "embedding_forward";
constexpr std::string_view kBackward = "embedding_backward";

void check_tokens(std::string_view op, const ConstTensorView& tokens, int64_t vocabulary) {
  check_shape(op, "tokens", tokens, {kAnySize});
  check_dtype(op, "tokens", tokens, {DType::i32});
  check_contiguous(op, "tokens", tokens);
  check_cpu(op, "tokens", tokens);
  const auto* ids = tokens.as<int32_t>();
  for (int64_t t = 0; t < tokens.shape[0]; ++t) {
    if (ids[t] < 0 || ids[t] >= vocabulary) {
      throw InvalidArgument(op, fmt::format("tokens[{}]", t),
                            fmt::format("a token in [0, {})", vocabulary),
                            fmt::format("{}", ids[t]));
    }
  }
}

}  // namespace

void embedding_forward(TensorView out, ConstTensorView table, ConstTensorView tokens,
                       Stream /*stream*/) {
  check_tensor(kForward, "table", table, {kAnySize, kAnySize}, {DType::f32, DType::bf16});
  check_tokens(kForward, tokens, table.shape[0]);
  check_tensor(kForward, "out", out, {tokens.shape[0], table.shape[1]}, {DType::f32, DType::bf16});
  detail::embedding_forward_cpu(out, table, tokens);
}

void embedding_backward(TensorView dtable, ConstTensorView dout, ConstTensorView tokens,
                        Stream /*stream*/) {
  check_tensor(kBackward, "dtable", dtable, {kAnySize, kAnySize}, {DType::f32});
  check_tokens(kBackward, tokens, dtable.shape[0]);
  check_tensor(kBackward, "dout", dout, {tokens.shape[0], dtable.shape[1]},
               {DType::f32, DType::bf16});
  detail::embedding_backward_cpu(dtable, dout, tokens);
}

}  // namespace flashloom
