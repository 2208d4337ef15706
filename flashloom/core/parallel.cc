#include "flashloom/core/parallel.h"

#include <omp.h>

#include <atomic>
#include <exception>

namespace flashloom {

int thread_count() {
  return omp_in_parallel() != 0 ? 1 : omp_get_max_threads();
}

void set_thread_count(int count) {
  omp_set_num_threads(count > 0 ? count : omp_get_num_procs());
}

void parallel_for_workers(int64_t count, FunctionRef<void(int64_t, int)> body) {
  if (count <= 0) {
    return;
  }
  if (count == 1 || thread_count() == 1) {
    for (int64_t i = 0; i < count; ++i) {
      body(i, 0);
    }
    return;
  }
  std::atomic<int64_t> next = 0;
  std::atomic<bool> failed = false;
  std::exception_ptr error;
#pragma omp parallel
  {
    const int worker = omp_get_thread_num();
    try {
      for (int64_t i = next++; i < count && !failed; i = next++) {
        body(i, worker);
      }
    } catch (...) {
      if (!failed.exchange(true)) {
        error = std::current_exception();
      }
    }
  }
  if (error) {
    std::rethrow_exception(error);
  }
}

void parallel_for(int64_t count, FunctionRef<void(int64_t)> body) {
  parallel_for_workers(count, [&](int64_t i, int) { body(i); });
}

}  // namespace flashloom
