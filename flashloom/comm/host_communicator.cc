#include "flashloom/comm/host_communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "flashloom/core/check.h"
#include "flashloom/core/parallel.h"

namespace flashloom {
namespace {

std::span<const std::byte> bytes_of(const ConstTensorView& view) {
  return {static_cast<const std::byte*>(view.data), static_cast<size_t>(view.bytes())};
}

std::span<std::byte> bytes_of(const TensorView& view) {
  return {static_cast<std::byte*>(view.data), static_cast<size_t>(view.bytes())};
}

// x[first] … x[last - 1] of one element as a tree: the left half is the largest power of two below
// the number, so that pairs are those of neighbouring ranks.
template <class T>
T tree_sum(std::span<const T* const> ranks, int64_t i) {
  switch (ranks.size()) {
    case 1:
      return ranks[0][i];
    case 2:
      return ranks[0][i] + ranks[1][i];
    default: {
      const size_t left = std::bit_floor(ranks.size() - 1);
      return tree_sum(ranks.first(left), i) + tree_sum(ranks.subspan(left), i);
    }
  }
}

template <class T>
void sum_ranks(T* out, std::span<const T* const> ranks, int64_t count) {
  constexpr int64_t kTile = 16384;
  parallel_for(tile_count(count, kTile), [&](int64_t tile) {
    const int64_t last = std::min(count, (tile + 1) * kTile);
    if (ranks.size() == 2) {  // without the recursion compilers make vectors of it
      const T* a = ranks[0];
      const T* b = ranks[1];
      for (int64_t i = tile * kTile; i < last; ++i) {
        out[i] = a[i] + b[i];
      }
      return;
    }
    for (int64_t i = tile * kTile; i < last; ++i) {
      out[i] = tree_sum(ranks, i);
    }
  });
}

void sum_ranks(const TensorView& out, std::span<const std::byte* const> ranks) {
  const auto with = [&]<class T>(T* values) {
    std::vector<const T*> typed;
    for (const std::byte* rank : ranks) {
      typed.push_back(reinterpret_cast<const T*>(rank));
    }
    sum_ranks<T>(values, typed, out.size());
  };
  if (out.dtype == DType::f32) {
    with(out.as<float>());
  } else if (out.dtype == DType::f64) {
    with(out.as<double>());
  } else {
    with(out.as<int64_t>());
  }
}

void check_plain(std::string_view op, std::string_view name, const ConstTensorView& view) {
  check_contiguous(op, name, view);
  check_cpu(op, name, view);
}

void check_rows(std::string_view op, std::string_view rows_name, const ConstTensorView& rows,
                std::string_view part_name, const ConstTensorView& part, int ranks) {
  check_plain(op, rows_name, rows);
  check_plain(op, part_name, part);
  check(rows.dtype == part.dtype && rows.size() == ranks * part.size(), op, rows_name,
        fmt::format("{} times {}", ranks, describe(part)), describe(rows));
}

void check_rank(std::string_view op, std::string_view name, int rank, int size) {
  check(rank >= 0 && rank < size, op, name, fmt::format("a rank below {}", size),
        fmt::format("{}", rank));
}

}  // namespace

void HostCommunicator::send_and_receive(std::span<const Outgoing> out,
                                        std::span<const Incoming> in) {
  exchange(out, in);
  for (const Outgoing& message : out) {
    bytes_sent_ += static_cast<int64_t>(message.bytes.size());
  }
}

void HostCommunicator::reduce_scatter(TensorView out, ConstTensorView in, Stream /*stream*/) {
  constexpr std::string_view kOp = "reduce_scatter";
  check_rows(kOp, "in", in, "out", out, size_);
  check_dtype(kOp, "in", in, {DType::f32, DType::f64, DType::i64});
  const auto part = static_cast<size_t>(out.bytes());
  const std::span<const std::byte> rows = bytes_of(in);
  const auto row = [&](int r) { return rows.subspan(static_cast<size_t>(r) * part, part); };
  arrived_.resize(std::max(arrived_.size(), part * static_cast<size_t>(size_)));
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
  std::vector<const std::byte*> parts;
  for (int r = 0; r < size_; ++r) {
    const std::span<std::byte> place =
        std::span(arrived_).subspan(static_cast<size_t>(r) * part, part);
    parts.push_back(r == rank_ ? row(r).data() : place.data());
    if (r != rank_) {
      outgoing.push_back({r, row(r)});
      incoming.push_back({r, place});
    }
  }
  send_and_receive(outgoing, incoming);
  sum_ranks(out, parts);
}

void HostCommunicator::all_gather(TensorView out, ConstTensorView in, Stream /*stream*/) {
  constexpr std::string_view kOp = "all_gather";
  check_rows(kOp, "out", out, "in", in, size_);
  const auto part = static_cast<size_t>(in.bytes());
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
  for (int r = 0; r < size_; ++r) {
    const std::span<std::byte> place = bytes_of(out).subspan(static_cast<size_t>(r) * part, part);
    if (r != rank_) {
      outgoing.push_back({r, bytes_of(in)});
      incoming.push_back({r, place});
    } else if (part > 0) {
      std::memmove(place.data(), in.data, part);
    }
  }
  send_and_receive(outgoing, incoming);
}

void HostCommunicator::all_reduce(TensorView values, Stream stream) {
  constexpr std::string_view kOp = "all_reduce";
  check_plain(kOp, "values", values);
  check_dtype(kOp, "values", values, {DType::f32, DType::f64, DType::i64});
  const int64_t count = values.size();
  // Numbers a step sums, a few hundred at most: one exchange of all costs less time than two of
  // parts. The tree, and so the bits, are the same.
  constexpr int64_t kSmall = 4096;
  if (count <= kSmall || count % size_ != 0) {
    const auto part = static_cast<size_t>(values.bytes());
    std::vector<std::byte> all(part * static_cast<size_t>(size_));
    all_gather(TensorView(all.data(), values.dtype, {size_, count}), values, stream);
    std::vector<const std::byte*> parts;
    parts.reserve(static_cast<size_t>(size_));
    for (int r = 0; r < size_; ++r) {
      parts.push_back(all.data() + static_cast<size_t>(r) * part);
    }
    sum_ranks(values, parts);
    return;
  }
  std::vector<std::byte> part(static_cast<size_t>(values.bytes() / size_));
  const TensorView mine(part.data(), values.dtype, {count / size_});
  reduce_scatter(mine, values, stream);
  all_gather(values, mine, stream);
}

void HostCommunicator::broadcast(TensorView values, int root, Stream /*stream*/) {
  constexpr std::string_view kOp = "broadcast";
  check_plain(kOp, "values", values);
  check_rank(kOp, "root", root, size_);
  // A binomial tree: in round k, who has it sends it 2^k ranks further.
  const int place = (rank_ - root + size_) % size_;
  const auto rank_at = [&](int at) { return (at + root) % size_; };
  for (int reach = 1; reach < size_; reach *= 2) {
    if (place < reach && place + reach < size_) {
      const Outgoing message = {rank_at(place + reach), bytes_of(values)};
      send_and_receive({&message, 1}, {});
    } else if (place >= reach && place < 2 * reach) {
      const Incoming message = {rank_at(place - reach), bytes_of(values)};
      send_and_receive({}, {&message, 1});
    }
  }
}

void HostCommunicator::check_other(int rank, std::string_view op, std::string_view name) const {
  check_rank(op, name, rank, size_);
  check(rank != rank_, op, name, "another rank", "this one");
}

void HostCommunicator::send(ConstTensorView values, int to, Stream /*stream*/) {
  check_plain("send", "values", values);
  check_other(to, "send", "to");
  const Outgoing message = {to, bytes_of(values)};
  send_and_receive({&message, 1}, {});
}

void HostCommunicator::receive(TensorView values, int from, Stream /*stream*/) {
  check_plain("receive", "values", values);
  check_other(from, "receive", "from");
  const Incoming message = {from, bytes_of(values)};
  send_and_receive({}, {&message, 1});
}

void HostCommunicator::barrier() {
  int64_t nothing = 0;
  all_reduce(TensorView(&nothing, {1}));
}

}  // namespace flashloom
