#pragma once

#include <optional>
#include <string>

#include "flashloom/systolic/baseline/plain_array.h"
#include "flashloom/systolic/report/simulation.h"

namespace flashloom::cli {

/// What `flashloom simulate` prints of one run.
struct SimulateReport {
  systolic::Simulation simulation = {};
  std::optional<systolic::PlainArrayRun> plain = {};
  std::string runs_on;  // "AVX-512, 2 threads"
  int64_t layers = 1;   // of a model, all alike
  std::string model;    // its name; empty without one

  void print() const;
  std::string json() const;
};

}  // namespace flashloom::cli
