#include "flashloom/io/gguf_types.h"

namespace flashloom {
namespace {

// Numbers and sizes of the GGUF specification; gaps are types that ggml has removed.
constexpr GgmlTypeInfo kTypes[] = {
    {0, true, "F32", 1, 4},          {1, true, "F16", 1, 2},
    {30, true, "BF16", 1, 2},        {2, true, "Q4_0", 32, 18},
    {3, true, "Q4_1", 32, 20},       {6, true, "Q5_0", 32, 22},
    {7, true, "Q5_1", 32, 24},       {8, true, "Q8_0", 32, 34},
    {12, true, "Q4_K", 256, 144},    {13, true, "Q5_K", 256, 176},
    {14, true, "Q6_K", 256, 210},    {9, false, "Q8_1", 32, 40},
    {10, false, "Q2_K", 256, 84},    {11, false, "Q3_K", 256, 110},
    {15, false, "Q8_K", 256, 292},   {16, false, "IQ2_XXS", 256, 66},
    {17, false, "IQ2_XS", 256, 74},  {18, false, "IQ3_XXS", 256, 98},
    {19, false, "IQ1_S", 256, 50},   {20, false, "IQ4_NL", 32, 18},
    {21, false, "IQ3_S", 256, 110},  {22, false, "IQ2_S", 256, 82},
    {23, false, "IQ4_XS", 256, 136}, {24, false, "I8", 1, 1},
    {25, false, "I16", 1, 2},        {26, false, "I32", 1, 4},
    {27, false, "I64", 1, 8},        {28, false, "F64", 1, 8},
    {29, false, "IQ1_M", 256, 56},   {34, false, "TQ1_0", 256, 54},
    {35, false, "TQ2_0", 256, 66},   {39, false, "MXFP4", 32, 17},
    {40, false, "NVFP4", 64, 36},    {41, false, "Q1_0", 128, 18},
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
