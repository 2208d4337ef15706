#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "flashloom/comm/communicator.h"

namespace flashloom::cli {

/// Runs a job as the rank that a launcher made this process, or alone. Only rank 0 is to print.
/// Where a rank fails, it says so and ends all: the others would wait for it for ever. `lost` is
/// what to say if another rank is lost.
int run_as_rank(const CommunicatorOptions& options, const std::string& lost,
                const std::function<int(Communicator&)>& job);

/// --threads of one rank: 0 shares the cores that this process may run on with the other ranks of
/// the machine, unless the launcher has done so.
int threads_of_rank(int64_t asked, const Communicator& ranks);

/// Throws UsageError for several ranks of a job that is one process.
void refuse_ranks(int argc, char** argv);

}  // namespace flashloom::cli
