// Encoding speed on one core, in MB/s of text.
//
//   tokenizer_bench [TOKENIZER.json [TEXT]] [--benchmark_...]
//
// Without arguments, from the root of the repository: the small tokenizer of the tests with
// SmolLM2's pre-tokenizer, and pseudo-English of 20,000
// words, made by syllables and drawn by Zipf's law, 4 MB. A real vocabulary and a real text say
// more.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>
#include <sstream>

#include "flashloom/text/tokenizer.h"

namespace {

using flashloom::Tokenizer;

constexpr size_t kBytes = 4'000'000;

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  if (!stream) {
    throw std::runtime_error("cannot read " + path);
  }
  return std::move(text).str();
}

std::string make_words(std::mt19937& random, int syllables) {
  constexpr const char* kOnsets[] = {"",  "b", "c", "d", "f", "g", "h",  "l",  "m",
                                     "n", "p", "r", "s", "t", "w", "th", "st", "pr"};
  constexpr const char* kRhymes[] = {"a",  "e",  "i",  "o",   "u",   "an",  "er",  "in",
                                     "on", "es", "at", "ing", "all", "ent", "ion", "ed"};
  std::string word;
  for (int i = 0; i < syllables; ++i) {
    word += kOnsets[random() % std::size(kOnsets)];
    word += kRhymes[random() % std::size(kRhymes)];
  }
  return word;
}

std::string make_english() {
  std::mt19937 random(1);
  std::vector<std::string> words;
  words.reserve(20'000);
  for (int rank = 0; rank < 20'000; ++rank) {
    // Frequent words are short: one syllable for the first hundred, up to four for the last.
    words.push_back(make_words(random, 1 + (rank > 100) + (rank > 2'000) + (rank % 3 == 0)));
  }
  std::string text;
  bool sentence_start = true;
  while (text.size() < kBytes) {
    // Zipf: rank r with probability about 1 / r, by inversion.
    const double uniform = static_cast<double>(random()) / 4294967296.0;
    const auto rank = static_cast<size_t>(std::exp(uniform * std::log(20'000.0))) - 1;
    std::string word = words[std::min(rank, words.size() - 1)];
    if (sentence_start) {
      word[0] = static_cast<char>(word[0] - 'a' + 'A');
    }
    text += word;
    const unsigned chance = random() % 100;
    sentence_start = chance < 6;
    text += chance < 5 ? ". " : chance < 6 ? ".\n" : chance < 12 ? ", " : " ";
    if (chance == 50) {
      text += std::to_string(random() % 10'000) + " ";
    }
  }
  return text;
}

void encode(benchmark::State& state, const Tokenizer& tokenizer, const std::string& text) {
  size_t ids = 0;
  for (auto _ : state) {
    ids = tokenizer.encode(text).size();
    benchmark::DoNotOptimize(ids);
  }
  state.counters["MB/s"] = benchmark::Counter(
      static_cast<double>(text.size()) * 1e-6 * static_cast<double>(state.iterations()),
      benchmark::Counter::kIsRate);
  state.counters["bytes/id"] = static_cast<double>(text.size()) / static_cast<double>(ids);
}

std::string repeat(const std::string& unit) {
  std::string text;
  while (text.size() < 1'000'000) {
    text += unit;
  }
  return text;
}

std::string random_letters() {
  std::mt19937 random(2);
  std::string text(1'000'000, 'a');
  std::generate(text.begin(), text.end(), [&] { return static_cast<char>('a' + random() % 26); });
  return text;
}

std::string random_cjk() {
  std::mt19937 random(3);
  std::string text;
  while (text.size() < 1'000'000) {
    const unsigned c = 0x4E00 + random() % 3000;
    text += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
             static_cast<char>(0x80 | (c & 63))};
  }
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const std::string file = argc > 1 ? argv[1] : "tests/golden/text/tokenizer_smollm2.json";
  const std::string json = read_file(file);
  const Tokenizer tokenizer = Tokenizer::from_json(json, file);
  const std::pair<const char*, std::string> texts[] = {
      {argc > 2 ? "encode/file" : "encode/pseudo_english",
       argc > 2 ? read_file(argv[2]) : make_english()},
      {"encode/1MB_of_a", repeat("a")},
      {"encode/1MB_of_letters", random_letters()},
      {"encode/1MB_of_digits", repeat("31415926535897932384626433832795")},
      {"encode/1MB_of_cjk", random_cjk()},
      {"encode/1MB_of_spaces", repeat(" ")},
  };
  for (const auto& [name, text] : texts) {
    benchmark::RegisterBenchmark(name, [&tokenizer, &text](benchmark::State& state) {
      encode(state, tokenizer, text);
    })->Unit(benchmark::kMillisecond);
  }
  benchmark::RegisterBenchmark("load", [&](benchmark::State& state) {
    for (auto _ : state) {
      benchmark::DoNotOptimize(Tokenizer::from_json(json, file).vocabulary_size());
    }
  })->Unit(benchmark::kMillisecond);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
