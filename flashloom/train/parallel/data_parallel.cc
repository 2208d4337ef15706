#include "flashloom/train/parallel/data_parallel.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "flashloom/core/check.h"
#include "flashloom/core/error.h"
#include "flashloom/ops/adamw_8bit/dynamic_code.h"

namespace flashloom {
namespace {

// Bytes of a rank's range that are exchanged at once: enough that a message's own time (some 10 µs)
// does not show, few enough that the rows of a few ranks stay in the cache.
constexpr int64_t kBucket = int64_t{1} << 20;

std::vector<int64_t> trained_sizes(std::span<const Parameter> parameters) {
  std::vector<int64_t> sizes;
  for (const Parameter& parameter : parameters) {
    if (parameter.trainable()) {
      sizes.push_back(parameter.value.size());
    }
  }
  return sizes;
}

// Walks through a range's pieces, in order.
template <class Range>
class Cursor {
 public:
  explicit Cursor(const Range& range) : range_(range) {}

  // visit(memory, offset in the bucket, bytes) for the next `bytes` of the range, or what is left.
  template <class Visit>
  void next(int64_t bytes, Visit visit) {
    for (int64_t done = 0; done < bytes && piece_ < range_.size();) {
      const int64_t count = std::min(bytes - done, range_[piece_].bytes - offset_);
      visit(range_[piece_].memory + offset_, done, static_cast<size_t>(count));
      done += count;
      offset_ += count;
      if (offset_ == range_[piece_].bytes) {
        ++piece_;
        offset_ = 0;
      }
    }
  }

