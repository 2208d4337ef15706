#include "flashloom/train/probes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <vector>

#include "flashloom/core/philox.h"
#include "flashloom/text/token_documents.h"

namespace flashloom {
namespace {

// Documents of random tokens, all of which bear loss.
TokenDocuments random_documents(std::initializer_list<int64_t> lengths, int64_t vocabulary_size,
                                uint64_t seed) {
  TokenDocuments documents;
  RandomSequence random(seed, RandomStream::probe);
  for (const int64_t length : lengths) {
    std::vector<int32_t> tokens(static_cast<size_t>(length));
    for (int32_t& token : tokens) {
      token = static_cast<int32_t>(random.bits() % static_cast<uint32_t>(vocabulary_size));
    }
    documents.add(tokens, std::vector<uint8_t>(tokens.size(), 1));
  }
  return documents;
}

PackedBatch batch_of(const TokenDocuments& documents, std::initializer_list<int32_t> indices) {
  PackedBatch batch;
  fill_batch(batch, documents, std::span(indices.begin(), indices.size()));
  return batch;
}

std::vector<float> values_of(const ConstTensorView& view) {
  return {view.as<float>(), view.as<float>() + view.size()};
}

struct Place {
  float* value;  // null: a bf16 weight, whose steps are too coarse for a small move
  const float* gradient;
  float before;
};

// Of each tensor the sampled weights with the largest gradients.
std::vector<Place> places(std::span<const Parameter> parameters) {
  constexpr int64_t kLooked = 4096;
  constexpr size_t kTaken = 64;
  std::vector<Place> taken;
  for (const Parameter& parameter : parameters) {
    if (!parameter.trainable()) {
      continue;
    }
    std::vector<Place> found;
    const int64_t stride = std::max<int64_t>(1, parameter.value.size() / kLooked);
    for (int64_t i = 0; i < parameter.value.size(); i += stride) {
      const bool moves = parameter.value.dtype == DType::f32;
      float* value = moves ? parameter.value.as<float>() + i : nullptr;
      found.push_back({value, parameter.gradient.as<float>() + i, moves ? *value : 0});
    }
    const size_t count = std::min(kTaken, found.size());
    std::partial_sort(found.begin(), found.begin() + static_cast<ptrdiff_t>(count), found.end(),
                      [](const Place& a, const Place& b) {
                        return std::abs(*a.gradient) > std::abs(*b.gradient);
                      });
    taken.insert(taken.end(), found.begin(), found.begin() + static_cast<ptrdiff_t>(count));
  }
  return taken;
}

std::vector<double> gradients_at(std::span<const Place> places) {
  std::vector<double> gradients;
  for (const Place& place : places) {
    gradients.push_back(*place.gradient);
  }
  return gradients;
}

double norm(std::span<const double> values) {
  double squares = 0;
  for (const double value : values) {
    squares += value * value;
  }
  return std::sqrt(squares);
}

}  // namespace

int64_t probe_packing(int64_t vocabulary_size,
                      const std::function<ConstTensorView(const PackedBatch&)>& token_losses) {
  constexpr int64_t kLength = kProbeLength;
  const TokenDocuments documents = random_documents({kLength, kLength}, vocabulary_size, 0);
  const TokenDocuments others = random_documents({kLength, kLength}, vocabulary_size, 1);
  PackedBatch batch = batch_of(documents, {0, 1});
  const PackedBatch other = batch_of(others, {0, 1});
  const std::vector<float> before = values_of(token_losses(batch));
  int64_t changed = 0;
  for (int64_t document = 0; document < kProbeDocuments; ++document) {
    const PackedBatch kept = batch;
    const auto begin = static_cast<ptrdiff_t>(document * kLength);
    std::copy_n(other.tokens.begin() + begin, kLength, batch.tokens.begin() + begin);
    std::copy_n(other.labels.begin() + begin, kLength, batch.labels.begin() + begin);
    const std::vector<float> after = values_of(token_losses(batch));
    for (int64_t t = 0; t < kProbeTokens; ++t) {
      const auto i = static_cast<size_t>(t);
      changed += t / kLength != document && before[i] != after[i] ? 1 : 0;
    }
    batch = kept;
  }
  return changed;
}

GradientProbe probe_gradients(int64_t vocabulary_size, std::span<const Parameter> parameters,
                              const std::function<void(std::span<const PackedBatch>)>& gradients,
                              const std::function<double(std::span<const PackedBatch>)>& loss) {
  const TokenDocuments documents = random_documents({4, kProbeLength}, vocabulary_size, 2);
  const std::vector<PackedBatch> batches = {batch_of(documents, {0}), batch_of(documents, {1})};
  gradients(batches);
  const std::vector<Place> sampled = places(parameters);
  std::vector<Place> moved;
  std::copy_if(sampled.begin(), sampled.end(), std::back_inserter(moved),
               [](const Place& place) { return place.value != nullptr; });
  const std::vector<double> direction = gradients_at(moved);
  GradientProbe probe;
  const double length = norm(direction);
  if (!(length > 0) || !std::isfinite(length)) {
    return probe;
  }

  std::vector<double> rest = gradients_at(sampled);
  const double sampled_length = norm(rest);
  const auto tokens = static_cast<double>(batches[0].loss_tokens + batches[1].loss_tokens);
  for (const PackedBatch& batch : batches) {
    gradients(std::span(&batch, 1));
    const std::vector<double> alone = gradients_at(sampled);
    for (size_t i = 0; i < rest.size(); ++i) {
      rest[i] -= static_cast<double>(batch.loss_tokens) / tokens * alone[i];
    }
  }
  probe.normalisation_error = norm(rest) / sampled_length;

  // Small enough that the loss is nearly straight (at 2e-3, adapters far from their start bent it
  // by 4 %), large enough to stand out of f32 rounding.
  constexpr double kChange = 5e-4;
  const auto loss_at = [&](double distance) {
    for (size_t i = 0; i < moved.size(); ++i) {
      const Place& place = moved[i];
      *place.value = static_cast<float>(place.before + distance * direction[i]);
      // What rounding left of the move is what the loss will show.
      probe.promised += std::copysign(1.0, distance) * direction[i] *
                        (static_cast<double>(*place.value) - place.before);
    }
    const double value = loss(batches);
    for (const Place& place : moved) {
      *place.value = place.before;
    }
    return value;
  };
  const auto measure = [&](double change) {
    const double step = change / (length * length);
    probe.promised = 0;
    const double above = loss_at(step);
    probe.measured = above - loss_at(-step);
  };
  measure(kChange);
  // Adapters with a large factor (rsLoRA) bent it by 17 % all the same. The third derivative's part
  // falls with the square of the move, that of a wrong gradient stays; rounding then shows more.
  constexpr double kStraight = 0.02;
  if (!(std::abs(probe.measured / probe.promised - 1) <= kStraight)) {
    measure(kChange / 4);
  }
  return probe;
}

}  // namespace flashloom
