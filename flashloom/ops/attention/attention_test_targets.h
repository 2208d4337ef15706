#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <string>

namespace flashloom::attention_test {

/// Calls body(lanes of f32) with the CPU kernels forced to each instruction set that this machine
/// has, the lesser ones too; then the best is chosen again.
template <class Body>
void for_each_target(Body body) {
  struct Target {
    int64_t target;
    int64_t lanes;
  };

  constexpr Target kTargets[] = {{HWY_AVX3, 16},
                                 {HWY_AVX2, 8},
                                 {HWY_SSE4, 4},
                                 {HWY_STATIC_TARGET, HWY_STATIC_TARGET == HWY_SCALAR ? 1 : 4}};
  int tried = 0;
  for (const Target& target : kTargets) {
    hwy::SetSupportedTargetsForTest(0);
    if ((hwy::SupportedTargets() & target.target) == 0) {
      continue;
    }
    SCOPED_TRACE(hwy::TargetName(target.target));
    hwy::SetSupportedTargetsForTest(target.target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    ++tried;
    body(target.lanes);
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  EXPECT_GE(tried, 1);
#if defined(__x86_64__)
  EXPECT_GE(tried, 3) << "AVX2, SSE4 and portable code at the least";
#endif
}

}  // namespace flashloom::attention_test
