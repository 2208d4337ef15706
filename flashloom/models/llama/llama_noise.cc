#include "flashloom/models/llama/llama_noise.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "flashloom/core/check.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"

namespace flashloom {

void add_embedding_noise(TensorView stream, ConstTensorView cu_seqlens,
                         const EmbeddingNoise& noise) {
  check(std::isfinite(noise.alpha) && noise.alpha >= 0, "add_embedding_noise", "alpha",
        "a number from 0", fmt::format("{}", noise.alpha));
  const int64_t channels = stream.dim(1);
  const int64_t blocks = tile_count(channels, 4);  // of four random numbers
  // The step goes above the stream's number, where no other purpose has bits.
  const uint64_t high = static_cast<uint64_t>(RandomStream::embedding_noise) |
                        static_cast<uint64_t>(noise.step) << 32;
  const int32_t* bounds = cu_seqlens.as<int32_t>();
  parallel_for(cu_seqlens.dim(0) - 1, [&](int64_t document) {
    const int64_t length = bounds[document + 1] - bounds[document];
    const auto largest = static_cast<float>(
        noise.alpha / std::sqrt(static_cast<double>(length) * static_cast<double>(channels)));
    for (int64_t t = bounds[document]; t < bounds[document + 1]; ++t) {
      float* row = stream.as<float>() + t * stream.stride(0);
      for (int64_t block = 0; block < blocks; ++block) {
        const auto place = static_cast<uint64_t>((noise.first_token + t) * blocks + block);
        const std::array<uint32_t, 4> bits = philox(noise.seed, place, high);
        const int64_t end = std::min(channels, 4 * block + 4);
        for (int64_t c = 4 * block; c < end; ++c) {
          const float uniform = uniform_from_bits(bits[static_cast<size_t>(c - 4 * block)]);
          row[c] += largest * (2 * uniform - 1);
        }
      }
    }
  });
}

}  // namespace flashloom
