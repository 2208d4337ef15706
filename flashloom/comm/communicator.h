#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "flashloom/core/device.h"
#include "flashloom/core/error.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// Another rank of the job has ended, or has not answered for too long: nothing that needs it can
/// go on.
class PeerLost : public Error {
 public:
  using Error::Error;
};

/// Another rank has failed with an error that it tells itself, and ends the job.
class PeerFailed : public PeerLost {
 public:
  using PeerLost::PeerLost;
};

/// Ranks 0 … size - 1 that run the same program and exchange tensors. Every rank makes the same
/// calls in the same order. Calls are queued on the stream as an op is; on the CPU they return when
/// `out` may be read and `in` overwritten.
///
/// Sums:    x[0] … x[size - 1] are added as a tree over the ranks' numbers, ((0 + 1) + (2 + 3)) +
///          (4 + 5), in the elements' own type. The bits depend on the number of ranks alone, not
///          on who arrives first, on who owns the result, or on the network.
/// Shapes:  contiguous tensors of the same dtype and size on every rank. Sums of f32, f64 and i64;
///          bytes of any dtype travel.
/// Wire:    of n ranks, reduce_scatter and all_gather send (n - 1) / n of `in`, or `out`, a rank:
///          no algorithm sends less.
/// Throws:  InvalidArgument; PeerLost; Error for what the network refuses.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// How many ranks share this machine's memory and cores, this one included.
  virtual int local_size() const = 0;

  /// Every rank's `values` become the sum of all.
  virtual void all_reduce(TensorView values, Stream stream = {}) = 0;

  /// `in` is (size, n): rank r's `out`, (n), becomes the sum of row r of all.
  virtual void reduce_scatter(TensorView out, ConstTensorView in, Stream stream = {}) = 0;

  /// `out` is (size, n): row r becomes rank r's `in`, (n).
  virtual void all_gather(TensorView out, ConstTensorView in, Stream stream = {}) = 0;

  /// Every rank's `values` become those of `root`.
  virtual void broadcast(TensorView values, int root, Stream stream = {}) = 0;

  /// One rank's tensor to another, which receives it.
  virtual void send(ConstTensorView values, int to, Stream stream = {}) = 0;
  virtual void receive(TensorView values, int from, Stream stream = {}) = 0;

  /// Returns once every rank has called it.
  virtual void barrier() = 0;

  /// Bytes that this rank has sent to others so far.
  virtual int64_t bytes_sent() const = 0;

  /// Ends all ranks at once, after an error that the others do not know of; those that wait for an
  /// exchange get PeerFailed, if they come to it. Returns only where there are no others.
  virtual void abort(int exit_code) = 0;
};

/// One rank alone: every exchange is the identity.
std::unique_ptr<Communicator> single_process();

struct CommunicatorOptions {
  /// A rank that another waits for so long is lost. Long, since a rank may be writing a checkpoint.
  double timeout_seconds = 1800;
};

/// The ranks that a launcher (mpirun) started together with this process, or this process alone if
/// none did. Throws Error, saying how to get it, if there are several and the program was built
/// without MPI.
std::unique_ptr<Communicator> open_communicator(const CommunicatorOptions& options = {});

/// What the launcher says, before anything is opened: 1 and 0 without one.
int launched_ranks();
int launched_rank();

/// "Open MPI v4.1.4, …", or empty in a build without MPI.
std::string mpi_version();

}  // namespace flashloom
