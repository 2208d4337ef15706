#pragma once

#include <cstdint>
#include <string_view>

namespace flashloom {

/// CRC-32C (Castagnoli, polynomial 0x1edc6f41 reflected; RFC 3720, appendix B.4).
uint32_t crc32c(std::string_view bytes);

/// As TFRecord files store it, so that a CRC of data that holds CRCs is no fixed point: rotated
/// right by 15 bits, plus 0xa282ead8 (tensorflow/core/lib/hash/crc32c.h).
uint32_t masked_crc32c(std::string_view bytes);

}  // namespace flashloom
