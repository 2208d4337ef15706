#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "flashloom/comm/host_communicator.h"

namespace flashloom {

/// Messages between ranks that are threads of this process.
class ThreadMail {
 public:
  void put(int from, int to, std::span<const std::byte> bytes) {
    {
      const std::lock_guard lock(mutex_);
      boxes_[{from, to}].emplace_back(bytes.begin(), bytes.end());
    }
    arrived_.notify_all();
  }

  void take(int from, int to, std::span<std::byte> bytes) {
    std::unique_lock lock(mutex_);
    auto& box = boxes_[{from, to}];
    arrived_.wait(lock, [&] { return !box.empty() || closed_; });
    if (box.empty()) {
      throw PeerLost("a rank of the test has ended");
    }
    if (box.front().size() != bytes.size()) {
      throw Error("a message of another size than is waited for");
    }
    std::copy(box.front().begin(), box.front().end(), bytes.begin());
    box.pop_front();
  }

  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    arrived_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<std::pair<int, int>, std::deque<std::vector<std::byte>>> boxes_;
  bool closed_ = false;
};

class ThreadCommunicator final : public HostCommunicator {
 public:
  ThreadCommunicator(int rank, int size, ThreadMail& mail)
      : HostCommunicator(rank, size), mail_(mail) {}

  int local_size() const override { return size(); }

  void abort(int /*exit_code*/) override { mail_.close(); }

 protected:
  void exchange(std::span<const Outgoing> out, std::span<const Incoming> in) override {
    for (const Outgoing& message : out) {
      mail_.put(rank(), message.to, message.bytes);
    }
    for (const Incoming& message : in) {
      mail_.take(message.from, rank(), message.bytes);
    }
  }

 private:
  ThreadMail& mail_;
};

/// Runs `body` as so many ranks, each in a thread; rethrows the first rank's exception.
inline void run_ranks(int size, const std::function<void(Communicator&)>& body) {
  ThreadMail mail;
  std::vector<std::exception_ptr> errors(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadCommunicator communicator(rank, size, mail);
      try {
        body(communicator);
      } catch (...) {
        errors[static_cast<size_t>(rank)] = std::current_exception();
        mail.close();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const std::exception_ptr& error : errors) {
    if (error) {
      std::rethrow_exception(error);
    }
  }
}

}  // namespace flashloom
