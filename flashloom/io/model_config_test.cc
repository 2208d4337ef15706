#include "flashloom/io/model_config.h"

#include <gmock/gmock.h>

#include <string>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::string_view kFile = "config.json";

std::string error_of(const std::string& json) {
  try {
    parse_hugging_face_config(json, kFile);
  } catch (const IoError& error) {
    return error.what();
  }
  return "no error";
}

std::string with(std::string_view field) {
  return R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 64,
             "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, )" +
         std::string(field) + R"("rms_norm_eps": 1e-5})";
}

// Llama 3.2 1B as transformers 4 wrote it.
constexpr std::string_view kLlama3 = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
  "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
  "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256})";

TEST(ModelConfig, ReadsWhatTransformers4Writes) {
  const ModelConfig config = parse_hugging_face_config(kLlama3, kFile);
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.hidden_size, 2048);
  EXPECT_EQ(config.kv_heads, 8);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.rope_scaling, ModelConfig::RopeScaling::llama3);
  EXPECT_EQ(config.rope_theta, 500000.0);
  EXPECT_EQ(config.rope_factor, 32.0);
  EXPECT_EQ(config.rope_high_frequency_factor, 4.0);
  EXPECT_EQ(config.rope_original_positions, 8192);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_EQ(config.stored_dtype, DType::bf16);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(128001, 128008, 128009));
  EXPECT_EQ(config.bos_token_id, 128000);
  EXPECT_EQ(parameter_count(config), 1235814400);  // the count on its model card, 1.24 B
}

TEST(ModelConfig, ReadsWhatTransformers5Writes) {
  const ModelConfig config = parse_hugging_face_config(R"({
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16",
    "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "layer_types": ["full_attention", "full_attention"], "sliding_window": null,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "tie_word_embeddings": true,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "eos_token_id": 151645})",
                                                       kFile);
  EXPECT_EQ(config.architecture, "qwen3");
  EXPECT_EQ(config.rope_theta, 1e6);
  EXPECT_EQ(config.rope_scaling, ModelConfig::RopeScaling::none);
  EXPECT_TRUE(config.qk_norm);
  EXPECT_FALSE(config.attention_bias);
  EXPECT_EQ(parameter_count(config), 596049920);  // Qwen3 0.6B
}

TEST(ModelConfig, KnowsWhichBiasesAQwen2Has) {
  std::string json(with("\"num_key_value_heads\": 2, "));
  json.replace(json.find("Llama"), 5, "Qwen2");
  const ModelConfig config = parse_hugging_face_config(json, kFile);
  EXPECT_TRUE(config.attention_bias);
  EXPECT_FALSE(config.attention_output_bias);
  EXPECT_FALSE(config.mlp_bias);
  EXPECT_EQ(config.head_dim, 16);
}

TEST(ModelConfig, TakesEndTokensOfTheGenerationConfigFirst) {
  ModelConfig config = parse_hugging_face_config(with("\"eos_token_id\": 7, "), kFile);
  apply_generation_config(config, R"({"eos_token_id": [9, 7], "pad_token_id": 3})", "generation");
  EXPECT_THAT(config.eos_token_ids, ElementsAre(9, 7));
  EXPECT_EQ(config.pad_token_id, 3);
  config = parse_hugging_face_config(with("\"eos_token_id\": 7, "), kFile);
  apply_generation_config(config, R"({"eos_token_id": 5})", "generation");
  EXPECT_THAT(config.eos_token_ids, ElementsAre(5, 7));
}

TEST(ModelConfig, SurvivesTheExport) {
  for (const std::string& json :
       {std::string(kLlama3), with("\"attention_bias\": true, \"mlp_bias\": true, "),
        with(R"("rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2}, )")}) {
    const ModelConfig config = parse_hugging_face_config(json, kFile);
    EXPECT_EQ(parse_hugging_face_config(to_hugging_face_json(config), kFile), config);
    ModelConfig other = config;
    apply_generation_config(other, to_generation_config_json(config), kFile);
    EXPECT_EQ(other, config);
  }
}

