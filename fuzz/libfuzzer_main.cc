// The entry that libFuzzer calls; FLASHLOOM_FUZZ_TARGET is the function of targets.h to run.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "fuzz/targets.h"

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  flashloom::fuzz::FLASHLOOM_FUZZ_TARGET({reinterpret_cast<const char*>(data), size});
  return 0;
}
