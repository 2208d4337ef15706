#include "flashloom/io/model_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <system_error>
#include <unordered_map>

#include "flashloom/core/check.h"
#include "flashloom/core/error.h"
#include "flashloom/io/gguf.h"
#include "flashloom/io/gguf_dequantize.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/io/safetensors_model.h"
#include "flashloom/io/tensor_decoder.h"

namespace flashloom {
namespace {

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

bool is_directory(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored);
}

struct Describe {
  std::string operator()(const GgufArray& array) const {
    return fmt::format("{} x {}", array.count, gguf_type_name(array.type));
  }

  template <class Scalar>
  std::string operator()(const Scalar& scalar) const {
    return fmt::format("{}", scalar);
  }
};

}  // namespace

struct ModelFiles::Implementation {
  Format format = Format::hugging_face;
  std::string path;
  ModelConfig config;
  std::vector<ModelTensor> tensors;
  std::vector<EncodedTensor> encoded;  // beside tensors
  std::unordered_map<std::string_view, size_t> by_name;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::optional<StoredVocabulary> vocabulary;
  std::optional<GgufFile> gguf;
  std::optional<SafetensorsModel> safetensors;

  void add(ModelTensor tensor, EncodedTensor bytes) {
    tensor.stored_bytes = static_cast<int64_t>(bytes.bytes.size());
    tensors.push_back(std::move(tensor));
    encoded.push_back(bytes);
  }

  void index() {
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (!by_name.emplace(tensors[i].name, i).second) {
        throw IoError(path, fmt::format("tensor {}", tensors[i].name), "stored twice");
      }
    }
  }

  void open_hugging_face() {
    const std::string config_path = path + "/config.json";
    if (!exists(config_path)) {
      throw IoError(path, "", "expected a Hugging Face directory, but it has no config.json");
    }
    config = parse_hugging_face_config(MappedFile(config_path).text(), config_path);
    const std::string generation_path = path + "/generation_config.json";
    if (exists(generation_path)) {
      apply_generation_config(config, MappedFile(generation_path).text(), generation_path);
    }
    safetensors.emplace(path);
    for (const SafetensorsTensor* tensor : safetensors->tensors()) {
      EncodedTensor bytes;
      bytes.bytes = tensor->bytes;
      bytes.dtype = safetensors_dtype(tensor->dtype);
      add({tensor->name, tensor->shape, tensor->dtype}, bytes);
    }
    for (const auto& [key, value] : safetensors->files().front().metadata()) {
      metadata.emplace_back(key, value);
    }
  }

  void open_gguf() {
    format = Format::gguf;
    gguf.emplace(path);
    config = read_gguf_config(*gguf);
    vocabulary = read_gguf_vocabulary(*gguf);
    for (const GgufTensor& tensor : gguf->tensors()) {
      const std::string name = hugging_face_tensor_name(tensor.name);
      EncodedTensor bytes;
      bytes.bytes = tensor.bytes;
      bytes.ggml = find_ggml_type(tensor.type.number);
      bytes.interleaved_heads = permuted_heads(config, name);
      add({name, tensor.shape, std::string(tensor.type.name)}, bytes);
    }
    for (const auto& [key, value] : gguf->metadata()) {
      metadata.emplace_back(key, std::visit(Describe{}, value.value));
    }
  }
};

ModelFiles::ModelFiles(std::unique_ptr<Implementation> implementation)
    : implementation_(std::move(implementation)) {}

ModelFiles::ModelFiles(ModelFiles&&) noexcept = default;
ModelFiles& ModelFiles::operator=(ModelFiles&&) noexcept = default;
ModelFiles::~ModelFiles() = default;

ModelFiles ModelFiles::open(const std::string& path) {
  auto model = std::make_unique<Implementation>();
  model->path = path;
  if (is_directory(path)) {
    model->open_hugging_face();
  } else if (!exists(path)) {
    throw IoError(path, "", "no such file or directory");
  } else if (GgufFile::has_magic(MappedFile(path))) {
    model->open_gguf();
  } else {
    throw IoError(path, "byte 0",
                  "expected a GGUF file or a Hugging Face directory, and it is neither");
  }
  model->index();
  return ModelFiles(std::move(model));
}

