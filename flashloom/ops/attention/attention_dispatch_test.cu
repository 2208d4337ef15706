#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/ops/attention/attention_test_gpu_call.h"

// Which backend a call on a GPU takes, and why: a table. Shapes alone decide, so no GPU is needed;
// the library assumes Hopper where there is none to ask.

namespace flashloom {
namespace {

using attention_test::gpu_tensor;
using Call = attention_test::GpuCall;

// "sm90", "portable: <reason>", or the text of the refusal.
template <class Choose>
std::string outcome(Choose choose) {
  try {
    const AttentionChoice choice = choose();
    return std::string(attention_backend_name(choice.backend)) +
           (choice.reason.empty() ? "" : ": " + choice.reason);
  } catch (const Error& refusal) {
    return refusal.what();
  }
}

std::string forward_outcome(const Call& call) {
  return outcome(
      [&] { return attention_forward_backend(call.outputs, call.inputs, call.options); });
}

std::string backward_outcome(const Call& call) {
  return outcome([&] {
    return attention_backward_backend(call.gradients, call.inputs, call.saved, call.options);
  });
}

struct Row {
  const char* name;
  std::function<void(Call&)> change;
  const char* forward;  // what the outcome contains
  const char* backward;
};

// Rows that the Hopper kernels may come to cover say "portable" only where they never will.
const std::vector<Row>& table() {
  static const std::vector<Row> kTable = {
      {"plain", [](Call&) {}, "sm90", "sm90"},
      {"causal", [](Call& c) { c.options.visibility.right = 0; }, "sm90", "sm90"},
      {"window", [](Call& c) { c.options.visibility = {.left = 64, .right = 0}; }, "sm90", "sm90"},
      {"f32", [](Call& c) { c = Call(DType::f32); },
       "portable: the sm90 backend does not cover f32",
       "portable: the sm90 backend does not cover f32"},
      {"mixed storage", [](Call& c) { c.inputs.k.dtype = DType::f16; },
       "portable: the sm90 backend does not cover k in f16",
       "portable: the sm90 backend does not cover k in f16"},
      {"odd head dimension", [](Call& c) { c = Call(DType::bf16, 50); }, "portable", "portable"},
      {"bias", [](Call& c) { c.options.score.bias = gpu_tensor(DType::bf16, {2, 8, 300, 300}); },
       "portable", "portable"},
      {"buckets",
       [](Call& c) {
         c.options.positions.query_bucket_offsets = gpu_tensor(DType::i32, {2, 8, 4});
         c.options.positions.key_bucket_offsets = gpu_tensor(DType::i32, {2, 2, 4});
       },
       "portable", "portable"},
      {"accumulate",
       [](Call& c) {
         c.gradients.accumulate = true;
         for (TensorView* view : {&c.gradients.dq, &c.gradients.dk, &c.gradients.dv}) {
           view->dtype = DType::f32;
         }
       },
       "sm90", "sm90"},
      {"entropy",
       [](Call& c) {
         c.outputs.entropy = c.outputs.lse;
         c.saved.entropy = c.saved.dentropy = c.outputs.lse;
       },
       "portable", "sm90"},
      {"entropy of order 2",
       [](Call& c) {
         c.outputs.entropy = c.outputs.lse;
         c.saved.entropy = c.saved.dentropy = c.outputs.lse;
         c.outputs.entropy_order = c.saved.entropy_order = 2;
       },
       "portable", "dentropy of another order than 1"},
      {"head dimension 96", [](Call& c) { c = Call(DType::bf16, 96); }, "sm90", "sm90"},
      {"head dimension 256, softcap",
       [](Call& c) {
         c = Call(DType::f16, 256);
         c.options.score.softcap = 50;
       },
       "sm90", "sm90"},
      {"head dimension 192, values of 128",
       [](Call& c) {
         c = Call(DType::bf16, 192);
         c.gradients.dv = gpu_tensor(DType::bf16, {2, 2, 300, 128});
         c.inputs.v = c.gradients.dv;
         c.outputs.out = gpu_tensor(DType::bf16, {2, 8, 300, 128});
         c.saved.out = c.saved.dout = c.outputs.out;
       },
       "sm90", "sm90"},
      {"head dimension 256, dentropy",
       [](Call& c) {
         c = Call(DType::bf16, 256);
         c.saved.entropy = c.saved.dentropy = c.outputs.lse;
       },
       "sm90", "dentropy with head dimension 256"},
      {"exclude_self, negative scale",
       [](Call& c) {
         c.options.positions.exclude_self = true;
         c.options.score.scale = -0.1f;
       },
       "sm90", "sm90"},
      {"a gate",
       [](Call& c) {
         c.options.gate = {.kind = AttentionGate::Kind::absolute,
                           .threshold = gpu_tensor(DType::f32, {8, 1})};
       },
       "reference: the sm90 backend does not cover a gate, nor the portable one a gate",
       "no gate: it has no gradient"},
      {"decoding over pages",
       [](Call& c) {
         c.inputs = {gpu_tensor(DType::bf16, {2, 8, 1, 128}),
                     gpu_tensor(DType::bf16, {20, 2, 16, 128}),
                     gpu_tensor(DType::bf16, {20, 2, 16, 128})};
         c.outputs = {.out = gpu_tensor(DType::bf16, {2, 8, 1, 128})};
         c.options.sequences.page_table = gpu_tensor(DType::i32, {2, 10});
         c.options.sequences.max_key = 160;
         c.options.sequences.page_size = 16;
       },
       "sm90", "page_table"},
      {"many queries over pages",
       [](Call& c) {
         c.inputs.k = c.inputs.v = gpu_tensor(DType::bf16, {40, 2, 16, 128});
         c.options.sequences.page_table = gpu_tensor(DType::i32, {2, 20});
         c.options.sequences.max_key = 320;
         c.options.sequences.page_size = 16;
       },
       "portable: the sm90 backend does not cover", "page_table"},
      {"rows of 300", [](Call& c) { c = Call(DType::bf16, 300); },
       "nor the portable one head dimensions 300 and 300",
       "nor the portable one head dimensions 300 and 300"},
      {"f64", [](Call& c) { c = Call(DType::f64); }, "nor the portable one out in f64",
       "nor the portable one out in f64"},
      {"8-bit storage",
       [](Call& c) {
         c.inputs.q.dtype = c.inputs.k.dtype = c.inputs.v.dtype = DType::e4m3;
         c.options.fp8.q_scale = gpu_tensor(DType::f32, {2, 8});
       },
       "nor the portable one q in e4m3", "nor the portable one q in e4m3"},
      {"sm90 required", [](Call& c) { c.options.execution.backend = AttentionBackend::sm90; },
       "sm90: required", "sm90: required"},
      {"sm90 required in f32",
       [](Call& c) {
         c = Call(DType::f32);
         c.options.execution.backend = AttentionBackend::sm90;
       },
       "f32 storage in the sm90 backend", "f32 storage in the sm90 backend"},
      {"portable required",
       [](Call& c) { c.options.execution.backend = AttentionBackend::portable; },
       "portable: required", "portable: required"},
      {"portable required for rows of 300",
       [](Call& c) {
         c = Call(DType::bf16, 300);
         c.options.execution.backend = AttentionBackend::portable;
       },
       "head dimensions 300 and 300 in the portable backend",
       "head dimensions 300 and 300 in the portable backend"},
      {"cpu required", [](Call& c) { c.options.execution.backend = AttentionBackend::cpu; },
       "the cpu backend on tensors of a GPU", "the cpu backend on tensors of a GPU"},
      {"reference required",
       [](Call& c) { c.options.execution.backend = AttentionBackend::reference; },
       "reference: required", "reference: required"},
  };
  return kTable;
}

TEST(AttentionDispatch, TakesTheFastestBackendThatCoversACall) {
  for (const Row& row : table()) {
    SCOPED_TRACE(row.name);
    Call call;
    row.change(call);
    const std::string forward = forward_outcome(call);
    const std::string backward = backward_outcome(call);
    EXPECT_NE(forward.find(row.forward), std::string::npos) << forward;
    EXPECT_NE(backward.find(row.backward), std::string::npos) << backward;
  }
}

// The size is asked for before addresses are known, which may then decide for another backend.
TEST(AttentionDispatch, WorkspaceServesEveryBackendThatMayBeTaken) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    Call call(dtype);
    const auto bytes = [&](AttentionBackend backend) {
      call.options.execution.backend = backend;
      return attention_backward_workspace_bytes(call.gradients, call.inputs, call.saved,
                                                call.options);
    };
    EXPECT_GE(bytes(AttentionBackend::automatic), bytes(AttentionBackend::portable));
    EXPECT_EQ(bytes(AttentionBackend::reference), 2 * 8 * 300 * 4 * 8);
  }
}

// Callers may ask once and then choose.
TEST(AttentionDispatch, WorkspaceServesBothModes) {
  for (const int64_t length : {300, 6000}) {
    for (const int64_t dim : {64, 96, 128, 256}) {
      for (const int64_t right : {-1, 0}) {
        Call call(DType::bf16, dim, length);
        call.options.visibility.right = right;
        const auto bytes = [&](bool deterministic) {
          call.options.execution.deterministic = deterministic;
          return attention_backward_workspace_bytes(call.gradients, call.inputs, call.saved,
                                                    call.options);
        };
        EXPECT_EQ(bytes(true), bytes(false)) << length << ", D " << dim << ", right " << right;
      }
    }
  }
}

}  // namespace
}  // namespace flashloom
