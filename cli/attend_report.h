#pragma once

#include <string>
#include <vector>

#include "cli/attend_check.h"
#include "cli/attend_tiles.h"

namespace flashloom::cli {

/// What a pass costs, and what the machine allows.
struct AttendRate {
  std::string name;
  double seconds;
  double flops;
  double bytes;
  double compute_seconds;  // bounds of this machine; 0 if not known
  double memory_seconds;
  std::string compute_name;

  bool by_memory() const { return memory_seconds > compute_seconds; }

  double share() const;
  std::string line() const;
};

/// What `flashloom attend` prints.
struct AttendReport {
  std::string call;
  std::string backend;
  std::string runs_on;  // "AVX-512, 2 threads", or the name of a GPU
  int threads = 0;      // 0 on a GPU
  std::string why;      // not the fastest backend
  AttendCounts counts;
  TileShape tile;  // of the CPU's kernel; no rows where another runs
  std::vector<AttendRate> rates;
  std::vector<AttendError> errors;
  std::string unchecked;  // why there is no check

  bool ok() const;
  std::string verdict() const;
  void print() const;
  void print_json() const;
};

}  // namespace flashloom::cli
