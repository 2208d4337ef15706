#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "flashloom/core/philox.h"
#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/attention/attention_test_case.h"
#include "flashloom/ops/attention/attention_test_device_loops.h"
#include "flashloom/ops/attention/attention_test_law.h"
#include "flashloom/ops/attention/decode/decode_test_device.cuh"

// Decoding calls with tensors on the host and copies of them on the GPU, against the float64
// reference there.

namespace flashloom::decode_test {

using attention_test::Tensor;

struct DecodeCase {
  int64_t batch = 2, heads = 8, key_heads = 2, queries = 1, keys = 300, dim = 128;
  int64_t value_dim = 0;  // 0: dim
  DType dtype = DType::bf16;
  DType out_dtype = DType::u8;  // u8: that of q
  int64_t page_size = 0;
  std::vector<int32_t> used_key = {};
  std::vector<int32_t> used_query = {};
  std::vector<int32_t> cu_query = {};
  std::vector<int32_t> cu_key = {};
  bool sinks = false;
  bool alibi = false;
  double deviation = 1;  // of q
  AttentionOptions options = {.visibility = {-1, 0}};
};

/// The tensors of a case, on both sides.
class DecodeCall {
 public:
  explicit DecodeCall(const DecodeCase& description, uint64_t seed = 1)
      : case_(description), options_(description.options), host_options_(description.options) {
    const bool packed = !case_.cu_query.empty();
    const bool packed_keys = !case_.cu_key.empty();
    const int64_t value_dim = case_.value_dim == 0 ? case_.dim : case_.value_dim;
    const int64_t sequences = case_.batch;
    const auto shape = [](bool is_packed, int64_t b, int64_t h, int64_t n, int64_t width) {
      std::vector<int64_t> sizes = is_packed ? std::vector{h, n} : std::vector{b, h, n};
      if (width > 0) {
        sizes.push_back(width);
      }
      return sizes;
    };
    const int64_t query_rows = packed ? case_.cu_query.back() : case_.queries;
    const int64_t pages_each =
        case_.page_size > 0 ? (case_.keys + case_.page_size - 1) / case_.page_size : 0;
    const int64_t pages = sequences * pages_each + 2;
    const int64_t key_rows = packed_keys           ? case_.cu_key.back()
                             : case_.page_size > 0 ? case_.page_size
                                                   : case_.keys;
    const int64_t key_blocks = case_.page_size > 0 ? pages : sequences;
    q = Tensor(case_.dtype, shape(packed, sequences, case_.heads, query_rows, case_.dim));
    k = Tensor(case_.dtype, shape(packed_keys, key_blocks, case_.key_heads, key_rows, case_.dim));
    v = Tensor(case_.dtype, shape(packed_keys, key_blocks, case_.key_heads, key_rows, value_dim));
    const DType out_type = case_.out_dtype == DType::u8 ? case_.dtype : case_.out_dtype;
    const auto out_shape = shape(packed, sequences, case_.heads, query_rows, value_dim);
    const auto lse_shape = shape(packed, sequences, case_.heads, query_rows, 0);
    out = Tensor(out_type, out_shape);
    lse = Tensor(DType::f32, lse_shape);
    exact_out = Tensor(DType::f64, out_shape);
    exact_lse = Tensor(DType::f64, lse_shape);
    rounded_out = Tensor(out_type, out_shape);
    rounded_lse = Tensor(DType::f32, lse_shape);
    q.random(seed, case_.deviation);

    AttentionSequences& lengths = host_options_.sequences;
    const auto index = [&](const std::vector<int32_t>& values, Tensor& tensor,
                           ConstTensorView& field) {
      if (!values.empty()) {
        tensor = Tensor::index({static_cast<int64_t>(values.size())}, values);
        field = tensor;
      }
    };
    index(case_.used_key, used_key, lengths.used_key);
    index(case_.used_query, used_query, lengths.used_query);
    index(case_.cu_query, cu_query, lengths.cu_query);
    index(case_.cu_key, cu_key, lengths.cu_key);
    const auto longest = [](const std::vector<int32_t>& offsets) {
      int32_t most = 0;
      for (size_t i = 1; i < offsets.size(); ++i) {
        most = std::max(most, offsets[i] - offsets[i - 1]);
      }
      return most;
    };
    lengths.max_query = packed ? longest(case_.cu_query) : 0;
    lengths.max_key = packed_keys ? longest(case_.cu_key) : case_.keys;
    if (case_.page_size > 0) {
      // Pages in an order of their own; entries that no key needs are out of range.
      RandomSequence numbers(seed + 7, RandomStream::test);
      std::vector<int32_t> order(static_cast<size_t>(pages));
      std::iota(order.begin(), order.end(), 0);
      for (size_t i = order.size() - 1; i > 0; --i) {
        const double uniform = 0.5 * std::erfc(-numbers.normal() * std::sqrt(0.5));
        std::swap(order[i], order[std::min(i, static_cast<size_t>(uniform * double(i + 1)))]);
      }
      page_table = Tensor(DType::i32, {sequences, pages_each + 1});
      for (int64_t b = 0; b < sequences; ++b) {
        for (int64_t p = 0; p <= pages_each; ++p) {
          const bool needed = p * case_.page_size < used_keys(b);
          page_table.view().as<int32_t>()[b * (pages_each + 1) + p] =
              needed ? order[static_cast<size_t>(b * pages_each + p)] : -77;
        }
      }
      lengths.page_table = page_table;
      lengths.page_size = case_.page_size;
    }
    // Only keys in use get numbers; the rest stays NaN.
    RandomSequence numbers_k(seed + 1, RandomStream::test);
    RandomSequence numbers_v(seed + 2, RandomStream::test);
    for (int64_t b = 0; b < sequences; ++b) {
      for (int64_t g = 0; g < case_.key_heads; ++g) {
        for (int64_t j = 0; j < used_keys(b); ++j) {
          fill_row(k, numbers_k, b, g, j);
          fill_row(v, numbers_v, b, g, j);
        }
      }
    }
    if (case_.sinks) {
      sinks = std::move(Tensor(DType::f32, {case_.heads}).random(seed + 3));
      host_options_.score.sinks = sinks;
    }
    if (case_.alibi) {
      alibi = Tensor(DType::f32, {case_.heads});
      for (int64_t h = 0; h < case_.heads; ++h) {
        alibi.set(h, std::exp2(-8.0 * double(h + 1) / double(case_.heads)));
      }
      host_options_.score.alibi_slopes = alibi;
    }
    copy_to_device();
  }

