#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "flashloom/ops/attention/decode/decode_test_case.cuh"

namespace flashloom::decode_test {

/// Calls on a GPU; one class for the tests of several files.
class AttentionDecodeGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_gpu()) {
      GTEST_SKIP() << "no GPU";
    }
  }

  // Twice, over different old contents of the workspace: the law, and the same bits.
  static void check(const DecodeCase& description) {
    static uint64_t seed = 100;
    DecodeCall call(description, seed += 10);
    call.run();
    call.expect_law();
    const Bits first = bits(call);
    call.run();
    EXPECT_TRUE(first == bits(call)) << "a second run gave other bits";
  }

  using Bits = std::vector<std::byte>;

  static Bits bits(const DecodeCall& call) {
    Bits all;
    for (const Tensor* tensor : {&call.out, &call.lse}) {
      const auto* first = static_cast<const std::byte*>(tensor->view().data);
      all.insert(all.end(), first, first + tensor->view().bytes());
    }
    return all;
  }
};

}  // namespace flashloom::decode_test
