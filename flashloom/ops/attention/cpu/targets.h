#pragma once

#include "hwy/detect_targets.h"

// The targets that the tiled kernels are compiled for: AVX-512, AVX2, SSE4 and scalar code on x86.
// Each costs seconds of compile time; those left out run the next lesser one. Include before
// hwy/foreach_target.h.
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
