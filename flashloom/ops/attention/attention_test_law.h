#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/ops/attention/attention_rows.h"
#include "flashloom/ops/attention/attention_test_case.h"
#include "flashloom/ops/attention/reference_head.h"

// The law that every kernel is held to:
//
//   max |x - ref64|  <=  2 max |y - ref64| + 1e-5
//
// x the kernel's result, ref64 the float64 reference, and y plain loops in f32 whose P and dS are
// rounded to the storage type, as the operands of a matrix product are. Both x and y take the same
// inputs and round their results to the storage type.

namespace flashloom::attention_test {

/// y: loops over rows in f32.
class RoundedLoops : public Executor {
 public:
  void forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
               const AttentionOptions& options) const override {
    const GeometrySource source = geometry_source(inputs, options);
    for_each_head(source, [&](int32_t sequence, int32_t h) {
      const ReferenceHead head(inputs, options, source, sequence, h);
      const Rows rows(head, source.cu_query != nullptr, sequence, h);
      const TensorView out = rows.of(outputs.out);
      const TensorView lse = rows.of(outputs.lse);
      const TensorView entropy = rows.of(outputs.entropy);
      for (int64_t i = 0; i < head.rows().query_rows; ++i) {
        for (int64_t e = 0; e < out.dim(1); ++e) {
          put(out, i, e, 0);
        }
        put(lse, i, -kInfinity);
        put(entropy, i, 0);
      }
      for (int64_t i = 0; i < head.queries(); ++i) {
        const int64_t row = head.output_row(i);
        if (row >= 0) {
          forward_row(head, i, inputs.q.dtype, outputs.entropy_order, out, lse, entropy, row);
        }
      }
    });
  }

