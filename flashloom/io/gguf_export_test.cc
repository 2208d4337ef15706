#include "flashloom/io/gguf_export.h"

#include <gmock/gmock.h>

#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/io/model_files.h"
#include "flashloom/io/temporary_directory_for_test.h"

namespace flashloom {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

StoredVocabulary tiny_vocabulary() {
  return {.model = "gpt2",
          .pre = "smollm",
          .tokens = {"a", "<s>", "</s>"},
          .token_types = {1, 3, 3},
          .merges = {"a a"},
          .bos_id = 1,
          .eos_id = 2,
          .add_bos = true,
          .chat_template = "{{ messages }}"};
}

std::vector<float> read(const ModelFiles& files, const ModelTensor& tensor) {
  int64_t size = 1;
  for (const int64_t extent : tensor.shape) {
    size *= extent;
  }
  std::vector<float> values(static_cast<size_t>(size));
  files.read_into(tensor.name, tensor.shape.size() == 1
                                   ? TensorView(values.data(), {tensor.shape[0]})
                                   : TensorView(values.data(), {tensor.shape[0], tensor.shape[1]}));
  return values;
}

ConstTensorView view(const std::vector<float>& values, const std::vector<int64_t>& shape) {
  return shape.size() == 1 ? ConstTensorView(values.data(), {shape[0]})
                           : ConstTensorView(values.data(), {shape[0], shape[1]});
}

void write_as_gguf(const ModelFiles& files, const std::string& path, GgmlType type) {
  std::vector<GgufModelWriter::Tensor> tensors;
  for (const ModelTensor& tensor : files.tensors()) {
    tensors.push_back({tensor.name, tensor.shape});
  }
  GgufModelWriter writer(path, files.config(), tiny_vocabulary(), tensors, {.type = type});
  for (const ModelTensor& tensor : files.tensors()) {
    writer.write(tensor.name, view(read(files, tensor), tensor.shape));
  }
  writer.finish();
}

// Of each family: rows of Q and K come back from where llama.cpp wants them, nothing is lost.
TEST(GgufExport, IsReadBackBitForBit) {
  const TemporaryDirectory folder;
  for (const char* kind : {"llama2", "llama3", "smollm2", "qwen2", "qwen3"}) {
    SCOPED_TRACE(kind);
    const ModelFiles files =
        ModelFiles::open(FLASHLOOM_SOURCE_DIR "/tests/golden/models/" + std::string(kind));
    const std::string path = folder / (std::string(kind) + ".gguf");
    write_as_gguf(files, path, GgmlType::bf16);
    const ModelFiles again = ModelFiles::open(path);
    size_t tensors = 0;
    for (const ModelTensor& tensor : again.tensors()) {
      if (tensor.name == "rope_freqs.weight") {
        continue;
      }
      ASSERT_NE(files.find(tensor.name), nullptr) << tensor.name;
      EXPECT_EQ(tensor.stored_type, tensor.shape.size() == 1 ? "F32" : "BF16") << tensor.name;
      EXPECT_EQ(read(again, tensor), read(files, tensor)) << tensor.name;
      ++tensors;
    }
    EXPECT_EQ(tensors, files.tensors().size());

    ModelConfig config = again.config();
    const ModelConfig& expected = files.config();
    if (expected.rope_scaling == ModelConfig::RopeScaling::llama3) {
      // The golden model's original positions are not Llama's own, by which readers know it.
      ASSERT_EQ(config.rope_scaling, ModelConfig::RopeScaling::factors);
      const std::vector<double> divisors = llama3_divisors(expected);
      ASSERT_EQ(config.rope_factors.size(), divisors.size());
      for (size_t i = 0; i < divisors.size(); ++i) {
        EXPECT_FLOAT_EQ(config.rope_factors[i], static_cast<float>(divisors[i]));
      }
    } else {
      EXPECT_EQ(config.rope_scaling, expected.rope_scaling);
    }
    EXPECT_EQ(config.bos_token_id, 1);
    config.rope_scaling = expected.rope_scaling;
    config.rope_factors = expected.rope_factors;
    config.rope_factor = expected.rope_factor;
    config.rope_low_frequency_factor = expected.rope_low_frequency_factor;
    config.rope_high_frequency_factor = expected.rope_high_frequency_factor;
    config.rope_original_positions = expected.rope_original_positions;
    config.bos_token_id = expected.bos_token_id;
    config.eos_token_ids = expected.eos_token_ids;
    config.pad_token_id = expected.pad_token_id;
    EXPECT_EQ(config, expected);
    EXPECT_EQ(again.vocabulary()->chat_template, "{{ messages }}");
    EXPECT_EQ(again.vocabulary()->tokens.size(), static_cast<size_t>(expected.vocabulary_size));
    EXPECT_EQ(again.vocabulary()->tokens[3], "[PAD3]");
    EXPECT_EQ(again.vocabulary()->token_types[3], 5);
    EXPECT_EQ(again.vocabulary()->add_bos, true);
  }
}

TEST(GgufExport, ChoosesTheTypeOfEachTensor) {
  ModelConfig tied;
  tied.tied_embeddings = true;
  const ModelConfig untied;
  using enum GgmlType;
  const std::string gate = "model.layers.0.mlp.gate_proj.weight";
  const std::string embedding = "model.embed_tokens.weight";
  const auto type = [](GgmlType wanted, const ModelConfig& config, const std::string& name,
                       int64_t row) { return gguf_stored_type(wanted, config, name, {8, row}); };
  EXPECT_EQ(gguf_stored_type(q4_k, untied, "model.norm.weight", {256}), f32);
  EXPECT_EQ(gguf_stored_type(f16, untied, "model.layers.0.self_attn.q_proj.bias", {64}), f32);
  EXPECT_EQ(type(q4_k, untied, gate, 512), q4_k);
  EXPECT_EQ(type(q4_k, untied, gate, 576), q5_0);
  EXPECT_EQ(type(q4_k, untied, gate, 48), f16);
  EXPECT_EQ(type(q8_0, untied, gate, 48), f16);
  EXPECT_EQ(type(q4_0, untied, embedding, 64), q4_0);
  EXPECT_EQ(type(q4_0, tied, embedding, 64), q8_0);
  EXPECT_EQ(type(q4_k, untied, "lm_head.weight", 512), q8_0);
  EXPECT_EQ(type(bf16, tied, embedding, 64), bf16);
}

TEST(GgufExport, KnowsItsTypesByName) {
  EXPECT_EQ(parse_gguf_type("q4_k"), GgmlType::q4_k);
  EXPECT_THAT([] { parse_gguf_type("q6_k"); },
              ThrowsMessage<InvalidArgument>(HasSubstr("f32, f16, bf16, q8_0, q4_0, q4_k")));
}

}  // namespace
}  // namespace flashloom
