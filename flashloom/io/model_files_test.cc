#include "flashloom/io/model_files.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"
#include "flashloom/io/gguf_builder_for_test.h"
#include "flashloom/io/safetensors_writer.h"
#include "flashloom/io/temporary_directory_for_test.h"

namespace flashloom {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

constexpr int64_t kVocabulary = 6;
constexpr int64_t kHidden = 16;
constexpr int64_t kHeads = 2;
constexpr int64_t kHeadDim = 8;
constexpr int64_t kKeyRows = 8;  // one kv head

std::vector<float> counted(int64_t count, float first = 0) {
  std::vector<float> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), first);
  return values;
}

// What llama.cpp's converter does to Q and K: (heads, 2, d/2, columns) with the middle two swapped.
std::vector<float> interleaved(const std::vector<float>& values, int64_t heads, int64_t columns) {
  const int64_t half = static_cast<int64_t>(values.size()) / heads / columns / 2;
  std::vector<float> out;
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t pair = 0; pair < half; ++pair) {
      for (int64_t side = 0; side < 2; ++side) {
        const int64_t row = (head * 2 + side) * half + pair;
        out.insert(out.end(), values.begin() + row * columns, values.begin() + (row + 1) * columns);
      }
    }
  }
  return out;
}

GgufBuilder tiny_gguf(const std::string& architecture) {
  GgufBuilder builder;
  builder.add("general.architecture", architecture.c_str());
  builder.add(architecture + ".block_count", 1u);
  builder.add(architecture + ".embedding_length", uint32_t{kHidden});
  builder.add(architecture + ".feed_forward_length", 24u);
  builder.add(architecture + ".context_length", 64u);
  builder.add(architecture + ".attention.head_count", uint32_t{kHeads});
  builder.add(architecture + ".attention.head_count_kv", 1u);
  builder.add(architecture + ".attention.layer_norm_rms_epsilon", 1e-5f);
  builder.add(architecture + ".rope.freq_base", 1e6f);
  builder.add_tensor("token_embd.weight", {kVocabulary, kHidden}, counted(kVocabulary * kHidden));
  builder.add_tensor("blk.0.attn_q.weight", {kHidden, kHidden},
                     interleaved(counted(kHidden * kHidden), kHeads, kHidden));
  builder.add_tensor("blk.0.attn_k.weight", {kKeyRows, kHidden},
                     interleaved(counted(kKeyRows * kHidden), 1, kHidden));
  builder.add_tensor("blk.0.attn_q.bias", {kHidden}, interleaved(counted(kHidden), kHeads, 1));
  return builder;
}

void add_vocabulary(GgufBuilder& builder) {
  builder.add("tokenizer.ggml.model", "gpt2").add("tokenizer.ggml.pre", "smollm");
  builder.add("tokenizer.ggml.tokens",
              std::vector<std::string>{"<s>", "</s>", "a", "b", "ab", "ß"});
  builder.add("tokenizer.ggml.token_type", std::vector<int32_t>{3, 3, 1, 1, 1, 1});
  builder.add("tokenizer.ggml.merges", std::vector<std::string>{"a b"});
  builder.add("tokenizer.ggml.bos_token_id", 0u).add("tokenizer.ggml.eos_token_id", 1u);
  builder.add("tokenizer.ggml.eot_token_id", 2u).add_flag("tokenizer.ggml.add_bos_token", false);
  builder.add("tokenizer.chat_template", "{{ messages }}");
}

constexpr std::string_view kConfig = R"({
  "architectures": ["LlamaForCausalLM"], "vocab_size": 6, "hidden_size": 16,
  "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
  "num_key_value_heads": 1, "torch_dtype": "bfloat16", "eos_token_id": 1})";

class ModelFilesTest : public ::testing::Test {
 protected:
  std::string put(const std::string& name, std::string_view content) const {
    overwrite_for_test(directory_ / name, content);
    return directory_ / name;
  }

  ModelFiles open_gguf(const GgufBuilder& builder) const {
    return ModelFiles::open(put("x.gguf", builder.build()));
  }

  std::string error_of(const GgufBuilder& builder) const {
    return error_at(put("x.gguf", builder.build()));
  }

