#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/text/supervised_data.h"

namespace flashloom::cli {

/// The flags that say what a run, or a prepared set, reads.
struct DataFlags {
  std::vector<std::string> data;
  std::vector<std::string> eval_data;
  int64_t sequence_length = 1024;
  std::string long_rows = "cut";
  double held_out = 0;
};

/// Throws UsageError, naming the flag.
void validate(const DataFlags& flags);

/// "FILE" or "FILE:2" each. Throws UsageError.
std::vector<DataFile> weighted_files(const std::vector<std::string>& names);

/// The one directory that --data names, if it is a prepared set; else empty. Throws UsageError for
/// a set beside other files.
std::string prepared_directory(const DataFlags& flags);

struct TrainingData {
  SupervisedSplit split;
  SupervisedOptions options;       // that it was, or would have been, loaded with
  std::vector<std::string> files;  // of the training rows; a group of documents each
  /// What decided the data beside the files' content, the same for a set that was prepared of them.
  std::vector<std::pair<std::string, std::string>> settings;
};

/// Reads and tokenizes the files, or maps a prepared set. What memory does not hold goes to a file
/// in `spill_directory`. Throws as load_supervised and open_prepared do, and Error for flags that
/// differ from the set's.
TrainingData load_training_data(const DataFlags& flags, const SupervisedEncoder& encoder,
                                const std::string& spill_directory);

/// Says on standard error what was found.
void tell(const TrainingData& data);

}  // namespace flashloom::cli