  AttentionOutputs outputs() const {
    return {.out = device_out->view(), .lse = device_lse->view()};
  }

  AttentionInputs inputs() const { return {device_q->view(), device_k->view(), device_v->view()}; }

  AttentionOptions& options() { return options_; }

  /// Runs on the GPU and fetches out and lse.
  void run() {
    DeviceMemory workspace(attention_forward_workspace_bytes(outputs(), inputs(), options_));
    device_out->poison();
    device_lse->poison();
    attention_forward(outputs(), inputs(), workspace.span(), options_);
    fetch();
  }

  void fetch() {
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    device_out->download(out);
    device_lse->download(lse);
  }

  /// New queries and lengths, on both sides.
  void redraw(uint64_t seed, const std::vector<int32_t>& lengths) {
    q.random(seed, case_.deviation);
    device_q->upload(q.view());
    std::copy(lengths.begin(), lengths.end(), used_key.view().as<int32_t>());
    device_used_key->upload(used_key.view());
  }

  /// max|x - ref64| <= 2 max|y - ref64| + 1e-5 (attention_test_law.h), both sides on the device.
  void expect_law() {
    DeviceMemory workspace(
        attention_forward_workspace_bytes(outputs(), inputs(), reference_options()));
    const auto run_into = [&](Tensor& host_out, Tensor& host_lse, auto forward) {
      DeviceTensor to_out(host_out.view());
      DeviceTensor to_lse(host_lse.view());
      forward(AttentionOutputs{.out = to_out.view(), .lse = to_lse.view()}, inputs(),
              workspace.span(), reference_options(), Stream{});
      cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
      to_out.download(host_out);
      to_lse.download(host_lse);
    };
    run_into(exact_out, exact_lse, attention_forward);
    if (case_.deviation > 1) {  // the order of sums counts (attention_test_run.cuh)
      attention_test::RoundedLoops().forward({.out = rounded_out, .lse = rounded_lse}, {q, k, v},
                                             host_options_);
    } else {
      run_into(rounded_out, rounded_lse, attention_test::device_loops_forward);
    }
    expect_law("out", out, rounded_out, exact_out);
    expect_law("lse", lse, rounded_lse, exact_lse);
  }