  static std::string error_at(const std::string& path) {
    try {
      ModelFiles::open(path);
    } catch (const IoError& error) {
      return error.what();
    }
    return "no error";
  }

  static std::string read_error(const ModelFiles& model, std::string_view name, TensorView out,
                                bool require_finite = false) {
    try {
      model.read_into(name, out, require_finite);
    } catch (const IoError& error) {
      return error.what();
    }
    return "no error";
  }

  static std::vector<float> read(const ModelFiles& model, std::string_view name, int64_t rows,
                                 int64_t columns) {
    std::vector<float> values(static_cast<size_t>(rows * columns), -1);
    model.read_into(name, TensorView(values.data(), {rows, columns}));
    return values;
  }

  const TemporaryDirectory directory_;
};

using Models = ModelFilesTest;

TEST_F(Models, ReadAHuggingFaceDirectory) {
  put("config.json", kConfig);
  put("generation_config.json", R"({"eos_token_id": [3, 1], "pad_token_id": 0})");
  const std::vector<float> values = counted(6, 0.1f);
  {
    SafetensorsModelWriter writer(directory_.path(), {{"narrow", DType::bf16, {2, 3}},
                                                      {"wide", DType::f32, {2, 3}},
                                                      {"half", DType::f16, {6}},
                                                      {"whole", DType::i32, {1}}});
    writer.write("narrow", ConstTensorView(values.data(), {2, 3}));
    writer.write("wide", ConstTensorView(values.data(), {2, 3}));
    writer.write("half", ConstTensorView(values.data(), {6}));
    const int32_t one = 1;
    writer.write("whole", ConstTensorView(&one, {1}));
    writer.finish();
  }
  const ModelFiles model = ModelFiles::open(directory_.path());
  EXPECT_EQ(model.format(), ModelFiles::Format::hugging_face);
  EXPECT_THAT(model.config().eos_token_ids, ElementsAre(3, 1));
  EXPECT_EQ(model.config().stored_dtype, DType::bf16);
  EXPECT_EQ(model.vocabulary(), nullptr);
  EXPECT_THAT(model.metadata(), ElementsAre(Pair("format", "pt")));
  ASSERT_EQ(model.tensors().size(), 4u);
  EXPECT_EQ(model.find("narrow")->stored_type, "BF16");
  EXPECT_EQ(model.find("narrow")->stored_bytes, 12);
  EXPECT_EQ(model.find("absent"), nullptr);

  EXPECT_EQ(read(model, "wide", 2, 3), values);
  std::vector<bf16> narrow(6);
  for (const char* name : {"wide", "narrow"}) {
    for (const bool check : {false, true}) {
      model.read_into(name, TensorView(narrow.data(), {2, 3}), check);
      for (size_t i = 0; i < 6; ++i) {
        EXPECT_EQ(narrow[i].bits, bf16(values[i]).bits);
      }
    }
  }
  std::vector<float> half(6);
  model.read_into("half", TensorView(half.data(), {6}));
  EXPECT_EQ(half[5], static_cast<float>(f16(values[5])));

  std::vector<float> buffer(12, -1);  // rows of a wider matrix
  model.read_into("wide", TensorView(buffer.data(), {2, 6}).slice(1, 2, 3));
  EXPECT_THAT(buffer, ElementsAre(-1, -1, values[0], values[1], values[2], -1, -1, -1, values[3],
                                  values[4], values[5], -1));

  EXPECT_THAT(read_error(model, "absent", TensorView(half.data(), {6})),
              HasSubstr("tensor absent: missing"));
  EXPECT_THAT(read_error(model, "wide", TensorView(half.data(), {3, 2})),
              HasSubstr("tensor wide: expected shape (3, 2), got (2, 3)"));
  EXPECT_THAT(read_error(model, "whole", TensorView(half.data(), {1})),
              HasSubstr("stored as I32; types that can be read are F64, F32, F16, BF16"));
  EXPECT_THROW(model.read_into("wide", TensorView(narrow.data(), DType::i32, {2, 3})),
               InvalidArgument);
}

