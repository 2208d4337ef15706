#include <cstdint>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/io/model_files.h"
#include "flashloom/text/tokenizer.h"
#include "flashloom/train/gguf_vocabulary.h"
#include "fuzz/fuzz_file.h"
#include "fuzz/targets.h"

namespace flashloom::fuzz {
namespace {

// What a real file of this size could hold; beyond it a tensor would only cost time.
constexpr int64_t kMostNumbers = 1 << 16;

void read_tensors(const ModelFiles& files) {
  for (const ModelTensor& tensor : files.tensors()) {
    int64_t numbers = 1;
    for (const int64_t size : tensor.shape) {
      numbers = size > 0 && numbers <= kMostNumbers ? numbers * size : kMostNumbers + 1;
    }
    if (numbers > kMostNumbers || tensor.shape.size() != 2) {
      continue;
    }
    std::vector<float> values(static_cast<size_t>(numbers));
    try {
      files.read_into(tensor.name, TensorView(values.data(), {tensor.shape[0], tensor.shape[1]}));
    } catch (const Error&) {
    }
  }
}

void read_vocabulary(const ModelFiles& files) {
  if (files.vocabulary() != nullptr) {
    const Tokenizer tokenizer = Tokenizer::from_vocabulary(gguf_vocabulary(files));
    static_cast<void>(tokenizer.decode(tokenizer.encode("Hello, 123 w\xC3\xB6rlds")));
  }
}

}  // namespace

void read_gguf(std::string_view bytes) {
  static const FuzzFile kFile("fuzz.gguf");
  const std::string& path = kFile.write(bytes);
  try {
    const GgufFile file(path);
    static_cast<void>(read_gguf_vocabulary(file));
  } catch (const Error&) {
  }
  try {
    const ModelFiles files = ModelFiles::open(path);
    read_tensors(files);
    read_vocabulary(files);
  } catch (const Error&) {
  }
}

}  // namespace flashloom::fuzz
