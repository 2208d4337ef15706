#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "flashloom/io/gguf_types.h"
#include "flashloom/io/safetensors_writer.h"
#include "flashloom/models/llama/llama.h"
#include "flashloom/text/tokenizer.h"

namespace flashloom {

/// Writes a directory that transformers loads: config.json, generation_config.json, safetensors in
/// `dtype` (in files of at most `max_shard_bytes`), tokenizer and chat template. Files appear
/// whole; the weights last.
void save_hugging_face(const std::string& directory, const LlamaModel& model,
                       const Tokenizer& tokenizer, DType dtype,
                       int64_t max_shard_bytes = SafetensorsModelWriter::kDefaultShardBytes);

/// Writes one GGUF file that llama.cpp loads: weights as `type` (gguf_stored_type()), config,
/// vocabulary and chat template. The file appears whole. Throws IoError if the tokenizer is none
/// that llama.cpp has.
void save_gguf(const std::string& path, const LlamaModel& model, const Tokenizer& tokenizer,
               GgmlType type, const std::string& model_name);

/// Tokenizer files and chat template alone, as they stand beside an adapter.
void save_tokenizer(const std::string& directory, const Tokenizer& tokenizer);

/// "f32", "bf16" or "f16"; throws InvalidArgument for anything else.
DType parse_float_dtype(std::string_view name);

}  // namespace flashloom
