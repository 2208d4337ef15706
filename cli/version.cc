#include <fmt/format.h>
#include <hwy/targets.h>

#include "cli/commands.h"
#include "flashloom/comm/communicator.h"
#include "flashloom/core/memory_plan.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/progress.h"

namespace flashloom::cli {

std::string version_text() {
  const int64_t targets = hwy::SupportedTargets();
  const int64_t best = targets & -targets;  // lower bits are better targets
#ifdef FLASHLOOM_WITH_CUDA
  constexpr const char* kCuda = "compiled in";
#else
  constexpr const char* kCuda = "not compiled in (cmake --preset cuda)";
#endif
  return fmt::format(
      "flashloom {}\n"
      "build    {}, {}\n"
      "CPU      {} cores, {} in use, {} free\n"
      "CUDA     {}\n"
      "MPI      {}",
      FLASHLOOM_VERSION, FLASHLOOM_BUILD_TYPE, __VERSION__, thread_count(), hwy::TargetName(best),
      format_bytes(available_memory_bytes()), kCuda,
      mpi_version().empty() ? "not compiled in (cmake -DFLASHLOOM_MPI=ON)" : mpi_version());
}

}  // namespace flashloom::cli
