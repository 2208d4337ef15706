#pragma once

#include <memory>
#include <string>

#include "flashloom/comm/communicator.h"

namespace flashloom::detail {

// The ranks of MPI_COMM_WORLD. Only in builds with MPI; a process opens it once, and its end is
// that of MPI.
std::unique_ptr<Communicator> open_mpi(const CommunicatorOptions& options);

std::string mpi_library_version();

}  // namespace flashloom::detail