TEST(ModelConfig, RefusesToExportWhatTransformersCannotHold) {
  ModelConfig config = parse_hugging_face_config(with(""), kFile);
  config.attention_bias = true;
  EXPECT_THROW(to_hugging_face_json(config), Unsupported);
  config.attention_bias = false;
  config.rope_scaling = ModelConfig::RopeScaling::factors;
  EXPECT_THROW(to_hugging_face_json(config), Unsupported);
}

TEST(ModelConfig, NamesTheFieldThatIsWrong) {
  EXPECT_THAT(error_of("{\"architectures\": [\"LlamaForCausalLM\"]}"),
              HasSubstr("config.json: vocab_size: missing"));
  EXPECT_THAT(error_of(with("\"num_key_value_heads\": 3, ")),
              HasSubstr("num_key_value_heads: expected a divisor of the 4"));
  EXPECT_THAT(error_of(with("\"num_key_value_heads\": 0, ")), HasSubstr("num_key_value_heads"));
  EXPECT_THAT(error_of(with("\"head_dim\": 15, ")), HasSubstr("head_dim: expected an even"));
  EXPECT_THAT(error_of(with("\"head_dim\": -16, ")), HasSubstr("got -16"));
  EXPECT_THAT(error_of(with("\"head_dim\": 1.5, ")), HasSubstr("expected an integer, got 1.5"));
  EXPECT_THAT(error_of(with("\"head_dim\": 18446744073709551615, ")), HasSubstr("head_dim"));
  EXPECT_THAT(error_of(with("\"eos_token_id\": 100, ")), HasSubstr("eos_token_id"));
  EXPECT_THAT(error_of(with("\"eos_token_id\": [[1]], ")), HasSubstr("expected a token id"));
  EXPECT_THAT(error_of(with("\"rope_theta\": -1, ")), HasSubstr("rope_theta"));
  EXPECT_THAT(error_of(with("\"hidden_act\": \"gelu\", ")), HasSubstr("hidden_act"));
  EXPECT_THAT(error_of(with("\"dtype\": \"int4\", ")), HasSubstr("dtype"));
  EXPECT_THAT(error_of(with("\"quantization_config\": {}, ")), HasSubstr("GGUF"));
  EXPECT_THAT(error_of(with("\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4}, ")),
              HasSubstr("\"llama3\", got \"yarn\""));
  EXPECT_THAT(error_of(with("\"rope_scaling\": 3, ")), HasSubstr("expected a JSON object"));
  EXPECT_THAT(error_of(R"({"architectures": ["GPT2LMHeadModel"]})"), HasSubstr("GPT2LMHeadModel"));
}

TEST(ModelConfig, RefusesSlidingWindows) {
  std::string json(with(""));
  json.replace(json.find("Llama"), 5, "Mistral");
  EXPECT_THAT(error_of(json), HasSubstr("sliding_window"));  // absent means 4096
  json.insert(1, "\"sliding_window\": 4096, ");
  EXPECT_THAT(error_of(json), HasSubstr("got 4096"));
  json.replace(json.find("4096"), 4, "null");
  EXPECT_EQ(error_of(json), "no error");
  json = with("\"use_sliding_window\": true, ");
  json.replace(json.find("Llama"), 5, "Qwen2");
  EXPECT_THAT(error_of(json), HasSubstr("use_sliding_window"));
  EXPECT_THAT(error_of(with("\"layer_types\": [\"sliding_attention\"], ")),
              HasSubstr("sliding_attention"));
}

TEST(ModelConfig, RefusesHostileJson) {
  EXPECT_THAT(error_of(std::string(100000, '[')), HasSubstr("nested deeper"));
  EXPECT_THAT(error_of("{\"a\": 1"), HasSubstr("byte 8: malformed JSON"));
  EXPECT_THAT(error_of("{\"a\": \"\xff\"}"), HasSubstr("malformed JSON"));
  EXPECT_THAT(error_of(with("\"vocab_size\": 3, ")), HasSubstr("given twice"));
  EXPECT_THAT(error_of(with("\"rope_theta\": 1e999, ")), HasSubstr("number"));
  EXPECT_THAT(error_of("[]"), HasSubstr("expected a JSON object"));
  EXPECT_THAT(error_of(""), HasSubstr("malformed JSON"));
  const std::string whole(kLlama3);
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_NE(error_of(whole.substr(0, length)), "no error");
  }
}

}  // namespace
}  // namespace flashloom
