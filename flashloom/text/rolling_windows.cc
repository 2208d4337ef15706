#include "flashloom/text/rolling_windows.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "flashloom/core/check.h"

namespace flashloom {

void add_rolling_windows(TokenDocuments& documents, std::span<const int32_t> tokens, int32_t prefix,
                         int64_t window, int64_t stride) {
  constexpr std::string_view kOp = "add_rolling_windows";
  check(window >= 1, kOp, "window", "at least 1", std::to_string(window));
  check(1 <= stride && stride <= window, kOp, "stride", fmt::format("1 to {}", window),
        std::to_string(stride));
  check(!tokens.empty(), kOp, "tokens", "at least one", "none");
  const auto size = static_cast<int64_t>(tokens.size());
  std::vector<uint8_t> loss;
  const auto add = [&](std::span<const int32_t> seen, int64_t predicted) {
    loss.assign(seen.size(), 0);
    std::fill(loss.end() - predicted, loss.end(), uint8_t{1});
    documents.add(seen, loss);
  };
  const int64_t first = std::min(window, size);
  std::vector<int32_t> begin = {prefix};
  begin.insert(begin.end(), tokens.begin(), tokens.begin() + first);
  add(begin, first);
  for (int64_t done = first; done < size;) {
    const int64_t predicted = std::min(stride, size - done);
    done += predicted;
    add(tokens.subspan(static_cast<size_t>(done - window - 1), static_cast<size_t>(window + 1)),
        predicted);
  }
}

}  // namespace flashloom
