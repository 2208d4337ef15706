#include "flashloom/ops/embedding/embedding_reference.h"

#include "flashloom/core/element.h"

namespace flashloom {
namespace {

int64_t token_at(const ConstTensorView& tokens, int64_t t) {
  return static_cast<int64_t>(load_element(tokens, {t}));
}

}  // namespace

void embedding_forward_reference(TensorView out, ConstTensorView table, ConstTensorView tokens,
                                 Stream /*stream*/) {
  for (int64_t t = 0; t < out.shape[0]; ++t) {
    for (int64_t c = 0; c < out.shape[1]; ++c) {
      store_element(out, {t, c}, load_element(table, {token_at(tokens, t), c}));
    }
  }
}

void embedding_backward_reference(TensorView dtable, ConstTensorView dout, ConstTensorView tokens,
                                  Stream /*stream*/) {
  for (int64_t t = 0; t < dout.shape[0]; ++t) {
    const int64_t token = token_at(tokens, t);
    for (int64_t c = 0; c < dout.shape[1]; ++c) {
      store_element(dtable, {token, c},
                    load_element(dtable, {token, c}) + load_element(dout, {t, c}));
    }
  }
}

}  // namespace flashloom