  Tensor q, k, v, out, lse, exact_out, exact_lse, rounded_out, rounded_lse;
  std::unique_ptr<DeviceTensor> device_q, device_k, device_v, device_out, device_lse;
  std::unique_ptr<DeviceTensor> device_used_key, device_used_query, device_cu_query, device_cu_key,
      device_pages, device_sinks, device_alibi;
  Tensor used_key, used_query, cu_query, cu_key, page_table, sinks, alibi;

 private:
  int64_t used_keys(int64_t b) const {
    if (!case_.cu_key.empty()) {
      const auto at = static_cast<size_t>(b);
      const int64_t rows = case_.cu_key[at + 1] - case_.cu_key[at];
      return case_.used_key.empty() ? rows : std::min<int64_t>(rows, case_.used_key[at]);
    }
    return case_.used_key.empty() ? case_.keys : case_.used_key[static_cast<size_t>(b)];
  }

  void fill_row(Tensor& target, RandomSequence& numbers, int64_t b, int64_t g, int64_t j) {
    const TensorView& view = target.view();
    int64_t at = 0;
    if (!case_.cu_key.empty()) {
      at = g * view.strides[0] + (case_.cu_key[static_cast<size_t>(b)] + j) * view.strides[1];
    } else if (case_.page_size > 0) {
      const int64_t width = page_table.view().dim(1);
      const int32_t page = page_table.view().as<int32_t>()[b * width + j / case_.page_size];
      at = page * view.strides[0] + g * view.strides[1] + j % case_.page_size * view.strides[2];
    } else {
      at = b * view.strides[0] + g * view.strides[1] + j * view.strides[2];
    }
    for (int64_t d = 0; d < view.dim(-1); ++d) {
      target.set(at + d, numbers.normal());
    }
  }

  void copy_to_device() {
    const auto copy = [](const Tensor& host, std::unique_ptr<DeviceTensor>& device) {
      device = std::make_unique<DeviceTensor>(host.view());
      device->upload(host.view());
    };
    const auto field = [&](const Tensor& host, std::unique_ptr<DeviceTensor>& device,
                           ConstTensorView& view) {
      if (host.view()) {
        copy(host, device);
        view = device->view();
      }
    };
    copy(q, device_q);
    copy(k, device_k);
    copy(v, device_v);
    copy(out, device_out);
    copy(lse, device_lse);
    options_ = host_options_;
    field(used_key, device_used_key, options_.sequences.used_key);
    field(used_query, device_used_query, options_.sequences.used_query);
    field(cu_query, device_cu_query, options_.sequences.cu_query);
    field(cu_key, device_cu_key, options_.sequences.cu_key);
    field(page_table, device_pages, options_.sequences.page_table);
    field(sinks, device_sinks, options_.score.sinks);
    field(alibi, device_alibi, options_.score.alibi_slopes);
  }

  AttentionOptions reference_options() const {
    return attention_test::with_backend(options_, AttentionBackend::reference);
  }

  static void expect_law(const char* name, const Tensor& ours, const Tensor& rounded,
                         const Tensor& exact) {
    const double error = attention_test::distance(ours, exact);
    const double allowed = 2 * attention_test::distance(rounded, exact) + 1e-5;
    EXPECT_TRUE(error <= allowed) << name << ": error " << error << ", allowed " << allowed;
  }

  DecodeCase case_;
  AttentionOptions options_, host_options_;
};

}  // namespace flashloom::decode_test
