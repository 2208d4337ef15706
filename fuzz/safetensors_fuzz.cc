#include "flashloom/core/error.h"
#include "flashloom/io/safetensors.h"
#include "fuzz/fuzz_file.h"
#include "fuzz/targets.h"

namespace flashloom::fuzz {

void read_safetensors(std::string_view bytes) {
  static const FuzzFile kFile("fuzz.safetensors");
  try {
    const SafetensorsFile file(kFile.write(bytes));
    for (const SafetensorsTensor& tensor : file.tensors()) {
      volatile std::byte touched = {};
      for (const std::byte byte : tensor.bytes) {
        touched = byte;
      }
      static_cast<void>(touched);
      try {
        static_cast<void>(file.view(tensor.name));
      } catch (const Error&) {
      }
    }
  } catch (const Error&) {
  }
}

}  // namespace flashloom::fuzz
