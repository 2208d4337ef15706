#include "flashloom/io/metric_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <system_error>
#include <type_traits>
#include <utility>

#include "flashloom/core/error.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/io/write_all.h"
#include "flashloom/json/json.h"

namespace flashloom {
namespace {

[[noreturn]] void fail(const std::string& path, std::string_view what, int code) {
  throw IoError(path, what, std::generic_category().message(code));
}

Json to_json(const Metric& metric) {
  return std::visit(
      [](const auto& value) -> Json {
        if constexpr (std::is_same_v<std::decay_t<decltype(value)>, double>) {
          if (!std::isfinite(value)) {
            return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
          }
        }
        return value;
      },
      metric.value);
}

// Bytes up to and including the last newline.
int64_t whole_lines(int descriptor, const std::string& path) {
  struct stat status = {};
  if (fstat(descriptor, &status) != 0) {
    fail(path, "stat", errno);
  }
  std::array<char, 4096> block;
  int64_t end = status.st_size;
  while (end > 0) {
    const int64_t begin = std::max<int64_t>(0, end - static_cast<int64_t>(block.size()));
    const ssize_t count = pread(descriptor, block.data(), static_cast<size_t>(end - begin), begin);
    if (count != end - begin) {
      fail(path, "read", count < 0 ? errno : EIO);
    }
    const std::string_view text(block.data(), static_cast<size_t>(count));
    const size_t newline = text.rfind('\n');
    if (newline != std::string_view::npos) {
      return begin + static_cast<int64_t>(newline) + 1;
    }
    end = begin;
  }
  return 0;
}

}  // namespace

MetricLog::MetricLog(std::string path) : path_(std::move(path)) {
  descriptor_ = open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor_ < 0) {
    fail(path_, "open", errno);
  }
  try {
    struct stat status = {};
    const int64_t whole = whole_lines(descriptor_, path_);
    if (fstat(descriptor_, &status) != 0 ||
        (status.st_size != whole && ftruncate(descriptor_, whole) != 0)) {
      fail(path_, "truncate", errno);
    }
  } catch (...) {
    close(descriptor_);
    throw;
  }
}

MetricLog::~MetricLog() {
  close(descriptor_);
}

void MetricLog::append(std::span<const Metric> metrics) {
  Json line = Json::object();
  for (const Metric& metric : metrics) {
    line[metric.name] = to_json(metric);
  }
  // Text that is not UTF-8 is replaced, not refused: a log line must not end a run.
  const std::string text = line.dump(-1, JsonText::replaced) + "\n";
  write_all(descriptor_, path_, text);
}

void cut_metric_log(const std::string& path, int64_t step) {
  if (!std::filesystem::exists(path)) {
    return;
  }
  std::string kept;
  {
    const MappedFile file(path);
    std::string_view rest = file.text();
    // An unfinished last line is no line.
    for (size_t end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n')) {
      const std::string_view line = rest.substr(0, end + 1);
      const Json object = parse_strict_json(line, path);
      const Json* found = object.find("step");
      if (found == nullptr || !found->is_integer() ||
          found->number() <= static_cast<double>(step)) {
        kept += line;
      }
      rest.remove_prefix(end + 1);
    }
  }
  write_file_atomically(path, kept);
}

}  // namespace flashloom
