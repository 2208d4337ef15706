#include "flashloom/train/adapter_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "flashloom/core/error.h"
#include "flashloom/io/temporary_directory_for_test.h"
#include "flashloom/models/llama/llama_for_test.h"

namespace flashloom {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

nlohmann::json config_in(const TemporaryDirectory& folder) {
  std::ifstream file(folder / "adapter_config.json");
  return nlohmann::json::parse(file);
}

TEST(AdapterFiles, CarryRankStabilizationAndLayers) {
  const LoraOptions options = {.rank = 4, .alpha = 6, .rank_stabilized = true, .layers = {1}};
  const TestModel model(golden_folder("smollm2"), {.lora = options});
  model.randomize_adapters(4);
  const TemporaryDirectory folder;
  save_adapter(folder.path(), *model.model, "base");
  const nlohmann::json config = config_in(folder);
  EXPECT_EQ(config.at("use_rslora"), true);
  EXPECT_EQ(config.at("layers_to_transform"), nlohmann::json::array({1}));

  const LoraOptions read = read_adapter_options(folder.path());
  EXPECT_TRUE(read.rank_stabilized);
  EXPECT_EQ(read.layers, options.layers);
  EXPECT_EQ(read.scale(), 3);  // 6 / sqrt(4)
  const TestModel again(golden_folder("smollm2"), {.lora = read});
  load_adapter(folder.path(), *again.model);
  const TestBatch batch = golden_batch(open_golden("smollm2"));
  EXPECT_EQ(logits_of(*again.model, batch), logits_of(*model.model, batch));
}

TEST(AdapterFiles, ArePlainLoraOfAllLayersByDefault) {
  const TestModel model(golden_folder("smollm2"), {.lora = LoraOptions{.rank = 4, .alpha = 6}});
  model.randomize_adapters(4);
  const TemporaryDirectory folder;
  save_adapter(folder.path(), *model.model, "base");
  EXPECT_EQ(config_in(folder).at("use_rslora"), false);
  EXPECT_FALSE(config_in(folder).contains("layers_to_transform"));
  EXPECT_EQ(read_adapter_options(folder.path()).scale(), 1.5F);
}

TEST(AdapterFiles, RefuseWhatTheyCannotMean) {
  const TemporaryDirectory folder;
  const auto read = [&](const std::string& field, const nlohmann::json& value) {
    nlohmann::json config = {
        {"peft_type", "LORA"}, {"r", 4}, {"lora_alpha", 8}, {"target_modules", {"q_proj"}}};
    config[field] = value;
    overwrite_for_test(folder / "adapter_config.json", config.dump());
    return read_adapter_options(folder.path());
  };
  EXPECT_EQ(read("layers_to_transform", 3).layers, std::vector<int64_t>{3});
  EXPECT_EQ(read("layers_to_transform", {2, 0}).layers, (std::vector<int64_t>{0, 2}));
  EXPECT_TRUE(read("layers_to_transform", nullptr).layers.empty());
  for (const nlohmann::json& wrong :
       {nlohmann::json(-1), nlohmann::json("0"), nlohmann::json({0, "1"}), nlohmann::json({0.5})}) {
    EXPECT_THAT([&] { read("layers_to_transform", wrong); },
                ThrowsMessage<IoError>(HasSubstr("layers_to_transform")))
        << wrong;
  }
  EXPECT_THAT([&] { read("use_rslora", "yes"); }, ThrowsMessage<IoError>(HasSubstr("use_rslora")));
  EXPECT_THAT([&] { read("use_dora", 1); }, ThrowsMessage<IoError>(HasSubstr("use_dora")));
}

}  // namespace
}  // namespace flashloom
