#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace flashloom {

/// Base of everything the library throws. The library never prints, exits or aborts.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The caller's fault: names the op, the argument, what was expected and what came.
class InvalidArgument : public Error {
 public:
  InvalidArgument(std::string_view op, std::string_view argument, std::string_view expected,
                  std::string_view actual);
};

/// Legal by the contract, but not built or not covered by the backend that was required.
class Unsupported : public Error {
 public:
  Unsupported(std::string_view op, std::string_view what);
};

/// The world's fault: a file that is missing, truncated, malformed or hostile.
class IoError : public Error {
 public:
  /// `place` says where in the file ("byte 24", "line 3", "tensor model.norm.weight"); may be
  /// empty.
  IoError(std::string_view file, std::string_view place, std::string_view what);
};

/// A plan or an allocation does not fit the memory that there is.
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

}  // namespace flashloom
