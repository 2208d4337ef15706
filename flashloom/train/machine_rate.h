#pragma once

namespace flashloom {

/// f32 matrix product rate of this machine with the present number of threads, in FLOP/s: the best
/// of a few products of 1024 x 1024 x 1024 through gemm(). Takes about a tenth of a second. It is
/// the denominator of the utilisation that training reports (MFU), as it is the roof that those
/// products can reach here.
double measure_gemm_rate();

}  // namespace flashloom