TEST_F(Models, FindNaNAndInfinityWhenAsked) {
  put("config.json", kConfig);
  constexpr int64_t kRows = 300;
  constexpr int64_t kColumns = 5000;  // several tiles, and two chunks a row
  std::vector<float> values(kRows * kColumns, 1.0f);
  values[251 * kColumns + 7] = std::numeric_limits<float>::infinity();
  values[250 * kColumns + 4999] = std::numeric_limits<float>::quiet_NaN();
  SafetensorsModelWriter writer(directory_.path(), {{"w", DType::f32, {kRows, kColumns}}});
  writer.write("w", ConstTensorView(values.data(), {kRows, kColumns}));
  writer.finish();
  const ModelFiles model = ModelFiles::open(directory_.path());
  std::vector<bf16> narrow(values.size());
  EXPECT_THAT(read_error(model, "w", TensorView(narrow.data(), {kRows, kColumns}), true),
              HasSubstr("tensor w: row 250 holds a NaN or an infinity"));
  EXPECT_EQ(read_error(model, "w", TensorView(narrow.data(), {kRows, kColumns})), "no error");
}

TEST_F(Models, ReadAGgufFileUnderHuggingFaceNames) {
  GgufBuilder builder = tiny_gguf("llama");
  add_vocabulary(builder);
  const ModelFiles model = open_gguf(builder);
  EXPECT_EQ(model.format(), ModelFiles::Format::gguf);
  const ModelConfig& config = model.config();
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.vocabulary_size, kVocabulary);
  EXPECT_EQ(config.head_dim, kHeadDim);
  EXPECT_EQ(config.rms_norm_epsilon, 1e-5);
  EXPECT_EQ(config.rope_theta, 1e6);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_TRUE(config.attention_bias);
  EXPECT_FALSE(config.attention_output_bias || config.mlp_bias || config.qk_norm);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(1, 2));
  EXPECT_EQ(config.bos_token_id, 0);

  EXPECT_EQ(read(model, "model.embed_tokens.weight", kVocabulary, kHidden),
            counted(kVocabulary * kHidden));
  const StoredVocabulary& vocabulary = *model.vocabulary();
  EXPECT_EQ(vocabulary.pre, "smollm");
  EXPECT_THAT(vocabulary.tokens, ElementsAre("<s>", "</s>", "a", "b", "ab", "ß"));
  EXPECT_THAT(vocabulary.token_types, ElementsAre(3, 3, 1, 1, 1, 1));
  EXPECT_THAT(vocabulary.merges, ElementsAre("a b"));
  EXPECT_EQ(vocabulary.eot_id, 2);
  EXPECT_EQ(vocabulary.padding_id, std::nullopt);
  EXPECT_EQ(vocabulary.add_bos, false);
  EXPECT_EQ(vocabulary.chat_template, "{{ messages }}");
  EXPECT_THAT(model.metadata(), testing::Contains(Pair("tokenizer.ggml.tokens", "6 x string")));
  EXPECT_THAT(model.metadata(), testing::Contains(Pair("llama.block_count", "1")));
}

TEST_F(Models, UndoTheRowOrderOfALlamaGguf) {
  const ModelFiles model = open_gguf(tiny_gguf("llama"));
  const std::string layer = "model.layers.0.self_attn.";
  EXPECT_EQ(read(model, layer + "q_proj.weight", kHidden, kHidden), counted(kHidden * kHidden));
  EXPECT_EQ(read(model, layer + "k_proj.weight", kKeyRows, kHidden), counted(kKeyRows * kHidden));
  std::vector<float> bias(kHidden);
  model.read_into(layer + "q_proj.bias", TensorView(bias.data(), {kHidden}));
  EXPECT_EQ(bias, counted(kHidden));
}

TEST_F(Models, LeaveTheRowOrderOfOtherGgufs) {
  const ModelFiles model = open_gguf(tiny_gguf("qwen2"));
  EXPECT_EQ(read(model, "model.layers.0.self_attn.q_proj.weight", kHidden, kHidden),
            interleaved(counted(kHidden * kHidden), kHeads, kHidden));
}

