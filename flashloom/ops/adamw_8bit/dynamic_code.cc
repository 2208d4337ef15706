#include "flashloom/ops/adamw_8bit/dynamic_code.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

namespace flashloom {
namespace {

constexpr int kDecades = 7;
constexpr size_t kSignedZero = 127;  // its place among the signed numbers

std::array<float, 256> make_code(bool is_signed) {
  std::vector<double> numbers = {0, 1};
  for (int i = 0; i < kDecades; ++i) {
    const int parts = 1 << (is_signed ? i : i + 1);
    for (int part = 0; part < parts; ++part) {
      const double middle = 0.1 + 0.9 * (part + 0.5) / parts;
      const double number = middle * std::pow(10.0, i - (kDecades - 1));
      numbers.push_back(number);
      if (is_signed) {
        numbers.push_back(-number);
      }
    }
  }
  std::sort(numbers.begin(), numbers.end());
  std::array<float, 256> code = {};
  std::transform(numbers.begin(), numbers.end(), code.begin(),
                 [](double number) { return static_cast<float>(number); });
  return code;
}

detail::DynamicCodeBins make_bins(bool is_signed) {
  using detail::DynamicCodeBins;
  const std::array<float, 256>& code = dynamic_code(is_signed);
  detail::DynamicCodeBins bins = {};
  size_t at = is_signed ? kSignedZero : 0;
  // The border above code `at`; beyond the last there is none.
  const auto border = [&] {
    return at == 255 ? 2.0 : (static_cast<double>(code[at]) + code[at + 1]) / 2;
  };
  for (size_t bin = 0; bin < bins.entries.size(); ++bin) {
    const uint32_t upper = (static_cast<uint32_t>(bin) + DynamicCodeBins::kFirst) << 16;
    const auto beyond = [&](uint32_t lower) {
      return std::bit_cast<float>(upper | lower) > border();
    };
    while (beyond(0)) {
      ++at;
    }
    uint32_t first = 0x10000;  // none reaches it
    if (beyond(0xffff)) {
      first = 0;
      for (uint32_t bit = 0x8000; bit > 0; bit >>= 1) {
        first += beyond(first + bit - 1) ? 0 : bit;
      }
    }
    bins.entries[bin] = static_cast<uint32_t>(at) << 17 | first;
  }
  return bins;
}

}  // namespace

const std::array<float, 256>& dynamic_code(bool is_signed) {
  static const std::array<float, 256> kSigned = make_code(true);
  static const std::array<float, 256> kUnsigned = make_code(false);
  return is_signed ? kSigned : kUnsigned;
}

uint8_t encode_dynamic(float x, bool is_signed) {
  const detail::DynamicCodeBins& bins = detail::dynamic_code_bins(is_signed);
  const uint32_t bits = std::bit_cast<uint32_t>(x) & 0x7fffffffu;
  const int32_t bin = std::clamp(static_cast<int32_t>(bits >> 16) - detail::DynamicCodeBins::kFirst,
                                 0, static_cast<int32_t>(bins.entries.size()) - 1);
  const bool below = static_cast<int32_t>(bits >> 16) < detail::DynamicCodeBins::kFirst;
  const uint32_t entry = bins.entries[static_cast<size_t>(bin)];
  const uint32_t lower = below ? 0 : bits & 0xffffu;
  const auto code = static_cast<int32_t>((entry >> 17) + (lower >= (entry & 0x1ffffu) ? 1 : 0));
  if (!is_signed) {
    return static_cast<uint8_t>(std::max(code, x > 0 ? 1 : 0));
  }
  // Each negative number lies as far below zero as its opposite above; 1 alone has none.
  return static_cast<uint8_t>(x < 0 ? std::max(0, 2 * static_cast<int32_t>(kSignedZero) - code)
                                    : code);
}

namespace detail {

const DynamicCodeBins& dynamic_code_bins(bool is_signed) {
  static const DynamicCodeBins kSigned = make_bins(true);
  static const DynamicCodeBins kUnsigned = make_bins(false);
  return is_signed ? kSigned : kUnsigned;
}

}  // namespace detail
}  // namespace flashloom
