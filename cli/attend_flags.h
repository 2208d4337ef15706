#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flashloom::cli {

/// What the flags of `flashloom attend` say.
struct AttendFlags {
  int64_t batch = 1;
  int64_t heads = 8;
  std::optional<int64_t> key_heads = {};
  int64_t queries = 1024;
  std::optional<int64_t> keys = {};
  int64_t dim = 64;
  std::optional<int64_t> value_dim = {};
  std::string dtype = "f32";

  bool causal = false;
  std::optional<int64_t> left = {};
  std::optional<int64_t> right = {};
  std::optional<int64_t> offset = {};
  std::vector<std::string> packed = {};  // lengths of documents
  std::vector<std::string> packed_keys = {};
  std::vector<std::string> used_queries = {};
  std::vector<std::string> used_keys = {};
  int64_t page_size = 0;
  std::optional<double> density = {};
  int64_t block_rows = 128;
  int64_t block_keys = 128;
  double partial = 0;
  double drop = 0;
  int64_t buckets = 0;
  bool exclude_self = false;

  double scale = 0;
  double softcap = 0;
  bool sinks = false;
  bool alibi = false;
  std::string bias = "none";
  double dropout = 0;
  std::string gate = "none";
  double threshold = 0;

  bool backward = false;
  bool dlse = false;
  bool entropy = false;
  double entropy_order = 1;
  int64_t parts = 1;
  int64_t splits = 0;
  int64_t seed = 1;
  std::string backend = "automatic";
};

/// Throws UsageError unless `ok`.
void expect_flag(bool ok, std::string_view flag, std::string_view expected,
                 const std::string& actual);

/// The same for a number.
void expect_number(bool ok, std::string_view flag, std::string_view expected, double actual);

/// Lengths from a list of words; throws UsageError if one is no length.
std::vector<int32_t> lengths_of(const std::vector<std::string>& words, std::string_view flag);

/// Throws UsageError for a number out of range, or for flags that exclude each other.
void check_flags(const AttendFlags& flags);

}  // namespace flashloom::cli
