#pragma once

#include <array>
#include <string_view>

namespace flashloom::fuzz {

/// Each hands bytes to one reader. A reader may refuse them with an error of ours; anything else
/// (a crash, a hang, another exception, memory out of proportion) is a finding.
void read_safetensors(std::string_view bytes);
void read_gguf(std::string_view bytes);
void read_tokenizer(std::string_view bytes);
void read_chat_template(std::string_view bytes);
void read_jsonl(std::string_view bytes);
void read_toml(std::string_view bytes);
void read_checkpoint(std::string_view bytes);

struct Target {
  std::string_view name;  // of its folder in fuzz/corpus
  void (*run)(std::string_view bytes);
};

inline constexpr std::array<Target, 7> kTargets = {{{"safetensors", read_safetensors},
                                                    {"gguf", read_gguf},
                                                    {"tokenizer", read_tokenizer},
                                                    {"chat_template", read_chat_template},
                                                    {"jsonl", read_jsonl},
                                                    {"toml", read_toml},
                                                    {"checkpoint", read_checkpoint}}};

}  // namespace flashloom::fuzz
