#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/cpu/attention_decode.h"
#include "flashloom/ops/attention/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/attention/cpu/attention_decode_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/attention/cpu/tile_score-inl.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

// Largest score of a row before it has seen a key, as in the tiled kernel.
constexpr float kNothing = -1e30f;

using Pointers = std::array<const std::byte*, kDecodeBlock>;

// The sums of the lanes of four vectors: pairs of lanes are added while they are interleaved, so
// that four sums cost less than two by themselves.
template <int kCount = kLanes>
HWY_INLINE void store_sums(Vector a, Vector b, Vector c, Vector e, float* out) {
#if HWY_TARGET == HWY_SCALAR
  out[0] = hn::GetLane(a);
  out[1] = hn::GetLane(b);
  out[2] = hn::GetLane(c);
  out[3] = hn::GetLane(e);
#else
  const Lanes d;
  const hn::Repartition<double, Lanes> dd;
  const auto ab =
      hn::BitCast(dd, hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
  const auto ce =
      hn::BitCast(dd, hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e)));
  const auto sums = hn::Add(hn::BitCast(d, hn::InterleaveLower(dd, ab, ce)),
                            hn::BitCast(d, hn::InterleaveUpper(dd, ab, ce)));
  // Each block of four lanes now holds a part of a, b, c and e.
  if constexpr (kCount == 16) {
    const hn::FixedTag<float, kCount / 2> d8;
    const hn::FixedTag<float, kCount / 4> d4;
    const auto half = hn::Add(hn::LowerHalf(d8, sums), hn::UpperHalf(d8, sums));
    hn::StoreU(hn::Add(hn::LowerHalf(d4, half), hn::UpperHalf(d4, half)), d4, out);
  } else if constexpr (kCount == 8) {
    const hn::FixedTag<float, kCount / 2> d4;
    hn::StoreU(hn::Add(hn::LowerHalf(d4, sums), hn::UpperHalf(d4, sums)), d4, out);
  } else {
    hn::StoreU(sums, d, out);
  }
#endif
}

// Fetches the rows of the next block, a few lines a step, so that memory works all the time (8
// heads of 64 in f32 on one Zen 4 core: 14 GB/s; the values' rows all at once filled the core's
// queue of misses: 10 to 11).
class Fetcher {
 public:
  /// `steps` steps will come.
  Fetcher(const Pointers& keys, int64_t key_bytes, const Pointers& values, int64_t value_bytes,
          int64_t count, int64_t steps)
      : streams_{Stream{keys.data(), key_bytes}, Stream{values.data(), value_bytes}},
        count_(count) {
    const int64_t lines = count * (line_count(key_bytes) + line_count(value_bytes));
    lines_a_step_ = (lines + steps - 1) / steps;
  }