  void backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                const AttentionSaved& saved, const AttentionOptions& options) const override {
    const GeometrySource source = geometry_source(inputs, options);
    const bool packed = source.cu_query != nullptr;
    const int64_t dim = inputs.q.dim(-1);
    const int64_t value_dim = inputs.v.dim(-1);
    const int32_t group = source.heads / source.key_heads;
    Tensor dbias;
    if (gradients.dbias) {
      const TensorView& like = gradients.dbias;
      dbias = Tensor(DType::f32, {like.dim(0), like.dim(1), like.dim(2), like.dim(3)});
      dbias.fill(0);
    }
    std::vector<float> dsinks(static_cast<size_t>(source.heads), 0.0f);
    for (int32_t sequence = 0; sequence < source.sequences; ++sequence) {
      const SequenceRows lengths = resolve_rows(source, sequence);
      for (int32_t g = 0; g < source.key_heads; ++g) {
        std::vector<float> dk(static_cast<size_t>(lengths.keys * dim), 0.0f);
        std::vector<float> dv(static_cast<size_t>(lengths.keys * value_dim), 0.0f);
        for (int32_t h = g * group; h < (g + 1) * group; ++h) {
          const ReferenceHead head(inputs, options, source, sequence, h);
          const Rows rows(head, packed, sequence, h);
          std::vector<float> dq(static_cast<size_t>(head.queries() * dim), 0.0f);
          const TensorView bias_rows =
              gradients.dbias ? broadcast_head(dbias.view(), sequence, h) : TensorView{};
          for (int64_t i = 0; i < head.queries(); ++i) {
            if (head.output_row(i) >= 0) {
              backward_row(head, rows, saved, i, inputs.q.dtype, dq, dk, dv, bias_rows,
                           dsinks[static_cast<size_t>(h)]);
            }
          }
          add_rows(attention_head_rows(gradients.dq, packed, sequence, h, lengths.query_first), dq,
                   lengths.query_rows, gradients.accumulate);
        }
        const bool packed_keys = source.cu_key != nullptr;
        add_rows(attention_head_rows(gradients.dk, packed_keys, sequence, g, lengths.key_first), dk,
                 lengths.key_rows, gradients.accumulate);
        add_rows(attention_head_rows(gradients.dv, packed_keys, sequence, g, lengths.key_first), dv,
                 lengths.key_rows, gradients.accumulate);
      }
    }
    for (int64_t i = 0; gradients.dbias && i < dbias.size(); ++i) {
      const double before =
          gradients.accumulate ? load_element(gradients.dbias.data, gradients.dbias.dtype, i) : 0;
      store_element(gradients.dbias.data, gradients.dbias.dtype, i, before + dbias.get(i));
    }
    for (int64_t h = 0; gradients.dsinks && h < source.heads; ++h) {
      const double before =
          gradients.accumulate ? load_element(gradients.dsinks.data, DType::f32, h) : 0;
      store_element(gradients.dsinks.data, gradients.dsinks.dtype, h,
                    before + dsinks[static_cast<size_t>(h)]);
    }
  }

 private:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();
  static constexpr float kLog2E = std::numbers::log2e_v<float>;
  static constexpr float kLn2 = std::numbers::ln2_v<float>;

  struct Rows {
    const ReferenceHead& head;
    bool packed;
    int32_t sequence, h;

    Rows(const ReferenceHead& of, bool is_packed, int32_t at, int32_t index)
        : head(of), packed(is_packed), sequence(at), h(index) {}

    template <class View>
    View of(const View& view) const {
      return view ? attention_head_rows(view, packed, sequence, h, head.rows().query_first)
                  : View{};
    }
  };

  template <class Body>
  static void for_each_head(const GeometrySource& source, Body body) {
    for (int32_t sequence = 0; sequence < source.sequences; ++sequence) {
      for (int32_t h = 0; h < source.heads; ++h) {
        body(sequence, h);
      }
    }
  }

  static void put(const TensorView& rows, int64_t i, int64_t e, float value) {
    store_element(rows.data, rows.dtype, i * rows.stride(0) + e, value);
  }

  static void put(const TensorView& rows, int64_t i, float value) {
    if (rows) {
      store_element(rows.data, rows.dtype, i * rows.stride(0), value);
    }
  }

  static float get(const ConstTensorView& rows, int64_t i) {
    return rows ? static_cast<float>(load_element(rows.data, rows.dtype, i * rows.stride(0))) : 0;
  }

  static float rounded(float value, DType dtype) {
    return dtype == DType::bf16  ? static_cast<float>(bf16(value))
           : dtype == DType::f16 ? static_cast<float>(f16(value))
                                 : value;
  }

  static void add_rows(const TensorView& rows, const std::vector<float>& values, int64_t count,
                       bool accumulate) {
    const int64_t width = rows.dim(1);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t d = 0; d < width; ++d) {
        const auto at = static_cast<size_t>(i * width + d);
        const float before =
            accumulate
                ? static_cast<float>(load_element(rows.data, rows.dtype, i * rows.stride(0) + d))
                : 0;
        put(rows, i, d, before + (at < values.size() ? values[at] : 0));
      }
    }
  }

  // Scores of a row in base 2: q, scaled as a kernel may do, and the sum are rounded to f32; what
  // comes behind them (softcap, slopes, bias) is exact.
  static std::vector<float> scores(const ReferenceHead& head, int64_t i, int64_t dim) {
    std::vector<double> exact;
    head.scores(i, exact);
    std::vector<float> result(exact.size(), -kInfinity);
    for (size_t j = 0; j < exact.size(); ++j) {
      if (exact[j] == -std::numeric_limits<double>::infinity()) {
        continue;
      }
      const float scale = static_cast<float>(head.scale()) * kLog2E;
      double product = 0;
      float single = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const double key = head.k(static_cast<int64_t>(j))[d];
        product += head.q(i)[d] * key;
        single += static_cast<float>(head.q(i)[d]) * scale * static_cast<float>(key);
      }
      const double behind = exact[j] - head.scale() * product;
      result[j] = single + static_cast<float>(behind * std::numbers::log2e);
    }
    return result;
  }

  static void forward_row(const ReferenceHead& head, int64_t i, DType dtype, float order,
                          const TensorView& out, const TensorView& lse, const TensorView& entropy,
                          int64_t row) {
    const std::vector<float> score = scores(head, i, head.head_dim());
    const float sink = head.has_sink() ? static_cast<float>(head.sink()) * kLog2E : -kInfinity;
    float top = sink;
    for (const float s : score) {
      top = std::max(top, s);
    }
    if (top == -kInfinity) {
      return;
    }
    std::vector<float> sums(static_cast<size_t>(out.dim(1)), 0.0f);
    float total = sink > -kInfinity ? std::exp2(sink - top) : 0;
    float moment = 0;
    const auto add_moment = [&](float s) {
      moment += order == 1 ? std::exp2(s - top) * (s - top) : std::exp2(order * (s - top));
    };
    if (sink > -kInfinity) {
      add_moment(sink);
    }
    for (size_t j = 0; j < score.size(); ++j) {
      if (score[j] == -kInfinity) {
        continue;
      }
      const float p = std::exp2(score[j] - top);
      total += p;
      add_moment(score[j]);
      const auto key = static_cast<int64_t>(j);
      const float weight = rounded(p * static_cast<float>(head.dropout_factor(i, key)), dtype);
      for (size_t e = 0; e < sums.size(); ++e) {
        sums[e] += weight * static_cast<float>(head.v(key)[e]);
      }
    }
    for (size_t e = 0; e < sums.size(); ++e) {
      put(out, row, static_cast<int64_t>(e), sums[e] / total);
    }
    put(lse, row, (top + std::log2(total)) * kLn2);
    put(entropy, row,
        order == 1 ? (std::log2(total) - moment / total) * kLn2
                   : (std::log(moment) - order * std::log(total)) / (1 - order));
  }

  static void backward_row(const ReferenceHead& head, const Rows& rows, const AttentionSaved& saved,
                           int64_t i, DType dtype, std::vector<float>& dq, std::vector<float>& dk,
                           std::vector<float>& dv, const TensorView& dbias, float& dsink) {
    const int64_t dim = head.head_dim();
    const int64_t row = head.output_row(i);
    const ConstTensorView out = rows.of(saved.out);
    const ConstTensorView dout = rows.of(saved.dout);
    const float lse = get(rows.of(saved.lse), row);
    if (lse == -kInfinity) {
      return;
    }
    const int64_t width = dout.dim(1);
    std::vector<float> d(static_cast<size_t>(width));
    float delta = -get(rows.of(saved.dlse), row);
    for (int64_t e = 0; e < width; ++e) {
      d[static_cast<size_t>(e)] =
          static_cast<float>(load_element(dout.data, dout.dtype, row * dout.stride(0) + e));
      delta += d[static_cast<size_t>(e)] *
               static_cast<float>(load_element(out.data, out.dtype, row * out.stride(0) + e));
    }
    const float entropy = get(rows.of(saved.entropy), row);
    const float dentropy = get(rows.of(saved.dentropy), row);
    const float order = saved.entropy_order;
    const auto gradient = [&](float score2, float p, float dp) {
      float ds = p * (dp - delta);
      if (dentropy != 0) {
        const float distance = (score2 - lse * kLog2E) * kLn2;
        ds -= order == 1 ? p * dentropy * (distance + entropy)
                         : dentropy * order / (1 - order) *
                               (p - std::exp(order * distance - (1 - order) * entropy));
      }
      return ds;
    };
    if (head.has_sink()) {
      const float sink = static_cast<float>(head.sink()) * kLog2E;
      dsink += gradient(sink, std::exp2(sink - lse * kLog2E), 0);
    }
    const std::vector<float> score = scores(head, i, dim);
    for (size_t column = 0; column < score.size(); ++column) {
      if (score[column] == -kInfinity) {
        continue;
      }
      const auto j = static_cast<int64_t>(column);
      const float factor = static_cast<float>(head.dropout_factor(i, j));
      const float p = std::exp2(score[column] - lse * kLog2E);
      const float weight = rounded(p * factor, dtype);
      float dp = 0;
      for (int64_t e = 0; e < width; ++e) {
        const auto at = static_cast<size_t>(e);
        dp += d[at] * static_cast<float>(head.v(j)[e]);
        dv[static_cast<size_t>(j * width) + at] += weight * d[at];
      }
      const float ds = gradient(score[column], p, dp * factor);
      if (dbias) {
        const int64_t at = (dbias.dim(0) == 1 ? 0 : i) * dbias.stride(0) + j;
        dbias.as<float>()[at] += ds;
      }
      const float dz = rounded(ds * static_cast<float>(head.softcap_slope(i, j)), dtype);
      const auto scale = static_cast<float>(head.scale());
      for (int64_t n = 0; n < dim; ++n) {
        dq[static_cast<size_t>(i * dim + n)] += dz * static_cast<float>(head.k(j)[n]) * scale;
        dk[static_cast<size_t>(j * dim + n)] += dz * static_cast<float>(head.q(i)[n]) * scale;
      }
    }
  }
};

