#pragma once

#include <cstdint>

namespace flashloom {

/// Bytes of anonymous memory that this process holds at present (RssAnon): heap, stacks and touched
/// pages of arenas, but no mapped files. 0 where the system does not say.
int64_t anonymous_memory_bytes();

}  // namespace flashloom
