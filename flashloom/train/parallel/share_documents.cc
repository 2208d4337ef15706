#include "flashloom/train/parallel/share_documents.h"

#include <cstdint>
#include <span>
#include <vector>

namespace flashloom {
namespace {

template <class T>
TensorView view_of(std::vector<T>& values) {
  return TensorView(values.data(), {static_cast<int64_t>(values.size())});
}

// Rank 0's vector to all.
template <class T>
void share(Communicator& communicator, std::vector<T>& values) {
  auto size = static_cast<int64_t>(values.size());
  communicator.broadcast(TensorView(&size, {1}), 0);
  values.resize(static_cast<size_t>(size));
  communicator.broadcast(view_of(values), 0);
}

}  // namespace

void share_documents(Communicator& communicator, TokenDocuments& documents) {
  if (communicator.size() == 1) {
    return;
  }
  const bool first = communicator.rank() == 0;
  std::vector<int64_t> lengths, counts;
  std::vector<double> weights;
  if (first) {
    lengths = documents.lengths();
    for (const DocumentGroup& group : documents.groups()) {
      counts.push_back(group.count);
      weights.push_back(group.weight);
    }
  }
  share(communicator, lengths);
  share(communicator, counts);
  share(communicator, weights);

  // Documents together to a million tokens or so.
  constexpr size_t kTogether = 1 << 20;
  std::vector<int32_t> tokens;
  std::vector<uint8_t> loss;
  size_t group = 0;
  int64_t left = 0;  // documents of the group that is open
  for (size_t begin = 0, end = 0; begin < lengths.size(); begin = end) {
    size_t count = 0;
    for (; end < lengths.size() && count < kTogether; ++end) {
      count += static_cast<size_t>(lengths[end]);
    }
    tokens.clear();
    loss.clear();
    for (size_t i = begin; i < end && first; ++i) {
      const TokenDocument document = documents[static_cast<int64_t>(i)];
      tokens.insert(tokens.end(), document.tokens.begin(), document.tokens.end());
      loss.insert(loss.end(), document.loss.begin(), document.loss.end());
    }
    tokens.resize(count);
    loss.resize(count);
    communicator.broadcast(view_of(tokens), 0);
    communicator.broadcast(view_of(loss), 0);
    size_t at = 0;
    for (size_t i = begin; i < end && !first; ++i) {
      while (left == 0) {
        documents.begin_group(weights[group]);
        left = counts[group++];
      }
      const auto length = static_cast<size_t>(lengths[i]);
      documents.add(std::span(tokens).subspan(at, length), std::span(loss).subspan(at, length));
      at += length;
      --left;
    }
  }
  for (; group < weights.size() && !first; ++group) {  // files without an example
    documents.begin_group(weights[group]);
  }
}

}  // namespace flashloom
