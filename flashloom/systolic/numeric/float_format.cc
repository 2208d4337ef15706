#include "flashloom/systolic/numeric/float_format.h"

#include "flashloom/core/error.h"

namespace flashloom::systolic {
namespace {

struct Named {
  std::string_view name;
  FloatFormat format;
};

constexpr Named kFormats[] = {{"fp16", kFp16}, {"bf16", kBf16}, {"fp32", kFp32}};

}  // namespace

std::string_view float_format_name(FloatFormat format) {
  for (const Named& known : kFormats) {
    if (known.format == format) {
      return known.name;
    }
  }
  return "unnamed";
}

FloatFormat parse_float_format(std::string_view name) {
  for (const Named& known : kFormats) {
    if (known.name == name) {
      return known.format;
    }
  }
  throw InvalidArgument("systolic", "format", "fp16, bf16 or fp32", name);
}

}  // namespace flashloom::systolic
