#include "cli/attend_case.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string_view>
#include <utility>

#include "flashloom/core/element.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"

namespace flashloom::cli {
namespace {

DType dtype_of(const std::string& name) {
  return name == "bf16" ? DType::bf16 : name == "f16" ? DType::f16 : DType::f32;
}

AttentionBackend backend_of(const std::string& name) {
  for (const auto backend : {AttentionBackend::reference, AttentionBackend::cpu,
                             AttentionBackend::portable, AttentionBackend::sm90}) {
    if (name == attention_backend_name(backend)) {
      return backend;
    }
  }
  return AttentionBackend::automatic;
}

int64_t sum_of(const std::vector<int32_t>& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

int64_t longest_of(const std::vector<int32_t>& lengths) {
  return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
}

std::vector<int32_t> offsets_of(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> offsets = {0};
  for (const int32_t length : lengths) {
    offsets.push_back(offsets.back() + length);
  }
  return offsets;
}

}  // namespace

AttendCase::AttendCase(const AttendFlags& flags) : flags_(flags), packed_(!flags.packed.empty()) {
  check_flags(flags);
  seed_ = static_cast<uint64_t>(flags.seed);
  dtype_ = dtype_of(flags.dtype);
  key_heads_ = flags.key_heads.value_or(flags.heads);
  value_dim_ = flags.value_dim.value_or(flags.dim);
  expect_number(flags.heads % key_heads_ == 0, "--kv-heads",
                fmt::format("a divisor of {} heads", flags.heads), static_cast<double>(key_heads_));
  sequences_ = packed_ ? static_cast<int64_t>(flags.packed.size()) : flags.batch;
  query_rows_ = flags.queries;
  key_rows_ = flags.keys.value_or(flags.queries);
  options_.execution.backend = backend_of(flags.backend);
  options_.execution.splits = static_cast<int>(flags.splits);
  make_sequences();
  make_tensors();
  make_visibility();
  make_blocks();
  make_positions();
  make_score();
}

const AttendTensor& AttendCase::keep(AttendTensor tensor) {
  tensors_.push_back(std::make_unique<AttendTensor>(std::move(tensor)));
  return *tensors_.back();
}

std::vector<int64_t> AttendCase::rows(int64_t heads, int64_t count, int64_t width) const {
  std::vector<int64_t> shape =
      packed_ ? std::vector<int64_t>{heads, count} : std::vector<int64_t>{sequences_, heads, count};
  if (width > 0) {
    shape.push_back(width);
  }
  return shape;
}

void AttendCase::make_sequences() {
  AttentionSequences& sequences = options_.sequences;
  if (packed_) {
    const std::vector<int32_t> queries = lengths_of(flags_.packed, "--packed");
    const std::vector<int32_t> keys =
        flags_.packed_keys.empty() ? queries : lengths_of(flags_.packed_keys, "--packed-keys");
    expect_flag(keys.size() == queries.size(), "--packed-keys",
                fmt::format("{} lengths, as --packed has", queries.size()),
                fmt::format("{}", keys.size()));
    query_rows_ = sum_of(queries);
    key_rows_ = sum_of(keys);
    sequences.cu_query = keep(AttendTensor::integers({sequences_ + 1}, offsets_of(queries)));
    sequences.cu_key = keep(AttendTensor::integers({sequences_ + 1}, offsets_of(keys)));
    sequences.max_query = longest_of(queries);
    sequences.max_key = longest_of(keys);
  }
  const auto used = [&](const std::vector<std::string>& words, std::string_view flag,
                        ConstTensorView& view) {
    if (!words.empty()) {
      const std::vector<int32_t> lengths = lengths_of(words, flag);
      expect_flag(static_cast<int64_t>(lengths.size()) == sequences_, flag,
                  fmt::format("{} lengths, one a sequence", sequences_),
                  fmt::format("{}", lengths.size()));
      view = keep(AttendTensor::integers({sequences_}, lengths));
    }
  };
  used(flags_.used_queries, "--used-queries", sequences.used_query);
  used(flags_.used_keys, "--used-keys", sequences.used_key);
}

void AttendCase::make_tensors() {
  const auto random_tensor = [&](const std::vector<int64_t>& shape, uint64_t purpose) {
    AttendTensor tensor(dtype_, shape);
    return keep(std::move(tensor.random(seed_ * 1000 + purpose))).view();
  };
  inputs_.q = random_tensor(rows(flags_.heads, query_rows_, flags_.dim), 1);
  std::vector<int64_t> keys = rows(key_heads_, key_rows_, flags_.dim);
  if (flags_.page_size > 0) {
    // Pages of all sequences in random order, as an allocator leaves them after a while.
    const int64_t pages = tile_count(key_rows_, flags_.page_size);
    std::vector<int32_t> order(static_cast<size_t>(sequences_ * pages));
    std::iota(order.begin(), order.end(), 0);
    RandomSequence random(seed_ + 10, RandomStream::test);
    for (size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[random.below(static_cast<uint32_t>(i))]);
    }
    options_.sequences.page_table = keep(AttendTensor::integers({sequences_, pages}, order));
    options_.sequences.page_size = flags_.page_size;
    options_.sequences.max_key = key_rows_;
    keys = {sequences_ * pages, key_heads_, flags_.page_size, flags_.dim};
  }
  std::vector<int64_t> values = keys;
  values.back() = value_dim_;
  inputs_.k = random_tensor(keys, 2);
  inputs_.v = random_tensor(values, 3);
  if (flags_.backward) {
    dout_ = AttendTensor(dtype_, rows(flags_.heads, query_rows_, value_dim_));
    dout_.random(seed_ * 1000 + 5);
    dlse_ = AttendTensor(DType::f32, rows(flags_.heads, query_rows_, 0));
    dlse_.random(seed_ * 1000 + 6);
    dentropy_ = AttendTensor(DType::f32, rows(flags_.heads, query_rows_, 0));
    dentropy_.random(seed_ * 1000 + 7);
  }
}

void AttendCase::make_visibility() {
  options_.visibility.left = flags_.left.value_or(-1);
  options_.visibility.right = flags_.right.value_or(flags_.causal ? 0 : -1);
  options_.positions.offset = flags_.offset;
}

void AttendCase::make_score() {
  AttentionScore& score = options_.score;
  score.scale = static_cast<float>(flags_.scale);
  score.softcap = static_cast<float>(flags_.softcap);
  if (flags_.sinks) {
    AttendTensor sinks(DType::f32, {flags_.heads});
    score.sinks = keep(std::move(sinks.random(seed_ * 1000 + 40)));
  }
  if (flags_.alibi) {
    // 2^(-8 h / H) for h = 1 ... H (Press et al. 2022).
    AttendTensor slopes(DType::f32, {flags_.heads});
    for (int64_t h = 0; h < flags_.heads; ++h) {
      store_element(
          slopes, {h},
          std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(flags_.heads)));
    }
    score.alibi_slopes = keep(std::move(slopes));
  }
  if (flags_.bias != "none") {
    const int64_t max_query = packed_ ? options_.sequences.max_query : query_rows_;
    const int64_t max_key = packed_ ? options_.sequences.max_key : key_rows_;
    std::vector<int64_t> shape = {1, 1, max_query, max_key};
    if (flags_.bias == "full") {
      shape = {sequences_, flags_.heads, max_query, max_key};
    } else if (flags_.bias == "keys") {
      shape = {1, flags_.heads, 1, max_key};
    }
    AttendTensor bias(DType::f32, shape);
    score.bias = keep(std::move(bias.random(seed_ * 1000 + 41)));
  }
  if (flags_.dropout > 0) {
    AttendTensor seed(DType::u64, {1});
    *seed.view().as<uint64_t>() = seed_;
    options_.dropout = {.probability = static_cast<float>(flags_.dropout),
                        .seed = keep(std::move(seed))};
  }
  if (flags_.gate != "none") {
    AttendTensor threshold(DType::f32, {flags_.heads, 1});
    for (int64_t h = 0; h < flags_.heads; ++h) {
      store_element(threshold, {h, 0}, flags_.threshold);
    }
    options_.gate = {.kind = flags_.gate == "absolute" ? AttentionGate::Kind::absolute
                                                       : AttentionGate::Kind::relative,
                     .threshold = keep(std::move(threshold)),
                     .rows = flags_.block_rows,
                     .keys = flags_.block_keys};
  }
}

