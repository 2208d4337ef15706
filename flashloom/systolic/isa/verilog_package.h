#pragma once

#include <string>

namespace flashloom::systolic {

/// The instruction table and the plan as SystemVerilog constants, for the RTL. Plain localparams,
/// so that the text can stand inside a module (Yosys takes no `import`): `R`, `C`, `P` and `L` must
/// be parameters where it is included, and cycles are expressions of them.
///
///   KIND_<kind>, WORDS_<kind>                   codes and sizes of instructions
///   FUNCTION_<function>, DMA_LOAD, DMA_STORE
///   F_<kind>_<field>_{WORD,HIGH,LOW}            and _{WORD1,HIGH1,LOW1} for a second part, which
///                                               holds the value's bits from _BITS0 on; _BIAS
///   CTL_<control bit>                           index into a PE's nine control bits
///   T_<function>_{CONFLICT_FREE,RELEASE,BUSY}   cycles of an instruction's timer
///   W_<function>_<signal>_<n>_{FIRST,LAST,WAVE} windows, n counting those of the same signal
///   WAVE_{NONE,PARALLEL,UP,DOWN}
std::string verilog_constants();

}  // namespace flashloom::systolic