ModelFiles::Format ModelFiles::format() const {
  return implementation_->format;
}

const std::string& ModelFiles::path() const {
  return implementation_->path;
}

const ModelConfig& ModelFiles::config() const {
  return implementation_->config;
}

const std::vector<ModelTensor>& ModelFiles::tensors() const {
  return implementation_->tensors;
}

const ModelTensor* ModelFiles::find(std::string_view name) const {
  const auto it = implementation_->by_name.find(name);
  return it == implementation_->by_name.end() ? nullptr : &implementation_->tensors[it->second];
}

void ModelFiles::read_into(std::string_view name, TensorView out, bool require_finite) const {
  const ModelTensor* tensor = find(name);
  const std::string place = fmt::format("tensor {}", name);
  if (tensor == nullptr) {
    throw IoError(path(), place, "missing");
  }
  const std::vector<int64_t> wanted(out.shape.begin(), out.shape.begin() + out.rank);
  if (tensor->shape != wanted) {
    throw IoError(path(), place,
                  fmt::format("expected shape ({}), got ({})", fmt::join(wanted, ", "),
                              fmt::join(tensor->shape, ", ")));
  }
  const auto index = static_cast<size_t>(tensor - implementation_->tensors.data());
  const EncodedTensor& encoded = implementation_->encoded[index];
  if (!can_decode(encoded)) {
    throw IoError(
        path(), place,
        fmt::format("stored as {}; types that can be read are {}", tensor->stored_type,
                    format() == Format::gguf ? decodable_ggml_types() : "F64, F32, F16, BF16"));
  }
  const int64_t heads = encoded.interleaved_heads;
  if (heads > 0 && (out.dim(0) % (2 * heads) != 0)) {
    throw IoError(path(), place,
                  fmt::format("its {} rows are not {} heads of even size", out.dim(0), heads));
  }
  const std::optional<int64_t> bad_row = decode_tensor(encoded, out, require_finite);
  if (bad_row) {
    throw IoError(path(), place, fmt::format("row {} holds a NaN or an infinity", *bad_row));
  }
}

const BlockFormat* ModelFiles::block_format(std::string_view name) const {
  const ModelTensor* tensor = find(name);
  if (tensor == nullptr || tensor->shape.size() != 2) {
    return nullptr;
  }
  const GgmlTypeInfo* type =
      implementation_->encoded[static_cast<size_t>(tensor - implementation_->tensors.data())].ggml;
  return type != nullptr ? gguf_block_format(static_cast<GgmlType>(type->number)) : nullptr;
}

void ModelFiles::read_blocks(std::string_view name, const BlockMatrix& shape,
                             std::byte* out) const {
  const ModelTensor* tensor = find(name);
  const std::string place = fmt::format("tensor {}", name);
  if (tensor == nullptr || block_format(name) != shape.format ||
      tensor->shape != std::vector<int64_t>{shape.rows, shape.columns}) {
    throw IoError(
        path(), place,
        tensor == nullptr
            ? std::string("missing")
            : fmt::format("expected ({}, {}) {}, got ({}) {}", shape.rows, shape.columns,
                          shape.format->name, fmt::join(tensor->shape, ", "), tensor->stored_type));
  }
  const auto index = static_cast<size_t>(tensor - implementation_->tensors.data());
  const EncodedTensor& encoded = implementation_->encoded[index];
  const std::optional<int64_t> bad_row = copy_blocks(encoded, shape, out);
  if (bad_row) {
    throw IoError(path(), place, fmt::format("row {} holds a NaN or an infinity", *bad_row));
  }
}

const StoredVocabulary* ModelFiles::vocabulary() const {
  const std::optional<StoredVocabulary>& vocabulary = implementation_->vocabulary;
  return vocabulary ? &*vocabulary : nullptr;
}

const std::vector<std::pair<std::string, std::string>>& ModelFiles::metadata() const {
  return implementation_->metadata;
}

}  // namespace flashloom
