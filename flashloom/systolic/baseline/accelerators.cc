#include "flashloom/systolic/baseline/accelerators.h"

#include <algorithm>

namespace flashloom::systolic {
namespace {

constexpr std::string_view kAws = "AWS Neuron architecture guide, NeuronCore-v2";
constexpr std::string_view kGoogle = "Google Cloud, TPU v5e";
constexpr std::string_view kInference = "inferred: 197 TFLOPS bf16 / (4 MXUs, 2 · 128 · 128)";
constexpr std::string_view kAssumed = "assumed";
constexpr std::string_view kDerived = "derived";

}  // namespace

AcceleratorModel neuron_core_v2() {
  constexpr double kTensor = 2.8;
  constexpr double kVector = 1.12;
  constexpr double kScalar = 1.4;
  constexpr double kKeys = 512;
  constexpr double kSumRead = 64;
  AcceleratorModel model{.name = "NeuronCore-v2"};
  model.parameters = {
      {"tensor engine, 128 x 128", kTensor, "GHz", kAws},
      {"vector engine, 128 lanes", kVector, "GHz", kAws},
      {"scalar engine, 128 lanes", kScalar, "GHz", kAws},
      {"read of the exponentials' sum", kSumRead, "cycles", kAws},
      {"keys of a block", kKeys, "", "AWS Neuron: a matmul's n is at most 512"},
      {"copies of P^T on the vector engine", 1, "pass", kAssumed},
  };
  // QK, PV, and P's transposition through the array; one maximum and one copy; one exponential.
  const double tensor = 3 * kKeys / kTensor;
  const double vector = 2 * kKeys / kVector;
  const double scalar = (kKeys + kSumRead) / kScalar;
  model.engines = {{"tensor engine", tensor, "ns", kDerived},
                   {"vector engine", vector, "ns", kDerived},
                   {"scalar engine", scalar, "ns", kDerived}};
  model.useful_time = 2 * kKeys / kTensor;
  model.block_time = std::max({tensor, vector, scalar});
  model.time_unit = "ns";
  model.utilisation = model.useful_time / model.block_time;
  model.published_ratio = 1.77;
  model.calibration_name = "further passes of the vector engine over a block";
  model.unit_of_parameter = kKeys / kVector;
  return model;
}

AcceleratorModel tpu_v5e() {
  constexpr double kUnits = 4;
  constexpr double kSide = 128;
  constexpr double kLanes = 1024;
  constexpr double kPasses = 3;
  AcceleratorModel model{.name = "TPU v5e"};
  model.parameters = {
      {"matrix units, 128 x 128", kUnits, "", kGoogle},
      {"clock", 1.5, "GHz", kInference},
      {"vector lanes (8 x 128)", kLanes, "", kAssumed},
      {"vector passes over a tile", kPasses, "", kAssumed},
  };
  const double matrix = 2 * kSide / kUnits;
  const double vector = kPasses * kSide * kSide / kLanes;
  model.engines = {{"matrix units", matrix, "cycles", kDerived},
                   {"vector unit", vector, "cycles", kDerived}};
  model.useful_time = matrix;
  model.block_time = std::max(matrix, vector);
  model.time_unit = "cycles";
  model.utilisation = model.useful_time / model.block_time;
  model.published_ratio = 4.83;
  model.calibration_name = "cycles of overhead a 128 x 128 tile";
  model.unit_of_parameter = 1;
  return model;
}

}  // namespace flashloom::systolic
