#include "flashloom/core/error.h"
#include "flashloom/text/data_reader.h"
#include "fuzz/fuzz_file.h"
#include "fuzz/targets.h"

namespace flashloom::fuzz {

void read_jsonl(std::string_view bytes) {
  static const FuzzFile kRows("fuzz.jsonl");
  static const FuzzFile kText("fuzz.txt");
  for (const FuzzFile* file : {&kRows, &kText}) {
    try {
      read_data(file->write(bytes), [](const DataRow&) {});
    } catch (const Error&) {
    }
  }
}

}  // namespace flashloom::fuzz
