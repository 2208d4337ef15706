#include "flashloom/models/sampling/sampling.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "flashloom/core/check.h"

namespace flashloom {

void validate(const SamplingOptions& options) {
  check(options.temperature >= 0 && std::isfinite(options.temperature), "sample_token",
        "temperature", "a number of at least 0", fmt::format("{}", options.temperature));
  check(options.top_p > 0 && options.top_p <= 1, "sample_token", "top_p",
        "a probability above 0, at most 1", fmt::format("{}", options.top_p));
  check(options.top_k >= 0, "sample_token", "top_k", "at least 0",
        fmt::format("{}", options.top_k));
}

int32_t sample_token(ConstTensorView logits, const SamplingOptions& options, RandomSequence& random,
                     std::vector<int32_t>& scratch) {
  validate(options);
  check_shape("sample_token", "logits", logits, {kAnySize});
  const float* values = logits.as<float>();
  const int64_t size = logits.dim(0);
  int64_t best = 0;
  for (int64_t i = 0; i < size; ++i) {
    check(!std::isnan(values[i]), "sample_token", "logits", "numbers",
          fmt::format("NaN for token {}", i));
    best = values[i] > values[best] ? i : best;
  }
  check(size > 0 && std::isfinite(values[best]), "sample_token", "logits", "a finite maximum",
        size > 0 ? fmt::format("{}", values[best]) : "no logits");
  if (options.temperature == 0 || options.top_k == 1) {
    return static_cast<int32_t>(best);
  }

  const auto likelier = [&](int32_t a, int32_t b) {
    return values[a] != values[b] ? values[a] > values[b] : a < b;
  };
  scratch.resize(static_cast<size_t>(size));
  std::iota(scratch.begin(), scratch.end(), 0);
  int64_t kept = size;
  if (options.top_k > 0 && options.top_k < size) {
    kept = options.top_k;
    std::partial_sort(scratch.begin(), scratch.begin() + kept, scratch.end(), likelier);
  } else if (options.top_p < 1) {
    std::sort(scratch.begin(), scratch.end(), likelier);
  }

  const auto weight = [&](int64_t i) {
    const double difference = static_cast<double>(values[scratch[static_cast<size_t>(i)]]) -
                              static_cast<double>(values[best]);
    return std::exp(difference / options.temperature);
  };
  double total = 0;
  for (int64_t i = 0; i < kept; ++i) {
    total += weight(i);
  }
  if (options.top_p < 1) {
    double sum = 0;
    int64_t count = 0;
    while (count < kept && sum < options.top_p * total) {
      sum += weight(count++);
    }
    kept = count;
    total = sum;
  }
  double target = static_cast<double>(random.uniform()) * total;
  for (int64_t i = 0; i < kept; ++i) {
    target -= weight(i);
    if (target < 0) {
      return scratch[static_cast<size_t>(i)];
    }
  }
  return scratch[static_cast<size_t>(kept - 1)];  // rounding left a crumb
}

}  // namespace flashloom
