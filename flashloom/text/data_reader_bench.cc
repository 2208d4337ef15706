#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "flashloom/text/data_reader.h"

namespace flashloom {
namespace {

// 64 MB of rows of instruction data: a short question, an answer of some 400 letters, a few
// escapes, as published data sets have them.
std::string write_rows(bool messages) {
  const std::string path =
      std::filesystem::temp_directory_path() / (messages ? "bench_m.jsonl" : "bench_p.jsonl");
  std::ofstream file(path, std::ios::binary);
  int64_t bytes = 0;
  for (int64_t i = 0; bytes < 64 << 20; ++i) {
    const std::string question = fmt::format("What is \\\"number\\\" {}?", i);
    std::string answer = fmt::format("It is {}.\\n", i);
    while (answer.size() < 400) {
      answer += "The quick brown fox jumps over the lazy dog. ";
    }
    const std::string row =
        messages ? fmt::format(R"({{"messages": [{{"role": "user", "content": "{}"}}, {{"role": )"
                               R"("assistant", "content": "{}"}}]}})"
                               "\n",
                               question, answer)
                 : fmt::format(R"({{"prompt": "{}", "completion": "{}"}})"
                               "\n",
                               question, answer);
    file << row;
    bytes += static_cast<int64_t>(row.size());
  }
  return path;
}

// Rows of a file as DataRows, the file in the page cache, one thread.
void read_rows(benchmark::State& state) {
  const std::string path = write_rows(state.range(0) != 0);
  int64_t rows = 0;
  for (auto _ : state) {
    rows = 0;
    read_data(path, [&](const DataRow&) { ++rows; });
  }
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path));
  state.SetBytesProcessed(state.iterations() * bytes);
  state.SetItemsProcessed(state.iterations() * rows);
  std::filesystem::remove(path);
}

BENCHMARK(read_rows)->ArgName("messages")->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace flashloom