AttendResults AttendCase::results(DType dtype) const {
  const DType scalar = dtype == DType::f64 ? DType::f64 : DType::f32;
  AttendResults results;
  results.out = AttendTensor(dtype, rows(flags_.heads, query_rows_, value_dim_));
  results.lse = AttendTensor(scalar, rows(flags_.heads, query_rows_, 0));
  if (flags_.entropy) {
    results.entropy = AttendTensor(scalar, rows(flags_.heads, query_rows_, 0));
  }
  if (flags_.backward) {
    results.dq = AttendTensor(dtype, rows(flags_.heads, query_rows_, flags_.dim));
    results.dk = AttendTensor(dtype, rows(key_heads_, key_rows_, flags_.dim));
    results.dv = AttendTensor(dtype, rows(key_heads_, key_rows_, value_dim_));
    if (flags_.sinks) {
      results.dsinks = AttendTensor(scalar, {flags_.heads});
    }
    if (options_.score.bias) {
      const ConstTensorView& bias = options_.score.bias;
      results.dbias = AttendTensor(scalar, {bias.dim(0), bias.dim(1), bias.dim(2), bias.dim(3)});
    }
  }
  return results;
}

AttentionOutputs AttendCase::outputs(const AttendResults& results) const {
  return {.out = results.out,
          .lse = results.lse,
          .entropy = results.entropy,
          .entropy_order = static_cast<float>(flags_.entropy_order)};
}

