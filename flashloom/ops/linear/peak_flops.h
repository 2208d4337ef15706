#pragma once

namespace flashloom {

/// f32 operations a second that thread_count() cores could do if they did nothing but multiply and
/// add in registers: the roof of every product here, and the denominator of the utilisation that
/// training reports (MFU).
///
/// Measured on the caller's core by its thread's CPU time, which other work on the machine does not
/// lengthen, as the best of some 20 ms; times the number of threads. A core that clocks lower when
/// all are busy stays below it.
double measure_peak_flops();

}  // namespace flashloom
