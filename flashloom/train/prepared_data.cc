#include "flashloom/train/prepared_data.h"

#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/checksum.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/io/safetensors.h"
#include "flashloom/io/safetensors_writer.h"
#include "flashloom/json/json.h"
#include "flashloom/train/run_record.h"

namespace flashloom {
namespace {

constexpr int kVersion = 1;
constexpr const char* kRecord = "/prepared.json";
constexpr std::string_view kTrain = "train";
constexpr std::string_view kHeldOut = "held_out";

std::string array_path(const std::string& directory, std::string_view side) {
  return fmt::format("{}/{}.safetensors", directory, side);
}

std::string text_sum(std::string_view text) {
  return checksum(std::as_bytes(std::span(text)));
}

// Of the files that a tokenizer comes as: equal files, equal tokenizers.
std::string files_sum(const Tokenizer& tokenizer) {
  Checksum sum;
  for (const auto& [name, content] : tokenizer.files()) {
    if (name == "tokenizer.json") {
      sum.add(std::as_bytes(std::span(content)));
    }
  }
  return sum.hex();
}

// Of what it does: every token's spelling, what its text becomes, and what stands around a text.
// The same for a GGUF file and a directory of one model.
std::string behaviour_sum(const Tokenizer& tokenizer) {
  const int32_t size = tokenizer.vocabulary_size();
  std::vector<std::vector<int32_t>> encoded(static_cast<size_t>(size));
  parallel_for(size, [&](int64_t id) {
    const auto token = static_cast<int32_t>(id);
    encoded[static_cast<size_t>(id)] =
        tokenizer.encode(tokenizer.decode(std::span(&token, 1)), {.add_special_tokens = false});
  });
  Checksum sum;
  const auto add = [&](std::span<const int32_t> ids) {
    const auto count = static_cast<int64_t>(ids.size());
    sum.add(std::as_bytes(std::span(&count, 1)));
    sum.add(std::as_bytes(ids));
  };
  for (int32_t id = 0; id < size; ++id) {
    sum.add(std::as_bytes(std::span(tokenizer.token(id))));
    add(encoded[static_cast<size_t>(id)]);
  }
  add(tokenizer.prefix_ids());
  add(tokenizer.suffix_ids());
  const int32_t end = tokenizer.eos_id().value_or(-1);
  add(std::span(&end, 1));
  return sum.hex();
}

Json to_json(const SupervisedData& side) {
  Json groups = Json::array();
  for (const DocumentGroup& group : side.documents.groups()) {
    groups.push_back({{"documents", group.count}, {"weight", group.weight}});
  }
  const SupervisedCounts& counts = side.counts;
  return {{"documents", side.documents.size()},
          {"tokens", side.documents.total_tokens()},
          {"loss_tokens", side.documents.total_loss_tokens()},
          {"longest", side.documents.longest()},
          {"rows", counts.rows},
          {"examples", counts.examples},
          {"longer", counts.longer},
          {"dropped", counts.dropped},
          {"lost_tokens", counts.lost_tokens},
          {"groups", groups},
          {"xxh3", documents_checksum(side.documents)}};
}

void write_arrays(const std::string& path, const TokenDocuments& documents) {
  SafetensorsWriter writer(path, {{"lengths", DType::i64, {documents.size()}},
                                  {"tokens", DType::i32, {documents.total_tokens()}},
                                  {"loss", DType::u8, {documents.total_tokens()}}});
  const std::vector<int64_t> lengths = documents.lengths();
  writer.write("lengths", ConstTensorView(lengths.data(), {documents.size()}));
  // Many documents a write: a system call each would cost more than the copy.
  constexpr size_t kTogether = 1 << 18;
  std::vector<int32_t> tokens;
  std::vector<uint8_t> loss;
  int64_t first = 0;
  const auto flush = [&] {
    const auto count = static_cast<int64_t>(tokens.size());
    writer.write_part("tokens", first, ConstTensorView(tokens.data(), {count}));
    writer.write_part("loss", first, ConstTensorView(loss.data(), {count}));
    first += count;
    tokens.clear();
    loss.clear();
  };
  for (int64_t i = 0; i < documents.size(); ++i) {
    const TokenDocument document = documents[i];
    tokens.insert(tokens.end(), document.tokens.begin(), document.tokens.end());
    loss.insert(loss.end(), document.loss.begin(), document.loss.end());
    if (tokens.size() >= kTogether) {
      flush();
    }
  }
  flush();
  writer.finish();
}

template <class T>
std::span<const T> array(const SafetensorsFile& file, std::string_view name, int64_t size) {
  const ConstTensorView view = file.view(name);
  if (view.dtype != kDTypeOf<T> || view.rank != 1 || view.size() != size) {
    throw IoError(
        file.path(), name,
        fmt::format("expected ({}) {}, found {}", size, dtype_name(kDTypeOf<T>), describe(view)));
  }
  return {view.as<T>(), static_cast<size_t>(size)};
}

SupervisedData read_side(const std::string& directory, std::string_view side, const Json& json,
                         int64_t longest) {
  const auto file = std::make_shared<const SafetensorsFile>(array_path(directory, side));
  const auto number = [&](const char* name) { return json.at(name).integer(); };
  std::vector<DocumentGroup> groups;
  for (const Json& group : json.at("groups").elements()) {
    groups.push_back(
        {.count = group.at("documents").integer(), .weight = group.at("weight").number()});
  }
  const int64_t tokens = number("tokens");
  SupervisedData data = {.counts = {.rows = number("rows"),
                                    .examples = number("examples"),
                                    .longer = number("longer"),
                                    .dropped = number("dropped"),
                                    .lost_tokens = number("lost_tokens")}};
  try {
    data.documents = TokenDocuments::borrowed(
        array<int32_t>(*file, "tokens", tokens), array<uint8_t>(*file, "loss", tokens),
        array<int64_t>(*file, "lengths", number("documents")), groups, file);
  } catch (const InvalidArgument& error) {
    throw IoError(file->path(), "", error.what());
  }
  if (documents_checksum(data.documents) != json.at("xxh3").string()) {
    throw IoError(file->path(), "", "differs from its checksum: prepare the data again");
  }
  if (data.documents.longest() > longest) {
    throw IoError(
        file->path(), "lengths",
        fmt::format("expected at most {} tokens, found {}", longest, data.documents.longest()));
  }
  return data;
}

std::vector<std::string> strings(const Json& json) {
  std::vector<std::string> list;
  for (const Json& entry : json.elements()) {
    list.push_back(entry.string());
  }
  return list;
}

void require_tokenizer(const std::string& directory, const Json& json, const Tokenizer& tokenizer) {
  const auto differs = [&](const char* what) {
    throw IoError(directory, "",
                  fmt::format("was prepared with another {} than the model's: prepare the data "
                              "again with `flashloom prepare --model`",
                              what));
  };
  if (json.at("tokenizer_files").string() != files_sum(tokenizer) &&
      json.at("tokenizer").string() != behaviour_sum(tokenizer)) {
    differs("tokenizer");
  }
  if (json.at("chat_template").string() != text_sum(tokenizer.chat_template())) {
    differs("chat template");
  }
}

}  // namespace

void write_prepared(const std::string& directory, const PreparedSettings& settings,
                    const SupervisedSplit& data, const Tokenizer& tokenizer) {
  make_directory(directory);
  // Old arrays under a new record, or new ones under an old, are never taken for a set.
  std::filesystem::remove(directory + kRecord);
  std::filesystem::remove(array_path(directory, kHeldOut));
  write_arrays(array_path(directory, kTrain), data.train.documents);
  Json json = {{"version", kVersion},
               {"seq_len", settings.sequence_length},
               {"long", long_rows_name(settings.long_rows)},
               {"held_out", settings.held_out},
               {"files", settings.files},
               {"vocabulary", tokenizer.vocabulary_size()},
               {"tokenizer_files", files_sum(tokenizer)},
               {"tokenizer", behaviour_sum(tokenizer)},
               {"chat_template", text_sum(tokenizer.chat_template())},
               {std::string(kTrain), to_json(data.train)}};
  if (data.held_out.documents.size() > 0) {
    write_arrays(array_path(directory, kHeldOut), data.held_out.documents);
    json[std::string(kHeldOut) + "_data"] = to_json(data.held_out);
  }
  write_file_atomically(directory + kRecord, json.dump(2) + "\n");
}

bool is_prepared(const std::string& directory) {
  std::error_code ignored;
  return std::filesystem::is_directory(directory, ignored) &&
         std::filesystem::exists(directory + kRecord, ignored);
}

PreparedData open_prepared(const std::string& directory, const Tokenizer& tokenizer) {
  const std::string path = directory + kRecord;
  const MappedFile file(path);
  try {
    const Json json = parse_strict_json(file.text(), path);
    if (json.at("version").integer() != kVersion) {
      throw IoError(path, "version",
                    fmt::format("expected {}, found {}", kVersion, json.at("version").dump()));
    }
    require_tokenizer(directory, json, tokenizer);
    PreparedData set = {.settings = {.sequence_length = json.at("seq_len").integer(),
                                     .long_rows = parse_long_rows(json.at("long").string()),
                                     .held_out = json.at("held_out").number(),
                                     .files = strings(json.at("files"))}};
    const int64_t longest = set.settings.sequence_length;
    set.data.train = read_side(directory, kTrain, json.at(kTrain), longest);
    const std::string held_out = std::string(kHeldOut) + "_data";
    if (const Json* side = json.find(held_out)) {
      set.data.held_out = read_side(directory, kHeldOut, *side, longest);
    }
    return set;
  } catch (const JsonError& error) {
    throw IoError(path, "", error.what());
  } catch (const InvalidArgument& error) {
    throw IoError(path, "", error.what());
  }
}

}  // namespace flashloom
