#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "flashloom/comm/communicator.h"

namespace flashloom {

/// Collectives of tensors in CPU memory, made of messages between pairs. What carries the messages
/// is the subclass's: MPI, or threads in tests.
class HostCommunicator : public Communicator {
 public:
  int rank() const final { return rank_; }

  int size() const final { return size_; }

  void all_reduce(TensorView values, Stream stream = {}) final;
  void reduce_scatter(TensorView out, ConstTensorView in, Stream stream = {}) final;
  void all_gather(TensorView out, ConstTensorView in, Stream stream = {}) final;
  void broadcast(TensorView values, int root, Stream stream = {}) final;
  void send(ConstTensorView values, int to, Stream stream = {}) final;
  void receive(TensorView values, int from, Stream stream = {}) final;
  void barrier() final;

  int64_t bytes_sent() const final { return bytes_sent_; }

 protected:
  struct Outgoing {
    int to = 0;
    std::span<const std::byte> bytes;
  };

  struct Incoming {
    int from = 0;
    std::span<std::byte> bytes;
  };

  HostCommunicator(int rank, int size) : rank_(rank), size_(size) {}

  /// Sends and receives all of them at once, at most one message a pair and direction; returns when
  /// all have arrived. Messages between two ranks keep their order.
  virtual void exchange(std::span<const Outgoing> out, std::span<const Incoming> in) = 0;

 private:
  void check_other(int rank, std::string_view op, std::string_view name) const;
  void send_and_receive(std::span<const Outgoing> out, std::span<const Incoming> in);

  int rank_ = 0;
  int size_ = 1;
  int64_t bytes_sent_ = 0;
  std::vector<std::byte> arrived_;  // parts of sums; grows to the largest
};

}  // namespace flashloom
