#include "cli/attend_flags.h"

#include <fmt/format.h>

#include <charconv>
#include <utility>

#include "cli/arguments.h"

namespace flashloom::cli {

void expect_flag(bool ok, std::string_view flag, std::string_view expected,
                 const std::string& actual) {
  if (!ok) {
    throw UsageError(fmt::format("{}: expected {}, got {}", flag, expected, actual));
  }
}

void expect_number(bool ok, std::string_view flag, std::string_view expected, double actual) {
  expect_flag(ok, flag, expected, fmt::format("{:g}", actual));
}

std::vector<int32_t> lengths_of(const std::vector<std::string>& words, std::string_view flag) {
  std::vector<int32_t> lengths;
  for (const std::string& word : words) {
    int32_t value = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    expect_flag(error == std::errc() && end == word.data() + word.size() && value >= 0, flag,
                "lengths of 0 or more, separated by commas", "\"" + word + "\"");
    lengths.push_back(value);
  }
  return lengths;
}

void check_flags(const AttendFlags& flags) {
  const std::pair<const char*, int64_t> sizes[] = {{"--batch", flags.batch},
                                                   {"--heads", flags.heads},
                                                   {"--kv-heads", flags.key_heads.value_or(1)},
                                                   {"--dim", flags.dim},
                                                   {"--value-dim", flags.value_dim.value_or(1)},
                                                   {"--block-rows", flags.block_rows},
                                                   {"--block-keys", flags.block_keys},
                                                   {"--parts", flags.parts}};
  for (const auto& [flag, value] : sizes) {
    expect_number(value >= 1, flag, "1 or more", static_cast<double>(value));
  }
  const std::pair<const char*, double> shares[] = {{"--density", flags.density.value_or(0)},
                                                   {"--partial", flags.partial},
                                                   {"--drop", flags.drop}};
  for (const auto& [flag, value] : shares) {
    expect_number(value >= 0 && value <= 1, flag, "a share in [0, 1]", value);
  }
  expect_number(flags.dropout >= 0 && flags.dropout < 1, "--dropout", "a number in [0, 1)",
                flags.dropout);
  expect_number(flags.queries >= 0, "--queries", "0 or more", static_cast<double>(flags.queries));
  expect_number(flags.keys.value_or(0) >= 0, "--keys", "0 or more",
                static_cast<double>(flags.keys.value_or(0)));
  expect_number(flags.page_size >= 0, "--page-size", "0 or more",
                static_cast<double>(flags.page_size));
  expect_number(flags.buckets >= 0, "--buckets", "0 or more", static_cast<double>(flags.buckets));
  const auto exclusive = [](bool a, const char* first, bool b, const char* second) {
    if (a && b) {
      throw UsageError(fmt::format("{}: not together with {}", first, second));
    }
  };
  const bool packed = !flags.packed.empty();
  exclusive(packed, "--packed", flags.batch > 1, "--batch: each document is a sequence");
  exclusive(packed, "--packed", flags.page_size > 0, "--page-size");
  exclusive(packed, "--packed", flags.drop > 0 || flags.buckets > 0, "--drop and --buckets");
  exclusive(!packed && !flags.packed_keys.empty(), "--packed-keys", true,
            "unpacked queries: give --packed");
  exclusive(flags.drop > 0, "--drop", flags.buckets > 0, "--buckets");
  exclusive(flags.density.has_value(), "--density", flags.buckets > 0, "--buckets");
  exclusive(flags.page_size > 0, "--page-size", flags.backward,
            "--backward: a paged cache is for inference");
  exclusive(flags.gate != "none", "--gate", flags.backward, "--backward: a gate is forward only");
  const bool whole = packed || flags.page_size > 0 || flags.density || flags.drop > 0 ||
                     flags.buckets > 0 || flags.bias != "none" || flags.backward || flags.entropy ||
                     flags.gate != "none" || !flags.used_keys.empty();
  exclusive(flags.parts > 1, "--parts", whole,
            "packed, paged, used, dropped or masked keys, a bias, a gate, --entropy or --backward");
}

}  // namespace flashloom::cli