TEST_F(Models, NameEveryTensorOfTheFamilies) {
  EXPECT_EQ(hugging_face_tensor_name("output.weight"), "lm_head.weight");
  EXPECT_EQ(hugging_face_tensor_name("output_norm.weight"), "model.norm.weight");
  EXPECT_EQ(hugging_face_tensor_name("blk.12.attn_output.weight"),
            "model.layers.12.self_attn.o_proj.weight");
  EXPECT_EQ(hugging_face_tensor_name("blk.0.attn_norm.weight"),
            "model.layers.0.input_layernorm.weight");
  EXPECT_EQ(hugging_face_tensor_name("blk.0.ffn_norm.weight"),
            "model.layers.0.post_attention_layernorm.weight");
  EXPECT_EQ(hugging_face_tensor_name("blk.1.attn_v.bias"), "model.layers.1.self_attn.v_proj.bias");
  EXPECT_EQ(hugging_face_tensor_name("blk.1.attn_k_norm.weight"),
            "model.layers.1.self_attn.k_norm.weight");
  EXPECT_EQ(hugging_face_tensor_name("blk.1.ffn_gate.weight"),
            "model.layers.1.mlp.gate_proj.weight");
  for (const char* other : {"rope_freqs.weight", "blk.x.attn_q.weight", "blk.-1.attn_q.weight",
                            "blk.1", "blk.1.attn_q", "blk.99999999999.attn_q.weight", "", "."}) {
    EXPECT_EQ(hugging_face_tensor_name(other), other);
  }
}

TEST_F(Models, RecogniseLlama3InItsFactors) {
  GgufBuilder builder = tiny_gguf("llama");
  // transformers' llama3 inverse frequencies for theta 1e6, head_dim 8, factor 32, low 1, high 4,
  // original positions 8192, divided into the unscaled ones.
  builder.add_tensor("rope_freqs.weight", {4}, {1.0f, 1.0f, 7.730888f, 32.0f});
  const ModelConfig config = open_gguf(builder).config();
  EXPECT_EQ(config.rope_scaling, ModelConfig::RopeScaling::llama3);
  EXPECT_EQ(config.rope_factor, 32);
  EXPECT_EQ(config.rope_original_positions, 8192);
  EXPECT_THAT(config.rope_factors, IsEmpty());

  builder = tiny_gguf("llama");
  builder.add_tensor("rope_freqs.weight", {4}, {1.0f, 1.5f, 2.0f, 3.0f});
  const ModelConfig other = open_gguf(builder).config();
  EXPECT_EQ(other.rope_scaling, ModelConfig::RopeScaling::factors);
  EXPECT_THAT(other.rope_factors, ElementsAre(1.0f, 1.5f, 2.0f, 3.0f));

  builder = tiny_gguf("llama");
  builder.add_tensor("rope_freqs.weight", {3}, {1.0f, 1.5f, 2.0f});
  EXPECT_THAT(error_of(builder), HasSubstr("rope_freqs.weight: expected 4 F32 numbers"));
}

TEST_F(Models, RefuseAGgufTheyCannotRun) {
  EXPECT_THAT(error_of(GgufBuilder().add("general.architecture", "mamba")),
              HasSubstr("expected llama, qwen2 or qwen3, got mamba"));
  EXPECT_THAT(error_of(GgufBuilder().add("general.architecture", "llama")),
              HasSubstr("token_embd.weight: missing"));
  EXPECT_THAT(error_of(GgufBuilder()
                           .add("general.architecture", "llama")
                           .add_tensor("token_embd.weight", {1, 1}, {1.0f})),
              HasSubstr("llama.embedding_length: missing"));
  EXPECT_THAT(error_of(tiny_gguf("llama").add("llama.expert_count", 8u)), HasSubstr("experts"));
  EXPECT_THAT(error_of(tiny_gguf("llama").add("split.count", 2u)), HasSubstr("split"));
  EXPECT_THAT(error_of(tiny_gguf("qwen2").add("qwen2.attention.sliding_window", 8u)),
              HasSubstr("sliding"));
  EXPECT_THAT(error_of(tiny_gguf("llama").add("llama.rope.scaling.type", "yarn")),
              HasSubstr("got \"yarn\""));
  EXPECT_THAT(error_of(tiny_gguf("llama").add("llama.rope.dimension_count", 4u)),
              HasSubstr("the whole head (8)"));
  EXPECT_THAT(error_of(tiny_gguf("llama").add("llama.attention.key_length", 7u)),
              HasSubstr("head_dim"));
  EXPECT_THAT(error_of(tiny_gguf("llama").add("tokenizer.ggml.eos_token_id", 6u)),
              HasSubstr("eos_token_id"));
  EXPECT_THAT(error_of(tiny_gguf("llama").add("tokenizer.ggml.tokens", 6u)),
              HasSubstr("expected an array"));
  EXPECT_THAT(
      error_of(tiny_gguf("llama").add("tokenizer.ggml.token_type", std::vector<int32_t>{1})),
      HasSubstr("token_type"));
  EXPECT_THAT(error_of(tiny_gguf("llama").add_tensor("model.embed_tokens.weight", {1}, {1.0f})),
              HasSubstr("model.embed_tokens.weight: stored twice"));
}

