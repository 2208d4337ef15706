#include "cli/attend_passes.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "cli/attend_tensor.h"

namespace flashloom::cli {
namespace {

// Median seconds of at least three runs, after one that is not counted.
double median_seconds(AttendDevice& device, double least, FunctionRef<void(Stream)> run) {
  device.seconds(run);
  std::vector<double> times;
  double spent = 0;
  while (times.size() < 3 || spent < least) {
    times.push_back(device.seconds(run));
    spent += times.back();
  }
  std::nth_element(times.begin(), times.begin() + static_cast<ptrdiff_t>(times.size() / 2),
                   times.end());
  return times[times.size() / 2];
}

// The keys in parts, as a cache spread over machines would be worked on, and the parts merged.
class PartialForward {
 public:
  PartialForward(AttendDevice& device, const AttendViews& views, int64_t parts) : views_(views) {
    const ConstTensorView& q = views.inputs.q;
    const int64_t keys = views.inputs.k.dim(2);
    const int64_t size = tile_count(keys, parts);
    const int64_t count = tile_count(keys, std::max<int64_t>(size, 1));
    const std::vector<int64_t> rows = {count, q.dim(0), q.dim(1), q.dim(2)};
    logs_ = tensor(device, rows);
    outs_ = tensor(device, {count, q.dim(0), q.dim(1), q.dim(2), views.inputs.v.dim(3)});
    for (int64_t p = 0; p < count; ++p) {
      const int64_t first = p * size;
      const int64_t length = std::min(size, keys - first);
      Part part = {.outputs = {.out = outs_.select(0, p), .lse = logs_.select(0, p)},
                   .inputs = {q, views.inputs.k.slice(2, first, length),
                              views.inputs.v.slice(2, first, length)},
                   .options = views.options};
      part.options.score.sinks = {};
      part.options.positions.query_start = views.options.positions.offset.value_or(keys - q.dim(2));
      part.options.positions.key_start = first;
      part.options.positions.offset = {};
      part.workspace = device.allocate(
          attention_forward_workspace_bytes(part.outputs, part.inputs, part.options));
      parts_.push_back(part);
    }
  }

  void run(Stream stream) const {
    for (const Part& part : parts_) {
      attention_forward(part.outputs, part.inputs, part.workspace, part.options, stream);
    }
    attention_merge(views_.outputs.out, views_.outputs.lse, outs_, logs_,
                    views_.options.score.sinks, stream);
  }

 private:
  struct Part {
    AttentionOutputs outputs;
    AttentionInputs inputs;
    AttentionOptions options;
    std::span<std::byte> workspace = {};
  };

  // Contiguous f32.
  static TensorView tensor(AttendDevice& device, const std::vector<int64_t>& shape) {
    TensorView view = contiguous_view(DType::f32, shape);
    view.device = device.device();
    view.data = device.allocate(view.bytes()).data();
    return view;
  }

  const AttendViews& views_;
  TensorView outs_, logs_;
  std::vector<Part> parts_;
};

}  // namespace

void run_passes(AttendDevice& device, const AttendPlacedCall& placed, const AttendCase& call,
                double least, AttendReport& report) {
  const AttendViews& views = placed.views();
  const AttentionInputs& inputs = views.inputs;
  const double peak = device.peak_flops(inputs.q.dtype);
  const auto dim = static_cast<double>(inputs.q.dim(-1));
  const auto value_dim = static_cast<double>(inputs.v.dim(-1));
  const auto element = static_cast<double>(dtype_bytes(inputs.q.dtype));
  const double rows = report.counts.query_rows + report.counts.key_rows;
  const double bytes = rows * (dim + value_dim) * element;  // q, out; k, v
  // A CPU's cores do at most some 30 operations while memory moves a byte, Hopper's 300: with three
  // times as many, memory is not what limits a call.
  const double balance = device.device().is_cpu() ? 100 : 1000;
  const bool may_wait_for_memory = 2 * (dim + value_dim) * report.counts.pairs < balance * bytes;
  const double copy = may_wait_for_memory ? device.copy_bytes_per_second()
                                          : std::numeric_limits<double>::infinity();
  const auto add = [&](const char* name, double seconds, double operations, double moved) {
    report.rates.push_back({name, seconds, operations, moved, peak > 0 ? operations / peak : 0,
                            moved / copy, device.peak_name()});
  };
  double seconds = 0;
  if (call.flags().parts > 1) {
    const PartialForward parts(device, views, call.flags().parts);
    seconds = median_seconds(device, least, [&](Stream stream) { parts.run(stream); });
  } else {
    const std::span<std::byte> workspace =
        device.allocate(attention_forward_workspace_bytes(views.outputs, inputs, views.options));
    seconds = median_seconds(device, least, [&](Stream stream) {
      attention_forward(views.outputs, inputs, workspace, views.options, stream);
    });
  }
  add("forward", seconds, 2 * (dim + value_dim) * report.counts.pairs, bytes);
  if (!call.flags().backward) {
    return;
  }
  const std::span<std::byte> workspace = device.allocate(
      attention_backward_workspace_bytes(views.gradients, inputs, views.saved, views.options));
  seconds = median_seconds(device, least, [&](Stream stream) {
    attention_backward(views.gradients, inputs, views.saved, workspace, views.options, stream);
  });
  // Scores, dq and dk over D; dp and dv over E. Twice the tensors of the forward pass move.
  add("backward", seconds, (6 * dim + 4 * value_dim) * report.counts.pairs, 2 * bytes);
}

}  // namespace flashloom::cli