 private:
  const Range& range_;
  size_t piece_ = 0;
  int64_t offset_ = 0;
};

}  // namespace

DataParallel::DataParallel(Communicator& communicator, std::span<const Parameter> parameters,
                           MemoryPlan& plan)
    : communicator_(communicator),
      shards_(trained_sizes(parameters), communicator.size(), kDynamicCodeBlock) {
  if (communicator.size() > 1) {
    const int64_t ranks = communicator.size();
    const auto add = [&](const char* name, int64_t rows) {
      return plan.add(name, MemoryKind::workspace, DType::u8, {rows, kBucket});
    };
    rows_id_ = add("exchange of ranks: rows", ranks);
    own_id_ = add("exchange of ranks: own", 1);
    // What the communicator keeps of sums that arrive.
    plan.add_outside("messages of other ranks", ranks * kBucket);
  }
}

void DataParallel::bind(const Arena& arena, std::span<const Parameter> parameters) {
  if (communicator_.size() == 1) {
    return;
  }
  rows_ = arena[rows_id_];
  own_ = arena[own_id_];
  for (int rank = 0; rank < communicator_.size(); ++rank) {
    Range& gradients = gradients_.emplace_back();
    Range& weights = weights_.emplace_back();
    const std::span<const TensorPart> parts = shards_.of(rank);
    size_t slot = 0;
    for (const Parameter& parameter : parameters) {
      if (!parameter.trainable()) {
        continue;
      }
      check(slot < parts.size(), "DataParallel::bind", "parameters", "those that were planned for",
            parameter.name);
      const TensorPart part = parts[slot++];
      const auto add = [&](Range& range, const TensorView& tensor) {
        check(tensor.is_contiguous(), "DataParallel::bind", parameter.name, "a contiguous tensor",
              describe(tensor));
        if (part.count > 0) {
          const auto width = static_cast<int64_t>(dtype_bytes(tensor.dtype));
          range.push_back(
              {static_cast<std::byte*>(tensor.data) + part.first * width, part.count * width});
        }
      };
      add(gradients, parameter.gradient);
      add(weights, parameter.value);
    }
  }
}

int64_t DataParallel::longest(const std::vector<Range>& ranges) const {
  int64_t most = 0;
  for (const Range& range : ranges) {
    int64_t bytes = 0;
    for (const Piece& piece : range) {
      bytes += piece.bytes;
    }
    most = std::max(most, bytes);
  }
  return most;
}

void DataParallel::reduce_gradients() {
  if (communicator_.size() == 1) {
    return;
  }
  std::vector<Cursor<Range>> from;
  from.reserve(gradients_.size());
  for (const Range& range : gradients_) {
    from.emplace_back(range);
  }
  Cursor<Range> to(gradients_[static_cast<size_t>(communicator_.rank())]);
  const int64_t total = longest(gradients_);
  for (int64_t first = 0; first < total; first += kBucket) {
    const int64_t bytes = std::min(kBucket, total - first);
    auto* rows = rows_.as<uint8_t>();
    for (size_t r = 0; r < from.size(); ++r) {
      uint8_t* row = rows + static_cast<int64_t>(r) * bytes;
      int64_t filled = 0;
      from[r].next(bytes, [&](const std::byte* memory, int64_t offset, size_t count) {
        std::memcpy(row + offset, memory, count);
        filled = offset + static_cast<int64_t>(count);
      });
      // Ranges differ by less than a block; what is sent must still be numbers.
      std::memset(row + filled, 0, static_cast<size_t>(bytes - filled));
    }
    const int64_t count = bytes / static_cast<int64_t>(sizeof(float));
    communicator_.reduce_scatter(TensorView(own_.data, DType::f32, {count}),
                                 ConstTensorView(rows, DType::f32, {communicator_.size(), count}));
    to.next(bytes, [&](std::byte* memory, int64_t offset, size_t size) {
      std::memcpy(memory, own_.as<uint8_t>() + offset, size);
    });
  }
}

void DataParallel::gather_parameters() {
  if (communicator_.size() == 1) {
    return;
  }
  std::vector<Cursor<Range>> to;
  to.reserve(weights_.size());
  for (const Range& range : weights_) {
    to.emplace_back(range);
  }
  const auto rank = static_cast<size_t>(communicator_.rank());
  Cursor<Range> from(weights_[rank]);
  const int64_t total = longest(weights_);
  for (int64_t first = 0; first < total; first += kBucket) {
    const int64_t bytes = std::min(kBucket, total - first);
    from.next(bytes, [&](const std::byte* memory, int64_t offset, size_t count) {
      std::memcpy(own_.as<uint8_t>() + offset, memory, count);
    });
    communicator_.all_gather(TensorView(rows_.data, DType::u8, {communicator_.size(), bytes}),
                             ConstTensorView(own_.data, DType::u8, {bytes}));
    for (size_t r = 0; r < to.size(); ++r) {
      const uint8_t* row = rows_.as<uint8_t>() + static_cast<int64_t>(r) * bytes;
      to[r].next(bytes, [&](std::byte* memory, int64_t offset, size_t count) {
        if (r != rank) {
          std::memcpy(memory, row + offset, count);
        }
      });
    }
  }
}

void DataParallel::sum(std::span<double> values) {
  communicator_.all_reduce(TensorView(values.data(), {static_cast<int64_t>(values.size())}));
}

bool DataParallel::any(bool value) {
  double count = value ? 1 : 0;
  sum({&count, 1});
  return count > 0;
}

void require_same(Communicator& communicator, std::string_view what, std::string_view value) {
  constexpr size_t kLongest = 64;  // of a checksum
  const auto ranks = static_cast<size_t>(communicator.size());
  std::array<uint8_t, kLongest> own = {};
  std::copy_n(value.begin(), std::min(kLongest, value.size()), own.begin());
  std::vector<uint8_t> all(ranks * kLongest);
  communicator.all_gather(TensorView(all.data(), {communicator.size(), kLongest}),
                          ConstTensorView(own.data(), {kLongest}));
  for (size_t rank = 1; rank < ranks; ++rank) {
    if (!std::equal(all.begin(), all.begin() + kLongest,
                    all.begin() + static_cast<std::ptrdiff_t>(rank * kLongest))) {
      throw Error(
          fmt::format("rank {} has another {} than rank 0: all ranks must read the same "
                      "files, with the same flags",
                      rank, what));
    }
  }
}

int64_t least_of_ranks(Communicator& communicator, int64_t value) {
  std::vector<int64_t> all(static_cast<size_t>(communicator.size()));
  communicator.all_gather(TensorView(all.data(), {communicator.size()}),
                          ConstTensorView(&value, {1}));
  return *std::min_element(all.begin(), all.end());
}

}  // namespace flashloom
