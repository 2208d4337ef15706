#pragma once

#include <string>
#include <string_view>

#include "flashloom/models/llama/llama.h"
#include "flashloom/text/tokenizer.h"

namespace flashloom {

/// Writes a directory that transformers loads: config.json, generation_config.json, safetensors in
/// `dtype` (sharded if large), tokenizer and chat template. Files appear whole; the weights last.
void save_hugging_face(const std::string& directory, const LlamaModel& model,
                       const Tokenizer& tokenizer, DType dtype);

/// Tokenizer files and chat template alone, as they stand beside an adapter.
void save_tokenizer(const std::string& directory, const Tokenizer& tokenizer);

/// "f32", "bf16" or "f16"; throws InvalidArgument for anything else.
DType parse_float_dtype(std::string_view name);

}  // namespace flashloom
