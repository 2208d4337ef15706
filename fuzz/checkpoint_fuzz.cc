#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "flashloom/core/error.h"
#include "flashloom/io/checksum.h"
#include "flashloom/io/metric_log.h"
#include "flashloom/io/temporary_directory_for_test.h"
#include "flashloom/train/checkpoint.h"
#include "flashloom/train/run_record.h"
#include "fuzz/targets.h"

namespace flashloom::fuzz {
namespace {

// Bytes with right checksums, so that what lies behind them is reached too: the first byte says
// whether checkpoint.json is taken as it is, or as the content that a record is made of.
std::string record_of(std::string_view text, std::string_view tensors) {
  using nlohmann::ordered_json;
  if (text.empty() || text.front() != '+') {
    return std::string(text);
  }
  ordered_json content = ordered_json::parse(text.substr(1), nullptr, false);
  if (content.is_discarded() || !content.is_object()) {
    return std::string(text);
  }
  content["files"] = {{"training_state.safetensors", checksum(std::as_bytes(std::span(tensors)))}};
  std::string dumped;
  try {
    dumped = content.dump();
  } catch (const nlohmann::json::exception&) {
    return std::string(text);
  }
  return ordered_json({{"content", content}, {"xxh3", checksum(std::as_bytes(std::span(dumped)))}})
      .dump();
}

}  // namespace

/// The record, a zero byte, and the bytes of the tensors.
void read_checkpoint(std::string_view bytes) {
  static const TemporaryDirectory kFolder;
  const size_t border = std::min(bytes.find('\0'), bytes.size());
  const std::string_view text = bytes.substr(0, border);
  const std::string_view tensors = bytes.substr(std::min(border + 1, bytes.size()));
  std::filesystem::create_directories(kFolder / "checkpoint-3");
  overwrite_for_test(kFolder / "checkpoint-3/training_state.safetensors", tensors);
  overwrite_for_test(kFolder / "checkpoint-3/checkpoint.json", record_of(text, tensors));
  overwrite_for_test(kFolder / "run.json", text);
  overwrite_for_test(kFolder / "metrics.jsonl", text);
  std::array<float, 4> m = {};
  const std::array<StateTensor, 1> wanted = {{{"m", TensorView(m.data(), {4})}}};
  try {
    static_cast<void>(CheckpointFolders(kFolder.path()).read_newest(wanted, {}));
  } catch (const Error&) {
  }
  try {
    if (recorded_shape(kFolder.path())) {
      require_same_settings(kFolder.path(), std::array<Metric, 1>{{{"seed", int64_t{1}}}});
    }
  } catch (const Error&) {
  }
  try {
    cut_metric_log(kFolder / "metrics.jsonl", 3);
  } catch (const Error&) {
  }
}

}  // namespace flashloom::fuzz
