#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "flashloom/cuda/debug.cuh"
#include "flashloom/ops/attention/attention_test_contract.h"
#include "flashloom/ops/attention/attention_test_device.cuh"
#include "flashloom/ops/attention/random_blocks_for_test.h"
#include "flashloom/ops/attention/sm90/forward_band_call.cuh"

// The same bits whenever the roles of a kernel get to their work. A debug build runs each call with
// delays of several seeds; with FLASHLOOM_DIGESTS=FILE another build writes the bits that they must
// equal:
//
//   FLASHLOOM_DIGESTS=/tmp/digests build/cuda/bin/ops_attention_gpu_tests --gtest_filter=*Delays*
//   FLASHLOOM_DIGESTS=/tmp/digests build/cuda_debug/bin/ops_attention_gpu_tests <the same>

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::ContractCases;
using attention_test::RandomBlocks;
using attention_test::Results;
using attention_test::SharedOffsetsExecutor;
using attention_test::Tensor;

// FNV-1a of a result's bytes.
uint64_t digest(const Tensor& tensor) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto* bytes = static_cast<const unsigned char*>(tensor.view().data);
  for (int64_t i = 0; tensor.view() && i < tensor.view().bytes(); ++i) {
    hash = (hash ^ bytes[i]) * 0x100000001b3u;
  }
  return hash;
}

struct NamedCase {
  std::string name;
  Case call;
  bool backward;
  std::shared_ptr<RandomBlocks> mask = nullptr;
};

std::vector<NamedCase> cases() {
  std::vector<NamedCase> all;
  const auto add = [&](const std::string& name, int64_t queries, int64_t keys, int64_t dim,
                       AttentionVisibility visibility, bool backward) -> Case& {
    Case call = {.batch = 2,
                 .heads = 4,
                 .key_heads = 2,
                 .queries = queries,
                 .keys = keys,
                 .dim = dim,
                 .value_dim = dim,
                 .dtype = DType::bf16,
                 .seed = 900 + all.size()};
    call.options.visibility = visibility;
    all.push_back({name + ", D " + std::to_string(dim), call, backward});
    return all.back().call;
  };
  for (const int64_t dim : {64, 128}) {
    add("full", 700, 700, dim, {}, true);
    add("causal", 1500, 1500, dim, {.right = 0}, true);
    add("window", 900, 900, dim, {100, 30}, true);
    add("softcap", 500, 500, dim, {.right = 0}, true).options.score.softcap = 2;
    Case& packed = add("packed", 1000, 1000, dim, {.right = 0}, true);
    packed.packed_queries = packed.packed_keys = {0, 1, 130, 700, 1000};
    packed.batch = 1;
    Case& masked = add("block mask", 1100, 1300, dim, {.right = 0}, false);
    all.back().mask =
        std::make_shared<RandomBlocks>(masked.queries, masked.keys, 128, 128, masked.heads, 5);
    masked.options.blocks = all.back().mask->blocks;
    // Several tiles of queries for each team of warpgroups.
    masked.options.execution.multiprocessor_share = 0.06F;
    // Narrow bands, whose kernels want the same rows of queries and keys.
    add("band", 1500, 1500, dim, {64, 64}, true).key_heads = 4;
    add("band to the left, grouped heads", 900, 900, dim, {128, 0}, false);
    Case& documents = add("packed band", 1000, 1000, dim, {64, 64}, true);
    documents.packed_queries = documents.packed_keys = {0, 1, 130, 191, 700, 1000};
    documents.batch = 1;
  }
  for (const int64_t dim : {96, 192, 256}) {
    add("causal", 700, 700, dim, {.right = 0}, false);
    add("full", 300, 900, dim, {}, false);
  }
  for (const int64_t dim : {64, 128, 256}) {
    add("decode, 1 query", 1, 5000, dim, {}, false);
    add("decode, 16 queries", 16, 3000, dim, {.right = 0}, false);
  }
  return all;
}

using Digests = std::map<std::string, uint64_t>;

Digests run_all() {
  sm90::forward_band_always = true;  // small calls, too
  Digests digests;
  for (const NamedCase& test : cases()) {
    const Results results = test.call.run(AttentionBackend::sm90, test.backward,
                                          SharedOffsetsExecutor(), DType::bf16, DType::bf16);
    const std::pair<const char*, const Tensor*> parts[] = {{"out", &results.out},
                                                           {"lse", &results.lse},
                                                           {"dq", &results.dq},
                                                           {"dk", &results.dk},
                                                           {"dv", &results.dv}};
    for (const auto& [name, tensor] : parts) {
      if (tensor->view()) {
        digests[test.name + ": " + name] = digest(*tensor);
      }
    }
  }
  sm90::forward_band_always = false;
  return digests;
}

[[maybe_unused]] Digests read_digests(const char* path) {
  Digests digests;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t gap = line.find(' ');
    digests[line.substr(gap + 1)] = std::stoull(line.substr(0, gap), nullptr, 16);
  }
  return digests;
}

[[maybe_unused]] void write_digests(const char* path, const Digests& digests) {
  std::ofstream file(path);
  for (const auto& [name, value] : digests) {
    file << std::hex << value << ' ' << name << '\n';
  }
}

TEST(AttentionDelays, LeaveTheBitsAsTheyAre) {
  int major = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess ||
      major != 9) {
    GTEST_SKIP() << "no Hopper GPU on this host";
  }
  const char* path = std::getenv("FLASHLOOM_DIGESTS");
  const Digests first = run_all();
  EXPECT_EQ(run_all(), first) << "without delays";
#ifdef FLASHLOOM_CUDA_DEBUG
  for (const uint64_t seed : {1, 2, 3, 4, 5}) {
    cuda::delay_seed = seed;
    EXPECT_EQ(run_all(), first) << "delays of seed " << seed;
  }
  cuda::delay_seed = 0;
  if (path != nullptr) {
    EXPECT_EQ(first, read_digests(path)) << "the build without waits that trap gave other bits";
  }
#else
  if (path != nullptr) {
    write_digests(path, first);
  }
#endif
  std::printf("%zu results\n", first.size());
}

}  // namespace
}  // namespace flashloom