/// A call held to the law.
///
/// The largest of few errors is a poor measure: with 4 numbers y was 4 times luckier than x in one
/// of 20 draws. So calls with small results are drawn several times, and both sides of the law are
/// the largest errors over all draws. Where few pairs dominate a call (peaked rows, rows that see
/// little), many numbers are no more than those few, and so are the numbers of the largest binade,
/// whose rounding to the storage type is most of the largest error: a call that is over the law is
/// drawn again, up to kMostDraws times in all, before it counts as a failure.
class Law {
 public:
  Law(const Case& call, bool with_backward)
      : Law(call, with_backward, std::make_shared<Executor>(), std::make_shared<RoundedLoops>()) {}

  /// The two runs that do not depend on the kernel, on another device.
  Law(const Case& call, bool with_backward, std::shared_ptr<const Executor> exact,
      std::shared_ptr<const Executor> loops)
      : call_(call),
        with_backward_(with_backward),
        exact_(std::move(exact)),
        loops_(std::move(loops)) {
    add_draw();
    const int64_t draws = draws_of(draws_.front().exact);
    while (static_cast<int64_t>(draws_.size()) < draws) {
      add_draw();
    }
  }

  /// Runs the call through `executor` on `backend` and holds every result to the law.
  void expect(AttentionBackend backend, const Executor& executor) const {
    std::vector<Results> ours;
    std::vector<Comparison> comparisons;
    bool holds = false;
    for (bool more = true; more;) {
      while (ours.size() < draws_.size()) {
        const Case& call = draws_[ours.size()].call;
        ours.push_back(call.run(backend, with_backward_, executor, call.dtype,
                                call.gradient_dtype.value_or(call.dtype)));
      }
      comparisons = compare(ours);
      holds = std::all_of(comparisons.begin(), comparisons.end(),
                          [](const Comparison& c) { return c.error <= c.allowed; });
      more = !holds && static_cast<int64_t>(draws_.size()) < kMostDraws;
      if (more) {
        add_draw();
      }
    }
    for (const Comparison& c : comparisons) {
      {
        const std::lock_guard lock(largest_.mutex);
        double& share = largest_.shares[c.name];
        share = std::max(share, c.error / c.allowed);
      }
      EXPECT_TRUE(c.error <= c.allowed)
          << c.name << ": error " << c.error << ", allowed " << c.allowed << ", the largest of "
          << c.numbers << " in " << draws_.size() << " draws";
    }
  }