  HWY_INLINE void step() {
    for (int64_t n = 0; n < lines_a_step_ && stream_ < 2; ++n) {
      if (row_ >= count_) {
        row_ = 0;
        ++stream_;
        continue;
      }
      const Stream& stream = streams_[stream_];
      hwy::Prefetch(stream.rows[row_] + offset_);
      offset_ += kLine;
      if (offset_ >= stream.bytes) {
        offset_ = 0;
        ++row_;
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64;

  static int64_t line_count(int64_t bytes) { return (bytes + kLine - 1) / kLine; }

  struct Stream {
    const std::byte* const* rows;
    int64_t bytes;
  };

  std::array<Stream, 2> streams_;
  int64_t count_;
  int64_t lines_a_step_;
  size_t stream_ = 0;
  int64_t row_ = 0;
  int64_t offset_ = 0;
};

// scores[j] = q . keys[j] for j in [from, to), in fours that may begin before and end behind.
HWY_INLINE void score_keys(const float* HWY_RESTRICT q, const Pointers& keys, int64_t from,
                           int64_t to, int64_t size, Fetcher& fetcher, float* HWY_RESTRICT scores) {
  const Lanes d;
  for (int64_t j = from / 4 * 4; j < to; j += 4) {
    const auto at = static_cast<size_t>(j);
    fetcher.step();
    const auto* a = reinterpret_cast<const float*>(keys[at]);
    const auto* b = reinterpret_cast<const float*>(keys[at + 1]);
    const auto* c = reinterpret_cast<const float*>(keys[at + 2]);
    const auto* e = reinterpret_cast<const float*>(keys[at + 3]);
    auto sum_a = hn::Zero(d);
    auto sum_b = hn::Zero(d);
    auto sum_c = hn::Zero(d);
    auto sum_e = hn::Zero(d);
    for (int64_t i = 0; i < size; i += kLanes) {
      const auto x = hn::Load(d, q + i);
      sum_a = hn::MulAdd(x, hn::LoadU(d, a + i), sum_a);
      sum_b = hn::MulAdd(x, hn::LoadU(d, b + i), sum_b);
      sum_c = hn::MulAdd(x, hn::LoadU(d, c + i), sum_c);
      sum_e = hn::MulAdd(x, hn::LoadU(d, e + i), sum_e);
    }
    store_sums(sum_a, sum_b, sum_c, sum_e, scores + j);
  }
}

// The same sums of N vectors of out, in registers over all keys.
template <int N>
HWY_INLINE void add_piece(float* HWY_RESTRICT out, Vector factor, const Pointers& values,
                          const float* HWY_RESTRICT weights, int64_t from, int64_t to, int64_t e,
                          Fetcher& fetcher) {
  const Lanes d;
  Vector sums[N];
#pragma GCC unroll 16
  for (int c = 0; c < N; ++c) {
    sums[c] = hn::Mul(hn::Load(d, out + e + c * kLanes), factor);
  }
  for (int64_t j = from; j < to; ++j) {
    if (e == 0 && j % 4 == 0) {
      fetcher.step();
    }
    const auto weight = hn::Set(d, weights[j]);
    const float* row = reinterpret_cast<const float*>(values[static_cast<size_t>(j)]) + e;
#pragma GCC unroll 16
    for (int c = 0; c < N; ++c) {
      sums[c] = hn::MulAdd(weight, hn::LoadU(d, row + c * kLanes), sums[c]);
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < N; ++c) {
    hn::Store(sums[c], d, out + e + c * kLanes);
  }
}

// out = factor out + sum over keys [from, to) of weights[j] values[j].
HWY_INLINE void add_values(float* HWY_RESTRICT out, float factor, const Pointers& values,
                           const float* HWY_RESTRICT weights, int64_t from, int64_t to,
                           int64_t size, Fetcher& fetcher) {
  const auto scale = hn::Set(Lanes(), factor);
  int64_t e = 0;
  for (; e + 8 * kLanes <= size; e += 8 * kLanes) {
    add_piece<8>(out, scale, values, weights, from, to, e, fetcher);
  }
  for (; e + 4 * kLanes <= size; e += 4 * kLanes) {
    add_piece<4>(out, scale, values, weights, from, to, e, fetcher);
  }
  for (; e < size; e += kGroupVectors * kLanes) {
    add_piece<kGroupVectors>(out, scale, values, weights, from, to, e, fetcher);
  }
}

// One split of the keys of one (sequence, key-value head).
class DecodeSplit {
 public:
  DecodeSplit(const DecodePlan& plan, int32_t sequence, int32_t key_head, int64_t split,
              float* scratch)
      : plan_(plan),
        sequence_(sequence),
        key_head_(key_head),
        rows_(resolve_rows(plan.source, sequence)),
        geometry_(resolve_head(plan.source, rows_, sequence,
                               static_cast<int32_t>(key_head * plan.group))),
        first_(split * plan.split_keys),
        last_(std::min<int64_t>(first_ + plan.split_keys, rows_.keys)),
        key_bytes_(plan.head_dim * static_cast<int64_t>(dtype_bytes(plan.inputs->k.dtype))),
        value_bytes_(plan.value_dim * static_cast<int64_t>(dtype_bytes(plan.inputs->v.dtype))) {
    FloatArena arena(scratch);
    queries_ = arena.take(plan.rows * plan.head_padded);
    keys_ = arena.take(kDecodeBlock * plan.head_padded);
    values_ = arena.take(kDecodeBlock * plan.value_padded);
    out_ = plan.partial_of(sequence, key_head, split);
    largest_ = out_ + plan.rows * plan.value_padded;
    sum_ = largest_ + plan.rows;
  }

  void run() {
    std::fill_n(out_, plan_.rows * plan_.value_padded, 0.0f);
    std::fill_n(largest_, plan_.rows, kNothing);
    std::fill_n(sum_, plan_.rows, 0.0f);
    const int64_t queries = geometry_.outer.count;
    const int64_t shift = geometry_.outer.start - geometry_.inner.start;
    const int64_t first = std::max(first_, geometry_.low + shift);
    const int64_t last = std::min(last_, queries + geometry_.high + shift);
    if (queries == 0 || first >= last) {
      return;
    }
    load_queries(queries);
    const CpuRows keys = cpu_key_rows(plan_.inputs->k, plan_.options->sequences, sequence_,
                                      key_head_, rows_.key_first);
    const CpuRows values = cpu_key_rows(plan_.inputs->v, plan_.options->sequences, sequence_,
                                        key_head_, rows_.key_first);
    Pointers raw_keys = {};
    Pointers raw_values = {};
    Pointers next_keys = {};
    Pointers next_values = {};
    point(keys, first, last, raw_keys);
    point(values, first, last, raw_values);
    for (int64_t key = first; key < last; key += plan_.block) {
      const int64_t count = std::min(plan_.block, last - key);
      point(keys, key + plan_.block, last, next_keys);
      point(values, key + plan_.block, last, next_values);
      convert(keys, plan_.head_dim, plan_.head_padded, keys_, count, raw_keys);
      convert(values, plan_.value_dim, plan_.value_padded, values_, count, raw_values);
      // In fours, of scores and of values.
      const int64_t next = std::clamp<int64_t>(last - key - plan_.block, 0, plan_.block);
      Fetcher fetcher(next_keys, key_bytes_, next_values, value_bytes_, next,
                      plan_.group * queries * std::max<int64_t>(count / 2, 1));
      for (int64_t h = 0; h < plan_.group; ++h) {
        for (int64_t i = 0; i < queries; ++i) {
          // Keys that query i sees, of this block.
          const int64_t from = std::clamp<int64_t>(i + geometry_.low + shift - key, 0, count);
          const int64_t to = std::clamp<int64_t>(i + geometry_.high + shift + 1 - key, 0, count);
          if (from < to) {
            attend(h, i, key, from, to, raw_keys, raw_values, fetcher);
          }
        }
      }
      raw_keys = next_keys;
      raw_values = next_values;
    }
  }

 private:
  void load_queries(int64_t queries) {
    for (int64_t h = 0; h < plan_.group; ++h) {
      const CpuRows source = cpu_rows(plan_.inputs->q, plan_.source.cu_query != nullptr, sequence_,
                                      key_head_ * plan_.group + h, rows_.query_first);
      for (int64_t i = 0; i < queries; ++i) {
        float* row = queries_ + (h * plan_.source.max_query + i) * plan_.head_padded;
        load_row(source.row(i), source.dtype, plan_.head_dim, plan_.head_padded, row);
        for (int64_t c = 0; c < plan_.head_padded; ++c) {
          row[c] *= plan_.score.panel_scale;
        }
      }
    }
  }

  // Where keys [first, last) lie, as many as a block has.
  void point(const CpuRows& rows, int64_t first, int64_t last, Pointers& pointers) const {
    const int64_t count = std::min(plan_.block, last - first);
    for (int64_t j = 0; j < count;) {
      const int64_t key = first + j;
      // A division a page, not a key.
      const int64_t end = rows.pages == nullptr
                              ? count
                              : std::min(count, j + rows.page_size - key % rows.page_size);
      const std::byte* row = rows.row(key);
      for (; j < end; ++j, row += rows.stride) {
        pointers[static_cast<size_t>(j)] = row;
      }
    }
  }

  // Rows as floats: where they lie if they can be used as they are, else converted. Behind the last
  // row the last one stands again, so that keys can be worked on in fours.
  static void convert(const CpuRows& rows, int64_t width, int64_t padded, float* scratch,
                      int64_t count, Pointers& pointers) {
    const bool as_they_are = rows.dtype == DType::f32 && width == padded;
    const bool whole = rows.dtype == DType::bf16 && width == padded;
    const Lanes d;
    for (int64_t j = 0; j < count && !as_they_are; ++j) {
      float* HWY_RESTRICT to = scratch + j * padded;
      const std::byte* row = pointers[static_cast<size_t>(j)];
      if (whole) {
        for (int64_t c = 0; c < padded; c += kLanes) {
          hn::Store(load_f32(d, reinterpret_cast<const bf16*>(row) + c), d, to + c);
        }
      } else {
        load_row(row, rows.dtype, width, padded, to);
      }
      pointers[static_cast<size_t>(j)] = reinterpret_cast<const std::byte*>(to);
    }
    for (int64_t j = count; j < kDecodeBlock; ++j) {
      pointers[static_cast<size_t>(j)] = pointers[static_cast<size_t>(count - 1)];
    }
  }

  void attend(int64_t h, int64_t i, int64_t key, int64_t from, int64_t to, const Pointers& keys,
              const Pointers& values, Fetcher& fetcher) {
    const Lanes d;
    const int64_t row = h * plan_.source.max_query + i;
    HWY_ALIGN float scores[kDecodeBlock];
    score_keys(queries_ + row * plan_.head_padded, keys, from, to, plan_.head_padded, fetcher,
               scores);
    std::fill_n(scores, from, -std::numeric_limits<float>::infinity());
    std::fill(scores + to, scores + plan_.block, -std::numeric_limits<float>::infinity());
    if (!plan_.score.plain) {
      finish_scores(h, i, key, from, to, scores);
    }
    auto top = hn::Set(d, largest_[row]);
    for (int64_t c = 0; c < plan_.block; c += kLanes) {
      top = hn::Max(top, hn::Load(d, scores + c));
    }
    top = hn::MaxOfLanes(d, top);
    auto total = hn::Zero(d);
    for (int64_t c = 0; c < plan_.block; c += kLanes) {
      const auto p = exp2_f32(d, hn::Sub(hn::Load(d, scores + c), top));
      hn::Store(p, d, scores + c);
      total = hn::Add(total, p);
    }
    const float factor = hn::GetLane(exp2_f32(d, hn::Sub(hn::Set(d, largest_[row]), top)));
    largest_[row] = hn::GetLane(top);
    sum_[row] = sum_[row] * factor + hn::GetLane(hn::SumOfLanes(d, total));
    add_values(out_ + row * plan_.value_padded, factor, values, scores, from, to,
               plan_.value_padded, fetcher);
  }

  // Softcap and ALiBi.
  void finish_scores(int64_t h, int64_t i, int64_t key, int64_t from, int64_t to,
                     float* scores) const {
    const CpuHeadScore head(plan_.score, sequence_,
                            static_cast<int32_t>(key_head_ * plan_.group + h));
    for (int64_t j = from; j < to; ++j) {
      if (plan_.score.softcap > 0) {
        scores[j] = plan_.score.softcap * std::tanh(scores[j]);
      }
      const int64_t distance = geometry_.inner.position(key + j) - geometry_.outer.position(i);
      scores[j] -= head.alibi_slope * static_cast<float>(std::abs(distance));
    }
  }

  const DecodePlan& plan_;
  int32_t sequence_;
  int32_t key_head_;
  SequenceRows rows_;
  HeadGeometry geometry_;
  int64_t first_;  // key
  int64_t last_;
  int64_t key_bytes_;  // of a row as it is stored
  int64_t value_bytes_;
  float* queries_;  // (rows, D)
  float* keys_;     // (block, D)
  float* values_;   // (block, E)
  float* out_;      // (rows, E)
  float* largest_;  // (rows)
  float* sum_;      // (rows)
};

void decode_split(const DecodePlan& plan, int32_t sequence, int32_t key_head, int64_t split,
                  float* scratch) {
  DecodeSplit(plan, sequence, key_head, split, scratch).run();
}

// Joins the splits of one row and adds the sink.
void merge_row(const DecodePlan& plan, int32_t sequence, int32_t head, int64_t query) {
  const SequenceRows lengths = resolve_rows(plan.source, sequence);
  const int64_t key_head = head / plan.group;
  const int64_t row = head % plan.group * plan.source.max_query + query;
  if (query >= lengths.query_rows) {
    return;
  }
  const auto piece = [&](int64_t split) { return plan.partial_of(sequence, key_head, split); };
  const int64_t largest_at = plan.rows * plan.value_padded + row;
  const int64_t sum_at = largest_at + plan.rows;
  float top = kNothing;
  const ConstTensorView& sinks = plan.options->score.sinks;
  const float sink =
      sinks ? sinks.as<float>()[head * sinks.stride(0)] * std::numbers::log2e_v<float> : kNothing;
  const bool exists = query < lengths.queries;
  for (int64_t n = 0; exists && n < plan.splits; ++n) {
    top = std::max(top, piece(n)[largest_at]);
  }
  top = sinks && exists ? std::max(top, sink) : top;
  float sum = sinks && exists ? std::exp2(sink - top) : 0.0f;
  std::array<float, kRowPiece> values;
  for (int64_t n = 0; exists && n < plan.splits; ++n) {
    sum += piece(n)[sum_at] * std::exp2(piece(n)[largest_at] - top);
  }
  const bool packed = plan.source.cu_query != nullptr;
  const TensorView out =
      attention_head_rows(plan.outputs->out, packed, sequence, head, lengths.query_first);
  for (int64_t e = 0; e < plan.value_dim; e += kRowPiece) {
    const int64_t count = std::min(kRowPiece, plan.value_dim - e);
    values.fill(0);
    for (int64_t n = 0; sum > 0 && n < plan.splits; ++n) {
      const float weight = std::exp2(piece(n)[largest_at] - top) / sum;
      const float* from = piece(n) + row * plan.value_padded + e;
      for (int64_t c = 0; weight > 0 && c < count; ++c) {
        values[static_cast<size_t>(c)] += weight * from[c];
      }
    }
    store_row(mutable_row(out, query) + e * static_cast<int64_t>(dtype_bytes(out.dtype)), out.dtype,
              count, values.data(), false);
  }
  if (plan.outputs->lse) {
    const TensorView lse =
        attention_head_rows(plan.outputs->lse, packed, sequence, head, lengths.query_first);
    *reinterpret_cast<float*>(mutable_row(lse, query)) =
        sum > 0 ? (top + std::log2(sum)) * std::numbers::ln2_v<float>
                : -std::numeric_limits<float>::infinity();
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(decode_split);
HWY_EXPORT(merge_row);

namespace {

// The plan with its pieces of the workspace; with null memory only their size, in *floats.
DecodePlan decode_plan(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                       const AttentionOptions& options, float* memory, int64_t* floats) {
  DecodePlan plan = {};
  plan.outputs = &outputs;
  plan.inputs = &inputs;
  plan.options = &options;
  plan.source = geometry_source(inputs, options);
  plan.head_dim = inputs.q.dim(-1);
  plan.value_dim = inputs.v.dim(-1);
  plan.head_padded = padded_depth(plan.head_dim);
  plan.value_padded = padded_depth(plan.value_dim);
  plan.score = CpuScore(options, plan.head_dim);
  plan.group = plan.source.heads / plan.source.key_heads;
  plan.rows = plan.group * plan.source.max_query;
  plan.split_keys = kDecodeSplitKeys;
  // K and V of a block and of the next one fill a first-level cache of 32 KB.
  plan.block = plan.head_padded + plan.value_padded > 128 ? kDecodeBlock / 2 : kDecodeBlock;
  if (options.execution.splits > 0) {
    plan.split_keys =
        std::max<int64_t>(1, tile_count(plan.source.max_key, int64_t{options.execution.splits}));
  }
  plan.splits = std::max<int64_t>(1, tile_count(plan.source.max_key, plan.split_keys));
  plan.partial_floats = (plan.rows * (plan.value_padded + 2) + 15) / 16 * 16;
  FloatArena scratch(nullptr);
  scratch.take(plan.rows * plan.head_padded);
  scratch.take(kDecodeBlock * plan.head_padded);
  scratch.take(kDecodeBlock * plan.value_padded);
  plan.scratch_floats = scratch.used();
  FloatArena arena(memory);
  plan.partial = arena.take(int64_t{plan.source.sequences} * plan.source.key_heads * plan.splits *
                            plan.partial_floats);
  plan.scratch = arena.take(thread_count() * plan.scratch_floats);
  *floats = arena.used();
  return plan;
}

}  // namespace

bool decode_applies(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                    const AttentionOptions& options) {
  const GeometrySource source = geometry_source(inputs, options);
  const AttentionPositions& positions = options.positions;
  const bool affine = !positions.query && !positions.key && !positions.output_index &&
                      !positions.query_bucket_offsets && !positions.query_count &&
                      !positions.key_count && !positions.exclude_self && source.block_rows == 0;
  return source.key_heads > 0 && affine && !source.gated && !outputs.entropy &&
         !options.score.bias && options.dropout.probability == 0 &&
         int64_t{source.heads} / source.key_heads * source.max_query <= kDecodeRows;
}

int64_t attention_decode_cpu_bytes(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                   const AttentionOptions& options) {
  int64_t floats = 0;
  decode_plan(outputs, inputs, options, nullptr, &floats);
  return floats * 4;
}

void attention_decode_cpu(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                          std::span<std::byte> workspace, const AttentionOptions& options) {
  int64_t floats = 0;
  const DecodePlan plan =
      decode_plan(outputs, inputs, options, reinterpret_cast<float*>(workspace.data()), &floats);
  const int64_t key_heads = plan.source.key_heads;
  parallel_for_workers(
      plan.source.sequences * key_heads * plan.splits, [&](int64_t task, int worker) {
        const int64_t rest = task / plan.splits;
        HWY_DYNAMIC_DISPATCH(decode_split)
        (plan, static_cast<int32_t>(rest / key_heads), static_cast<int32_t>(rest % key_heads),
         task % plan.splits, plan.scratch + worker * plan.scratch_floats);
      });
  parallel_for(int64_t{plan.source.sequences} * plan.source.heads, [&](int64_t task) {
    for (int64_t i = 0; i < plan.source.max_query; ++i) {
      HWY_DYNAMIC_DISPATCH(merge_row)
      (plan, static_cast<int32_t>(task / plan.source.heads),
       static_cast<int32_t>(task % plan.source.heads), i);
    }
  });
}

}  // namespace flashloom
#endif  // HWY_ONCE
