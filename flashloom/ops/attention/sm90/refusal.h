#pragma once

#include <initializer_list>
#include <string>

#include "flashloom/ops/attention/attention.h"

// What the two directions' refusals share.

namespace flashloom::sm90 {

/// A field of the contract that a direction does not cover.
struct RefusedField {
  const char* name;
  bool used;
};

/// The name of the first field that is used; "" if none is.
std::string first_used(std::initializer_list<RefusedField> fields);

/// Why the copy engine or the 16-byte stores cannot take this tensor of rows of whole 16 bytes; ""
/// if they can.
std::string tensor_refusal(const char* name, const ConstTensorView& view, DType dtype);

/// What neither direction covers; "" if nothing of that is asked.
std::string common_refusal(const AttentionInputs& inputs, const AttentionOptions& options);

}  // namespace flashloom::sm90
