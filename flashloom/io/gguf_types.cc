#include "flashloom/io/gguf_types.h"

namespace flashloom {
namespace {

// Numbers and sizes of the GGUF specification; gaps are types that ggml has removed.
constexpr GgmlTypeInfo kTypes[] = {
    {"F32", 1, 4, 0, true},          {"F16", 1, 2, 1, true},
    {"BF16", 1, 2, 30, true},        {"Q4_0", 32, 18, 2, true},
    {"Q4_1", 32, 20, 3, true},       {"Q5_0", 32, 22, 6, true},
    {"Q5_1", 32, 24, 7, true},       {"Q8_0", 32, 34, 8, true},
    {"Q4_K", 256, 144, 12, true},    {"Q5_K", 256, 176, 13, true},
    {"Q6_K", 256, 210, 14, true},    {"Q8_1", 32, 40, 9, false},
    {"Q2_K", 256, 84, 10, false},    {"Q3_K", 256, 110, 11, false},
    {"Q8_K", 256, 292, 15, false},   {"IQ2_XXS", 256, 66, 16, false},
    {"IQ2_XS", 256, 74, 17, false},  {"IQ3_XXS", 256, 98, 18, false},
    {"IQ1_S", 256, 50, 19, false},   {"IQ4_NL", 32, 18, 20, false},
    {"IQ3_S", 256, 110, 21, false},  {"IQ2_S", 256, 82, 22, false},
    {"IQ4_XS", 256, 136, 23, false}, {"I8", 1, 1, 24, false},
    {"I16", 1, 2, 25, false},        {"I32", 1, 4, 26, false},
    {"I64", 1, 8, 27, false},        {"F64", 1, 8, 28, false},
    {"IQ1_M", 256, 56, 29, false},   {"TQ1_0", 256, 54, 34, false},
    {"TQ2_0", 256, 66, 35, false},   {"MXFP4", 32, 17, 39, false},
    {"NVFP4", 64, 36, 40, false},    {"Q1_0", 128, 18, 41, false},
};

}  // namespace

const GgmlTypeInfo* find_ggml_type(uint32_t number) {
  for (const GgmlTypeInfo& row : kTypes) {
    if (row.number == number) {
      return &row;
    }
  }
  return nullptr;
}

std::string decodable_ggml_types() {
  std::string names;
  for (const GgmlTypeInfo& row : kTypes) {
    if (row.decodable) {
      names += names.empty() ? "" : ", ";
      names += row.name;
    }
  }
  return names;
}

}  // namespace flashloom