AttentionSaved AttendCase::saved(const AttendResults& results) const {
  AttentionSaved saved = {.out = results.out, .lse = results.lse, .dout = dout_};
  if (flags_.dlse) {
    saved.dlse = dlse_;
  }
  if (flags_.entropy) {
    saved.entropy = results.entropy;
    saved.dentropy = dentropy_;
    saved.entropy_order = static_cast<float>(flags_.entropy_order);
  }
  return saved;
}

AttentionGradients AttendCase::gradients(const AttendResults& results) const {
  return {.dq = results.dq,
          .dk = results.dk,
          .dv = results.dv,
          .dsinks = results.dsinks,
          .dbias = results.dbias};
}

std::string AttendCase::shape() const {
  return fmt::format("{}, {} sequence{}, {} heads{}, {} queries, {} keys, D {}{}", flags_.dtype,
                     sequences_, sequences_ == 1 ? "" : "s", flags_.heads,
                     key_heads_ == flags_.heads ? "" : fmt::format(" on {}", key_heads_),
                     query_rows_, key_rows_, flags_.dim,
                     value_dim_ == flags_.dim ? "" : fmt::format(", E {}", value_dim_));
}

std::string AttendCase::pattern() const {
  std::vector<std::string> words;
  const auto add = [&](bool on, const std::string& word) {
    if (on) {
      words.push_back(word);
    }
  };
  const AttentionVisibility& visibility = options_.visibility;
  add(packed_, "packed");
  add(visibility.left >= 0, fmt::format("window {} left", visibility.left));
  if (visibility.left < 0 && visibility.right == 0) {
    words.emplace_back("causal");
  } else {
    add(visibility.right >= 0, fmt::format("{} right", visibility.right));
  }
  add(flags_.offset.has_value(), fmt::format("offset {}", flags_.offset.value_or(0)));
  add(!flags_.used_queries.empty() || !flags_.used_keys.empty(), "used lengths");
  add(flags_.page_size > 0, fmt::format("pages of {}", flags_.page_size));
  add(flags_.density.has_value(), fmt::format("blocks {} x {} at density {:g}", flags_.block_rows,
                                              flags_.block_keys, flags_.density.value_or(0)));
  add(flags_.drop > 0, fmt::format("{:g} of the tokens dropped", flags_.drop));
  add(flags_.buckets > 0, fmt::format("{} hash buckets", flags_.buckets));
  add(flags_.exclude_self, "not itself");
  add(flags_.softcap > 0, fmt::format("softcap {:g}", flags_.softcap));
  add(flags_.sinks, "sinks");
  add(flags_.alibi, "ALiBi");
  add(flags_.bias != "none", "bias");
  add(flags_.dropout > 0, fmt::format("dropout {:g}", flags_.dropout));
  add(flags_.gate != "none", fmt::format("{} gate {:g}", flags_.gate, flags_.threshold));
  add(flags_.parts > 1, fmt::format("{} parts", flags_.parts));
  return words.empty() ? "every pair" : fmt::format("{}", fmt::join(words, ", "));
}

}  // namespace flashloom::cli
