#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <limits>

#include "flashloom/core/error.h"
#include "flashloom/io/safetensors_writer.h"
#include "flashloom/io/temporary_directory_for_test.h"
#include "flashloom/models/llama/llama_for_test.h"

namespace flashloom {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

struct StoredTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

/// A copy of a golden model whose tensors went through `change`.
void write_changed(const std::string& kind, const std::string& folder,
                   const std::function<void(std::vector<StoredTensor>&)>& change) {
  const TestModel model(golden_folder(kind), {});
  std::vector<StoredTensor> tensors;
  for (const Parameter& parameter : model->parameters()) {
    const ConstTensorView view = parameter.value;
    tensors.push_back(
        {parameter.name, {view.shape.begin(), view.shape.begin() + view.rank}, to_vector(view)});
  }
  change(tensors);
  std::vector<SafetensorsEntry> entries;
  for (const StoredTensor& tensor : tensors) {
    entries.push_back({tensor.name, DType::f32, tensor.shape});
  }
  SafetensorsWriter writer(folder + "/model.safetensors", entries);
  for (const StoredTensor& tensor : tensors) {
    const ConstTensorView view =
        tensor.shape.size() == 1
            ? ConstTensorView(tensor.values.data(), {tensor.shape[0]})
            : ConstTensorView(tensor.values.data(), {tensor.shape[0], tensor.shape[1]});
    writer.write(tensor.name, view);
  }
  writer.finish();
  std::filesystem::copy_file(golden_folder(kind) + "/config.json", folder + "/config.json");
}

StoredTensor& tensor_named(std::vector<StoredTensor>& tensors, const std::string& name) {
  for (StoredTensor& tensor : tensors) {
    if (tensor.name == name) {
      return tensor;
    }
  }
  throw std::runtime_error(name);
}

TEST(LlamaWeights, ComeBackFromAnExport) {
  const TemporaryDirectory folder;
  write_changed("qwen3", folder.path(), [](std::vector<StoredTensor>&) {});
  const TestModel original(golden_folder("qwen3"), {});
  const TestModel again(folder.path(), {});
  const TestBatch batch = golden_batch(open_golden("qwen3"));
  EXPECT_EQ(logits_of(*again.model, batch), logits_of(*original.model, batch));
}

TEST(LlamaWeights, NameATensorThatIsMissing) {
  const TemporaryDirectory folder;
  const std::string name = "model.layers.1.self_attn.k_norm.weight";
  write_changed("qwen3", folder.path(), [&](std::vector<StoredTensor>& tensors) {
    std::erase_if(tensors, [&](const StoredTensor& tensor) { return tensor.name == name; });
  });
  EXPECT_THAT([&] { TestModel(folder.path(), {}); }, ThrowsMessage<IoError>(HasSubstr(name)));
}

TEST(LlamaWeights, NameATensorOfTheWrongShape) {
  const TemporaryDirectory folder;
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  write_changed("llama2", folder.path(), [&](std::vector<StoredTensor>& tensors) {
    tensor_named(tensors, name).shape = {48, 56};
  });
  EXPECT_THAT(
      [&] { TestModel(folder.path(), {}); },
      ThrowsMessage<IoError>(AllOf(HasSubstr(name), HasSubstr("(56, 48)"), HasSubstr("(48, 56)"))));
}

TEST(LlamaWeights, NameATensorThatIsNotFinite) {
  const TemporaryDirectory folder;
  const std::string name = "model.layers.0.self_attn.v_proj.bias";
  write_changed("qwen2", folder.path(), [&](std::vector<StoredTensor>& tensors) {
    tensor_named(tensors, name).values[5] = std::numeric_limits<float>::quiet_NaN();
  });
  EXPECT_THAT([&] { TestModel(folder.path(), {}); }, ThrowsMessage<IoError>(HasSubstr(name)));
}

}  // namespace
}  // namespace flashloom
