#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "flashloom/core/error.h"
#include "flashloom/ops/attention/attention_test_case.h"

namespace flashloom {
namespace {

using attention_test::forward;
using attention_test::Tensor;
using attention_test::with_backend;
using testing::HasSubstr;

// A valid call, to be broken in one place.
struct Call {
  Tensor q{DType::f32, {2, 4, 10, 8}};
  Tensor k{DType::f32, {2, 2, 12, 8}};
  Tensor v{DType::f32, {2, 2, 12, 8}};
  Tensor out{DType::f32, {2, 4, 10, 8}};
  Tensor lse{DType::f32, {2, 4, 10}};
  AttentionOptions options;

  std::string complaint(const AttentionOutputs& outputs, const AttentionInputs& inputs) const {
    try {
      forward(outputs, inputs, options);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "no complaint";
  }

  std::string complaint() const { return complaint({.out = out, .lse = lse}, {q, k, v}); }
};

TEST(AttentionValidation, NamesTheTensorThatDoesNotFit) {
  const Call call;
  const Tensor other(DType::f32, {2, 2, 13, 8});
  const Tensor heads(DType::f32, {2, 3, 12, 8});
  EXPECT_THAT(call.complaint({.out = call.out}, {call.q, call.k, other}), HasSubstr(": v: "));
  EXPECT_THAT(call.complaint({.out = call.out}, {call.q, heads, heads}), HasSubstr(": k: "));
  EXPECT_THAT(call.complaint({.out = other}, {call.q, call.k, call.v}), HasSubstr(": out: "));
  EXPECT_THAT(call.complaint({.out = call.out, .lse = other}, {call.q, call.k, call.v}),
              HasSubstr(": lse: "));
}

TEST(AttentionValidation, RefusesNumbersOutOfRange) {
  const std::pair<const char*, std::function<void(AttentionOptions&)>> faults[] = {
      {": left: ", [](auto& o) { o.visibility.left = -2; }},
      {": softcap: ", [](auto& o) { o.score.softcap = -1; }},
      {": scale: ", [](auto& o) { o.score.scale = std::numeric_limits<float>::infinity(); }},
      {": dropout.probability: ", [](auto& o) { o.dropout.probability = 1; }},
      {": key_start: ", [](auto& o) { o.positions.query_start = 3; }},
      {": splits: ", [](auto& o) { o.execution.splits = -1; }},
  };
  for (const auto& [words, fault] : faults) {
    Call call;
    fault(call.options);
    EXPECT_THAT(call.complaint(), HasSubstr(words));
  }
}

TEST(AttentionValidation, RefusesLengthsOutsideTheTensors) {
  for (const auto& lengths : {std::vector<int32_t>{0, 13}, std::vector<int32_t>{-1, 4}}) {
    Call call;
    const Tensor used = Tensor::index({2}, lengths);
    call.options.sequences.used_key = used;
    EXPECT_THAT(call.complaint(), HasSubstr("sequences"));
  }
}

TEST(AttentionValidation, RefusesPagesOutsideTheCache) {
  Call call;
  const Tensor pages = Tensor::index({2, 2}, {0, 1, 0, 2});
  call.options.sequences = {.page_table = pages, .max_key = 24, .page_size = 12};
  EXPECT_THAT(call.complaint(), HasSubstr("page_table"));
}

TEST(AttentionValidation, RefusesBlocksThatDoNotAscend) {
  Call call;
  const Tensor offsets = Tensor::index({1, 1, 3}, {0, 2, 2});
  const Tensor columns = Tensor::index({1, 1, 2}, {1, 0});
  call.options.blocks = {
      .block_rows = 5, .block_keys = 6, .row_offsets = offsets, .columns = columns};
  EXPECT_THAT(call.complaint(), HasSubstr("columns"));
}

TEST(AttentionValidation, RefusesATooSmallWorkspace) {
  const Call call;
  std::byte bytes[64];
  EXPECT_THROW(attention_forward({.out = call.out}, {call.q, call.k, call.v}, bytes),
               InvalidArgument);
}

TEST(AttentionDispatch, SaysWhichBackendRunsAndWhy) {
  Call call;
  const AttentionOutputs outputs = {.out = call.out};
  const AttentionInputs inputs = {call.q, call.k, call.v};
  AttentionChoice choice = attention_forward_backend(outputs, inputs, call.options);
  EXPECT_EQ(choice.backend, AttentionBackend::cpu);
  EXPECT_EQ(choice.reason, "");
  const Tensor threshold = std::move(Tensor(DType::f32, {4, 1}).fill(0));
  // Blocks too large for the memory of a worker.
  call.options.gate = {
      .kind = AttentionGate::Kind::absolute, .threshold = threshold, .rows = 4096, .keys = 1024};
  choice = attention_forward_backend(outputs, inputs, call.options);
  EXPECT_EQ(choice.backend, AttentionBackend::reference);
  EXPECT_THAT(choice.reason, HasSubstr("gate"));
  EXPECT_THROW(
      attention_forward_backend(outputs, inputs, with_backend(call.options, AttentionBackend::cpu)),
      Unsupported);
  EXPECT_THROW(attention_forward_backend(outputs, inputs, with_backend({}, AttentionBackend::sm90)),
               Unsupported);
}

#ifndef FLASHLOOM_WITH_CUDA
TEST(AttentionValidation, ABuildWithoutCudaRefusesAGpu) {
  const Device gpu = {Device::Kind::cuda, 0};
  const TensorView rows(static_cast<void*>(nullptr), DType::bf16, {1, 2, 8, 64}, gpu);
  try {
    attention_forward_backend({.out = rows}, {rows, rows, rows});
    FAIL() << "no error";
  } catch (const Unsupported& error) {
    EXPECT_NE(std::string(error.what()).find("in a build without CUDA"), std::string::npos);
  }
}
#endif

}  // namespace
}  // namespace flashloom
