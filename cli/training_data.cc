#include "cli/training_data.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <string_view>

#include "cli/arguments.h"
#include "cli/terminal.h"
#include "flashloom/core/error.h"
#include "flashloom/train/prepared_data.h"

namespace flashloom::cli {
namespace {

std::vector<std::pair<std::string, std::string>> settings_of(const SupervisedOptions& options,
                                                             const TokenDocuments& documents) {
  std::vector<double> weights;
  for (const DocumentGroup& group : documents.groups()) {
    weights.push_back(group.weight);
  }
  return {{"seq_len", fmt::format("{}", options.sequence_length)},
          {"long", std::string(long_rows_name(options.long_rows))},
          {"held_out", fmt::format("{}", options.held_out)},
          {"data_weights", fmt::format("{}", fmt::join(weights, ", "))}};
}

// Tokens cannot be cut another way afterwards.
void require_same_flags(const std::string& directory, const DataFlags& flags,
                        const PreparedSettings& set) {
  std::string differences;
  const auto compare = [&](const char* flag, const std::string& given, const std::string& of_set) {
    if (given != of_set) {
      differences += fmt::format("\n  {}: prepared with {}, now {}", flag, of_set, given);
    }
  };
  compare("--seq-len", fmt::format("{}", flags.sequence_length),
          fmt::format("{}", set.sequence_length));
  const DataFlags defaults;
  if (flags.long_rows != defaults.long_rows) {
    compare("--long", flags.long_rows, std::string(long_rows_name(set.long_rows)));
  }
  if (flags.held_out != defaults.held_out) {
    compare("--held-out", fmt::format("{}", flags.held_out), fmt::format("{}", set.held_out));
  }
  if (!differences.empty()) {
    throw Error(
        fmt::format("{} was prepared with other flags; give the same, or prepare it again:{}",
                    directory, differences));
  }
}

TrainingData open_set(const std::string& directory, const DataFlags& flags,
                      const SupervisedEncoder& encoder) {
  PreparedData set = open_prepared(directory, encoder.tokenizer());
  require_same_flags(directory, flags, set.settings);
  if (set.data.held_out.documents.size() > 0 && !flags.eval_data.empty()) {
    throw UsageError(fmt::format("--eval-data: {} has held-out data of its own", directory));
  }
  TrainingData data = {.split = std::move(set.data),
                       .options = {.sequence_length = set.settings.sequence_length,
                                   .long_rows = set.settings.long_rows,
                                   .held_out = set.settings.held_out},
                       .files = std::move(set.settings.files)};
  data.files.resize(data.split.train.documents.groups().size());  // names are for people
  return data;
}

}  // namespace

void validate(const DataFlags& flags) {
  if (!(flags.sequence_length >= 2)) {
    throw UsageError(fmt::format("--seq-len: expected at least 2, got {}", flags.sequence_length));
  }
  if (!(flags.held_out >= 0 && flags.held_out < 1)) {
    throw UsageError(
        fmt::format("--held-out: expected a share from 0 to less than 1, got {}", flags.held_out));
  }
  if (flags.held_out > 0 && !flags.eval_data.empty()) {
    throw UsageError("--held-out and --eval-data: expected one of them, got both");
  }
}

std::vector<DataFile> weighted_files(const std::vector<std::string>& names) {
  std::vector<DataFile> files;
  for (const std::string& name : names) {
    try {
      files.push_back(parse_data_file(name));
    } catch (const InvalidArgument& error) {
      throw UsageError(fmt::format("--data: {}", error.what()));
    }
  }
  return files;
}

std::string prepared_directory(const DataFlags& flags) {
  for (const std::string& name : flags.data) {
    const std::filesystem::path path = weighted_files({name}).front().path;
    if (!std::filesystem::is_directory(path)) {
      continue;
    }
    if (!is_prepared(path.string())) {
      throw UsageError(fmt::format(
          "--data: expected files, or a directory that `flashloom prepare` wrote; {} is neither",
          path.string()));
    }
    if (flags.data.size() > 1 || path.string() != name) {
      throw UsageError(
          fmt::format("--data: {} was prepared and stands alone, without weight: weights and other "
                      "files belong "
                      "into `flashloom prepare`",
                      path.string()));
    }
    return name;
  }
  return {};
}

TrainingData load_training_data(const DataFlags& flags, const SupervisedEncoder& encoder,
                                const std::string& spill_directory) {
  const std::string directory = prepared_directory(flags);
  TrainingData data;
  if (!directory.empty()) {
    data = open_set(directory, flags, encoder);
  } else {
    data.options = {.sequence_length = flags.sequence_length,
                    .long_rows = parse_long_rows(flags.long_rows),
                    .held_out = flags.held_out,
                    .spill_directory = spill_directory};
    const std::vector<DataFile> files = weighted_files(flags.data);
    data.split = load_supervised(files, encoder, data.options);
    for (const DataFile& file : files) {
      data.files.push_back(file.path.string());
    }
  }
  if (!flags.eval_data.empty()) {
    const std::vector<DataFile> held_out(flags.eval_data.begin(), flags.eval_data.end());
    SupervisedOptions options = data.options;
    options.held_out = 0;
    options.spill_directory = spill_directory;
    data.split.held_out = load_supervised(held_out, encoder, options).train;
  }
  data.settings = settings_of(data.options, data.split.train.documents);
  return data;
}

void tell(const TrainingData& data) {
  const auto side = [&](const char* name, const SupervisedData& of) {
    note(fmt::format("{}: {}; {} tokens, {} bear loss", name, describe(of.counts, data.options),
                     of.documents.total_tokens(), of.documents.total_loss_tokens()));
  };
  side("data", data.split.train);
  for (size_t i = 0; i < data.files.size() && data.files.size() > 1; ++i) {
    const DocumentGroup& group = data.split.train.documents.groups()[i];
    note(fmt::format("  {}: {} examples, each drawn {} times an epoch", data.files[i], group.count,
                     group.weight));
  }
  if (data.split.held_out.documents.size() > 0) {
    side("held-out data", data.split.held_out);
  }
}

}  // namespace flashloom::cli