TEST_F(Models, SayWhichGgufTypeTheyCannotDecode) {
  GgufBuilder builder = tiny_gguf("llama");
  builder.add_tensor("blk.0.attn_v.weight", {kKeyRows, 32}, 20, std::string(kKeyRows * 18, '\0'));
  const ModelFiles model = open_gguf(builder);
  std::vector<float> values(kKeyRows * 32);
  EXPECT_THAT(
      read_error(model, "model.layers.0.self_attn.v_proj.weight",
                 TensorView(values.data(), {kKeyRows, 32})),
      HasSubstr(
          "v_proj.weight: stored as IQ4_NL; types that can be read are F32, F16, BF16, Q4_0"));
}

TEST_F(Models, RefuseWhatIsNoModel) {
  EXPECT_THAT(error_at(directory_ / "absent"), HasSubstr("no such file"));
  EXPECT_THAT(error_at(directory_.path()), HasSubstr("no config.json"));
  EXPECT_THAT(error_at(put("text", "hello")), HasSubstr("neither"));
  put("config.json", kConfig);
  EXPECT_THAT(error_at(directory_.path()), HasSubstr("neither model.safetensors nor"));
}

TEST_F(Models, ReadTheSameBitsWithAnyNumberOfThreads) {
  constexpr int64_t kRows = 1024;
  constexpr int64_t kColumns = 256;
  RandomSequence random(1, RandomStream::test);
  std::string blocks(kRows * kColumns / 32 * 20, '\0');  // Q4_1
  for (size_t i = 0; i < blocks.size(); ++i) {
    // The second byte of a half stays below its infinities.
    blocks[i] = static_cast<char>(i % 20 < 4 ? random.below(0x7c) : random.below(256));
  }
  GgufBuilder builder = tiny_gguf("llama");
  builder.add_tensor("blk.1.attn_q.weight", {kRows, kColumns}, 3, blocks);
  const ModelFiles model = open_gguf(builder);
  const int before = thread_count();
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 2, 5}) {
    set_thread_count(threads);
    results.push_back(read(model, "model.layers.1.self_attn.q_proj.weight", kRows, kColumns));
  }
  set_thread_count(before);
  EXPECT_THAT(results, Each(results.front()));
  EXPECT_NE(results.front().front(), results.front().back());
}

TEST_F(Models, SurviveEveryFlippedBitOfAGguf) {
  GgufBuilder builder = tiny_gguf("llama");
  add_vocabulary(builder);
  const std::string whole = builder.build();
  const size_t header = builder.header().size();
  const std::string path = directory_ / "x.gguf";
  int refused = 0;
  std::vector<float> values;
  const int before = thread_count();
  set_thread_count(1);  // the tensors are tiny
  for (size_t position = 0; position < header; ++position) {
    std::string mutant = whole;
    const int bit = static_cast<int>(position % 8);
    mutant[position] = static_cast<char>(mutant[position] ^ (1 << bit));
    put("x.gguf", mutant);
    try {
      const ModelFiles model = ModelFiles::open(path);
      for (const ModelTensor& tensor : model.tensors()) {
        TensorView view;
        view.rank = static_cast<int>(tensor.shape.size());
        int64_t size = 1;
        for (int i = view.rank - 1; i >= 0; --i) {
          view.shape[i] = tensor.shape[i];
          view.strides[i] = size;
          size *= tensor.shape[i];
        }
        values.assign(static_cast<size_t>(size), 0);
        view.data = values.data();
        model.read_into(tensor.name, view, true);
      }
    } catch (const IoError&) {
      ++refused;
    }
  }
  set_thread_count(before);
  EXPECT_GT(refused, 300);
}

}  // namespace
}  // namespace flashloom
