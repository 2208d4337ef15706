#include "flashloom/core/error.h"
#include "flashloom/text/tokenizer.h"
#include "fuzz/targets.h"

namespace flashloom::fuzz {

void read_tokenizer(std::string_view bytes) {
  try {
    const Tokenizer tokenizer = Tokenizer::from_json(bytes, "fuzz.json");
    const std::string_view text = bytes.substr(0, 64);
    static_cast<void>(tokenizer.decode(tokenizer.encode(text)));
    static_cast<void>(tokenizer.files());
  } catch (const Error&) {
  }
}

}  // namespace flashloom::fuzz