  /// The largest error / allowed error of each result since the last call, in words.
  static std::string shares() {
    const std::lock_guard lock(largest_.mutex);
    std::string words;
    for (const auto& [name, share] : largest_.shares) {
      words += (words.empty() ? "" : ", ") + name + " " + std::to_string(share).substr(0, 4);
    }
    largest_.shares.clear();
    return words;
  }

 private:
  static constexpr int64_t kEnough = 2048;  // numbers of a result
  static constexpr int64_t kEnoughSinks = 32;
  static constexpr int64_t kFirstDraws = 16;
  // With 16, one of some 8,000 calls was over the law for bf16's rounding of a single number.
  static constexpr int64_t kMostDraws = 64;

  struct Draw {
    Case call;
    Results exact, loops;
  };

  struct Comparison {
    std::string name;
    double error = 0, allowed = 0;
    int64_t numbers = 0;
  };

  struct Shares {
    std::mutex mutex;
    std::map<std::string, double> shares;
  };

  static int64_t draws_of(const Results& results) {
    int64_t draws = 1;
    const auto need = [&](const Tensor& result, int64_t numbers) {
      if (result.view() && result.size() > 0) {
        draws = std::max(draws, (numbers + result.size() - 1) / result.size());
      }
    };
    for (const Tensor* gradient : {&results.dq, &results.dk, &results.dv}) {
      need(*gradient, kEnough);
    }
    need(results.dsinks, kEnoughSinks);
    return std::min(draws, kFirstDraws);
  }

  void add_draw() const {
    Case drawn = call_;
    drawn.seed += 1'000'003 * draws_.size();  // beyond the seeds of other cases
    drawn.inputs = drawn.draw(with_backward_);
    const DType gradients = drawn.gradient_dtype.value_or(drawn.dtype);
    Results truth =
        drawn.run(AttentionBackend::reference, with_backward_, *exact_, DType::f64, DType::f64);
    Results plain =
        drawn.run(AttentionBackend::reference, with_backward_, *loops_, drawn.dtype, gradients);
    draws_.push_back({std::move(drawn), std::move(truth), std::move(plain)});
  }

  std::vector<Comparison> compare(const std::vector<Results>& ours) const {
    const std::pair<const char*, Tensor Results::*> results[] = {
        {"out", &Results::out},       {"lse", &Results::lse},    {"entropy", &Results::entropy},
        {"dq", &Results::dq},         {"dk", &Results::dk},      {"dv", &Results::dv},
        {"dsinks", &Results::dsinks}, {"dbias", &Results::dbias}};
    std::vector<Comparison> all;
    for (const auto& [name, result] : results) {
      if (!(ours.front().*result).view()) {
        continue;
      }
      Comparison c = {.name = name};
      for (size_t i = 0; i < draws_.size(); ++i) {
        const Tensor& own = ours[i].*result;
        const double own_error = distance(own, draws_[i].exact.*result);
        c.error = own_error > c.error || std::isnan(own_error) ? own_error : c.error;
        c.allowed = std::max(c.allowed, distance(draws_[i].loops.*result, draws_[i].exact.*result));
        c.numbers += own.size();
      }
      c.allowed = 2 * c.allowed + 1e-5;
      all.push_back(c);
    }
    return all;
  }

  static inline Shares largest_;

  Case call_;
  bool with_backward_;
  std::shared_ptr<const Executor> exact_, loops_;
  mutable std::vector<Draw> draws_;  // expect() may draw more
};

}  // namespace flashloom::attention_test
