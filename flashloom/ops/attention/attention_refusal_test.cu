#include <gtest/gtest.h>

#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/ops/attention/attention_test_gpu_call.h"

// Everything that the Hopper kernels refuse, one row a refusal: such a call takes the portable
// kernels (or, where those do not cover it either, the float64 reference) and
// attention_forward_backend() or attention_backward_backend() names the reason. Required of the
// sm90 backend, the same call is refused with the same reason. Shapes and addresses decide, so no
// GPU is needed.

namespace flashloom {
namespace {

using attention_test::gpu_tensor;

struct Call : attention_test::GpuCall {
  using GpuCall::GpuCall;

  void mask(int64_t rows, int64_t keys) {
    AttentionBlocks& blocks = options.blocks;
    blocks.block_rows = rows;
    blocks.block_keys = keys;
    blocks.row_offsets = gpu_tensor(DType::i32, {1, 1, (299 + rows) / rows + 1});
    blocks.column_offsets = gpu_tensor(DType::i32, {1, 1, (299 + keys) / keys + 1});
    blocks.columns = blocks.rows = gpu_tensor(DType::i32, {1, 1, 6});
  }
};

template <class View>
void stride(View& view, int dimension, int64_t step) {
  view.strides[static_cast<size_t>(dimension)] = step;
}

// A direction that takes the Hopper kernels all the same, and one that the change is not about.
constexpr const char* kTaken = "sm90";
constexpr const char* kAnything = nullptr;

struct Row {
  const char* name;
  std::function<void(Call&)> change;
  const char* forward;   // the reason
  const char* backward;  // likewise
};

const std::vector<Row>& table() {
  static const std::vector<Row> kTable = {
      // Storage and widths.
      {"f32", [](Call& c) { c = Call(DType::f32); }, "f32 storage", "f32 storage"},
      {"f64", [](Call& c) { c = Call(DType::f64); }, "f64 storage", "f64 storage"},
      {"k in f16", [](Call& c) { c.inputs.k.dtype = DType::f16; }, "k in f16 beside q in bf16",
       "k in f16 beside q in bf16"},
      {"out in f32", [](Call& c) { c.outputs.out.dtype = c.saved.out.dtype = DType::f32; },
       "out in f32 beside q in bf16", "out in f32 beside q in bf16"},
      {"dout in f32", [](Call& c) { c.saved.dout.dtype = DType::f32; }, kTaken,
       "dout in f32 beside q in bf16"},
      {"dk in f16", [](Call& c) { c.gradients.dk.dtype = DType::f16; }, kTaken,
       "dk in f16 beside q in bf16"},
      {"rows of 100", [](Call& c) { c = Call(DType::bf16, 100); }, "q with rows of 100",
       "head dimension 100"},
      {"rows of 264", [](Call& c) { c = Call(DType::bf16, 264); }, "q with rows of 264",
       "head dimension 264"},
      // Addresses and strides.
      {"q that starts at an odd address",
       [](Call& c) { c.inputs.q.data = reinterpret_cast<void*>(8); },
       "q whose rows do not start at multiples of 16 bytes",
       "q whose rows do not start at multiples of 16 bytes"},
      {"rows of k three elements apart",
       [](Call& c) {
         stride(c.inputs.k, 2, 131);
         stride(c.inputs.k, 1, int64_t{300} * 131);
         stride(c.inputs.k, 0, int64_t{600} * 131);
       },
       "k whose rows do not start at multiples of 16 bytes",
       "k whose rows do not start at multiples of 16 bytes"},
      {"one head of values for all", [](Call& c) { stride(c.inputs.v, 1, 0); },
       "v with a stride of 0 or less", "v with a stride of 0 or less"},
      {"unaligned dq", [](Call& c) { c.gradients.dq.data = reinterpret_cast<void*>(8); }, kTaken,
       "dq whose rows do not start at multiples of 16 bytes"},
      {"no keys",
       [](Call& c) {
         c.inputs.k = c.inputs.v = gpu_tensor(DType::bf16, {2, 2, 0, 128});
         c.gradients.dk = c.gradients.dv = gpu_tensor(DType::bf16, {2, 2, 0, 128});
       },
       kTaken, "an empty k"},
      {"too many keys",
       [](Call& c) {
         c.gradients.dk = c.gradients.dv = gpu_tensor(DType::bf16, {2, 2, int64_t{1} << 29, 128});
         c.inputs.k = c.inputs.v = c.gradients.dk;
       },
       "k with 536870912 rows", "k with 536870912 rows"},
      // Positions and patterns.
      {"a far position", [](Call& c) { c.options.positions.offset = int64_t{1} << 29; },
       "a position of 536870912", "a position of 536870912"},
      {"a far start",
       [](Call& c) {
         c.options.positions.query_start = int64_t{1} << 29;
         c.options.positions.key_start = int64_t{1} << 29;
       },
       "a position of 536870912", "a position of 536870912"},
      {"positions of queries",
       [](Call& c) { c.options.positions.query = gpu_tensor(DType::i32, {2, 8, 300}); },
       "explicit positions", "explicit positions"},
      {"positions of keys",
       [](Call& c) { c.options.positions.key = gpu_tensor(DType::i32, {2, 2, 300}); },
       "explicit positions", "explicit positions"},
      {"counts of queries",
       [](Call& c) { c.options.positions.query_count = gpu_tensor(DType::i32, {2, 8}); },
       "explicit positions", "explicit positions"},
      {"counts of keys",
       [](Call& c) { c.options.positions.key_count = gpu_tensor(DType::i32, {2, 2}); },
       "explicit positions", "explicit positions"},
      {"output rows",
       [](Call& c) { c.options.positions.output_index = gpu_tensor(DType::i32, {2, 8, 300}); },
       "explicit positions", "explicit positions"},
      {"buckets",
       [](Call& c) {
         c.options.positions.query_bucket_offsets = gpu_tensor(DType::i32, {2, 8, 4});
         c.options.positions.key_bucket_offsets = gpu_tensor(DType::i32, {2, 2, 4});
       },
       "buckets", "buckets"},
      {"pages",
       [](Call& c) {
         c.inputs.k = c.inputs.v = gpu_tensor(DType::bf16, {40, 2, 16, 128});
         c.options.sequences.page_table = gpu_tensor(DType::i32, {2, 20});
         c.options.sequences.max_key = 320;
         c.options.sequences.page_size = 16;
       },
       "a page table", kAnything},
      {"blocks of 64 x 64", [](Call& c) { c.mask(64, 64); }, "blocks of 64 x 64",
       "a block mask of 64 x 64 that is no multiple of 64 x 128"},
      {"blocks of 64 x 128", [](Call& c) { c.mask(64, 128); }, "blocks of 64 x 128", kTaken},
      {"blocks of 128 x 64 with 64 columns",
       [](Call& c) {
         c = Call(DType::bf16, 64);
         c.mask(128, 64);
       },
       kTaken, "a block mask of 128 x 64 that is no multiple of 64 x 128"},
      {"blocks of 128 x 64 with softcap",
       [](Call& c) {
         c = Call(DType::bf16, 64);
         c.mask(128, 64);
         c.options.score.softcap = 20;
       },
       "blocks of 128 x 64", "a block mask of 128 x 64 that is no multiple of 64 x 128"},
      {"blocks of 32 x 128", [](Call& c) { c.mask(32, 128); }, "blocks of 32 x 128",
       "a block mask of 32 x 128 that is no multiple of 64 x 128"},
      {"unaligned bits of blocks",
       [](Call& c) {
         c.mask(128, 128);
         AttentionBlocks& blocks = c.options.blocks;
         blocks.partial = blocks.transposed_partial = gpu_tensor(DType::i32, {1, 1, 6});
         blocks.bits = gpu_tensor(DType::u8, {3, 128, 16}, 8);
       },
       "bits of blocks that do not start at a multiple of 16 bytes", kAnything},
      {"blocks with wide heads",
       [](Call& c) {
         c = Call(DType::bf16, 192);
         c.mask(128, 128);
       },
       kTaken, "a block mask with head dimension 192"},
      // Scores.
      {"a bias", [](Call& c) { c.options.score.bias = gpu_tensor(DType::bf16, {2, 8, 300, 300}); },
       "a bias", "a bias"},
      {"a bias that is trained",
       [](Call& c) {
         c.options.score.bias = gpu_tensor(DType::f32, {1, 8, 300, 300});
         c.gradients.dbias = gpu_tensor(DType::f32, {1, 8, 300, 300});
       },
       "a bias", "a bias"},
      {"strided sinks",
       [](Call& c) {
         c.options.score.sinks = gpu_tensor(DType::f32, {8});
         c.options.score.sinks.strides[0] = 2;
       },
       "sinks that are not f32 side by side", kAnything},
      {"an lse in f64", [](Call& c) { c.outputs.lse.dtype = c.saved.lse.dtype = DType::f64; },
       "an lse that is not f32", "an lse in f64"},
      {"dlse in f64",
       [](Call& c) {
         c.saved.dlse = c.saved.lse;
         c.saved.dlse.dtype = DType::f64;
       },
       kTaken, "dlse in f64"},
      {"sinks in f64", [](Call& c) { c.options.score.sinks = gpu_tensor(DType::f64, {8}); },
       "sinks that are not f32 side by side", "sinks in f64"},
      {"gradients of sinks in f64",
       [](Call& c) {
         c.options.score.sinks = gpu_tensor(DType::f32, {8});
         c.gradients.dsinks = gpu_tensor(DType::f64, {8});
       },
       kTaken, "dsinks in f64"},
      {"slopes in f64",
       [](Call& c) { c.options.score.alibi_slopes = gpu_tensor(DType::f64, {2, 8}); },
       "ALiBi slopes that are not f32", "ALiBi slopes in f64"},
      {"a gate",
       [](Call& c) {
         c.options.gate = {.kind = AttentionGate::Kind::absolute,
                           .threshold = gpu_tensor(DType::f32, {8, 1})};
       },
       "a gate", kAnything},
      {"an absolute maximum of out",
       [](Call& c) { c.options.fp8.amax_out = gpu_tensor(DType::f32, {1}); }, "8-bit scales",
       kAnything},
      {"splits", [](Call& c) { c.options.execution.splits = 2; }, "splits", "splits"},
      // Entropy.
      {"the entropy",
       [](Call& c) {
         c.outputs.entropy = c.outputs.lse;
         c.saved.entropy = c.saved.dentropy = c.outputs.lse;
       },
       "the entropy output", kTaken},
      {"an entropy in f64",
       [](Call& c) {
         c.saved.entropy = c.saved.dentropy = c.outputs.lse;
         c.saved.entropy.dtype = DType::f64;
       },
       kTaken, "an entropy in f64"},
      {"dentropy in f64",
       [](Call& c) {
         c.saved.entropy = c.saved.dentropy = c.outputs.lse;
         c.saved.dentropy.dtype = DType::f64;
       },
       kTaken, "dentropy in f64"},
      {"the gradient of an entropy of order 2",
       [](Call& c) {
         c.saved.entropy = c.saved.dentropy = c.outputs.lse;
         c.saved.entropy_order = 2;
       },
       kTaken, "dentropy of another order than 1"},
      {"the gradient of an entropy with wide heads",
       [](Call& c) {
         c = Call(DType::bf16, 192);
         c.saved.entropy = c.saved.dentropy = c.outputs.lse;
       },
       kTaken, "dentropy with head dimension 192"}};
  return kTable;
}

template <class Choose>
void expect(const char* reason, AttentionOptions& options, Choose choose) {
  if (reason == kAnything) {
    return;
  }
  options.execution.backend = AttentionBackend::automatic;
  const AttentionChoice choice = choose();
  if (std::string(reason) == kTaken) {
    EXPECT_EQ(choice.backend, AttentionBackend::sm90) << choice.reason;
    return;
  }
  EXPECT_TRUE(choice.backend == AttentionBackend::portable ||
              (choice.backend == AttentionBackend::reference &&
               choice.reason.find("nor the portable one") != std::string::npos))
      << attention_backend_name(choice.backend) << ": " << choice.reason;
  EXPECT_NE(choice.reason.find("the sm90 backend does not cover " + std::string(reason)),
            std::string::npos)
      << choice.reason;
  options.execution.backend = AttentionBackend::sm90;
  try {
    choose();
    ADD_FAILURE() << "sm90 was required and not refused";
  } catch (const Unsupported& refusal) {
    EXPECT_NE(std::string(refusal.what()).find(reason), std::string::npos) << refusal.what();
  }
}

TEST(AttentionRefusal, NamesTheReasonAndTakesAnotherBackend) {
  for (const Row& row : table()) {
    SCOPED_TRACE(row.name);
    Call call;
    row.change(call);
    expect(row.forward, call.options,
           [&] { return attention_forward_backend(call.outputs, call.inputs, call.options); });
    expect(row.backward, call.options, [&] {
      return attention_backward_backend(call.gradients, call.inputs, call.saved, call.options);
    });
  }
}

}  // namespace
}  // namespace flashloom
