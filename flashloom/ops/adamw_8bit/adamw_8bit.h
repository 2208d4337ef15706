#pragma once

#include <cstdint>

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"
#include "flashloom/ops/adamw/adamw.h"
#include "flashloom/ops/adamw_8bit/dynamic_code.h"

namespace flashloom {

/// A moment in 8 bits: element i is dynamic_code()[codes[i]] times scales[i / 256].
struct QuantizedMoment {
  TensorView codes;   // u8, of the parameter's shape
  TensorView scales;  // (ceil(elements / 256)) f32
};

/// adamw() with m (signed code) and v (unsigned) in 8 bits: 2.03 bytes an element instead of 8. A
/// step reads both, updates them in f32, moves the parameter by these exact values, and stores them
/// with new scales, rounded to nearest. A moment that was never written is all zero: scale 0.
///
/// Shapes:  parameter (f32 or bf16) and gradient (f32) alike, contiguous; blocks of 256 elements
///          run over the flattened tensor, the last may be shorter.
/// Error:   a stored m is within 1/142 of the largest of its block, v within 1/284. As a share of
/// the
///          element: 7 % and 3.5 % at most down to a tenth of the largest, twice as much for each
///          decade below; m of less than 2.7e-7 of the largest become 0.
/// Order:   the same bits for any number of threads.
/// Throws:  InvalidArgument, as adamw().
/// Source:  Dettmers et al. 2022.
void adamw_8bit(TensorView parameter, const QuantizedMoment& m, const QuantizedMoment& v,
                ConstTensorView gradient, const AdamwOptions& options, Stream stream = {});

/// The oracle: float64 plain loops, codes by search. Any floating-point dtypes but the codes'.
void adamw_8bit_reference(TensorView parameter, const QuantizedMoment& m, const QuantizedMoment& v,
                          ConstTensorView gradient, const AdamwOptions& options);

}  // namespace flashloom
