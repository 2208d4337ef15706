#include "flashloom/train/report/run_facts.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <exception>
#include <filesystem>
#include <fstream>

#include "flashloom/io/atomic_file.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/json/json.h"

namespace flashloom {
namespace {

std::string path_of(const std::string& output) {
  return output + "/facts.json";
}

// Texts come from the data; what is not UTF-8 in them is replaced.
void write_json(const std::string& path, const Json& json) {
  write_file_atomically(path, json.dump(2, JsonText::replaced) + "\n");
}

Json to_json(const DataFacts& data) {
  return {{"files", data.files},
          {"rows", data.rows},
          {"documents", data.documents},
          {"tokens", data.tokens},
          {"loss_tokens", data.loss_tokens},
          {"shortest", data.shortest},
          {"median", data.median},
          {"longest", data.longest},
          {"lengths", data.lengths}};
}

Json to_json(const std::vector<SampleAnswer>& samples) {
  Json list = Json::array();
  for (const SampleAnswer& sample : samples) {
    Json json = {{"prompt", sample.prompt}, {"expected", sample.expected}};
    const auto add = [&](const char* name, const std::optional<std::string>& text) {
      if (text) {
        json[name] = *text;
      }
    };
    add("before", sample.before);
    add("after", sample.after);
    list.push_back(std::move(json));
  }
  return list;
}

Json to_json(const std::vector<MemoryPlan::Row>& rows) {
  Json list = Json::array();
  for (const MemoryPlan::Row& row : rows) {
    list.push_back({{"kind", row.kind},
                    {"bytes", row.bytes},
                    {"buffers", row.buffers},
                    {"largest", row.largest}});
  }
  return list;
}

}  // namespace

int64_t length_bin(int64_t longest) {
  constexpr int64_t kBars = 32;
  for (int64_t power = 1;; power *= 10) {
    for (const int64_t width : {power, 2 * power, 5 * power}) {
      if (longest < kBars * width) {
        return width;
      }
    }
  }
}

DataFacts data_facts(const TokenDocuments& documents, int64_t length_bin) {
  DataFacts facts = {.documents = documents.size(),
                     .tokens = documents.total_tokens(),
                     .loss_tokens = documents.total_loss_tokens()};
  std::vector<int64_t> lengths = documents.lengths();
  if (lengths.empty()) {
    return facts;
  }
  std::sort(lengths.begin(), lengths.end());
  facts.shortest = lengths.front();
  facts.median = lengths[lengths.size() / 2];
  facts.longest = lengths.back();
  facts.lengths.resize(static_cast<size_t>(facts.longest / length_bin) + 1);
  for (const int64_t length : lengths) {
    ++facts.lengths[static_cast<size_t>(length / length_bin)];
  }
  return facts;
}

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "";
}

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string format_time(double wall_time) {
  const auto seconds = static_cast<std::time_t>(wall_time);
  std::tm parts = {};
  gmtime_r(&seconds, &parts);
  std::string text(sizeof("2026-11-27T12:00:00Z"), '\0');
  text.resize(std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts));
  return text;
}

void write_run_facts(const std::string& output, RunFacts& facts) {
  facts.updated = format_time(wall_time());
  Json json = {{"program", facts.program},
               {"started", facts.started},
               {"updated", facts.updated},
               {"state", facts.state},
               {"failure", facts.failure},
               {"steps", facts.steps},
               {"model",
                {{"path", facts.model_path},
                 {"architecture", facts.architecture},
                 {"parameters", facts.parameters},
                 {"trained_parameters", facts.trained_parameters},
                 {"layers", facts.layers},
                 {"hidden_size", facts.hidden_size},
                 {"vocabulary_size", facts.vocabulary_size}}},
               {"data", {{"length_bin", facts.length_bin}, {"train", to_json(facts.train)}}},
               {"choices", Json::object()},
               {"memory",
                {{"rows", to_json(facts.memory)},
                 {"planned_bytes", facts.planned_bytes},
                 {"budget_bytes", facts.budget_bytes},
                 {"peak_bytes", facts.peak_bytes}}},
               {"machine", {{"processor", facts.processor}, {"threads", facts.threads}}},
               {"samples", to_json(facts.samples)},
               {"sample_seconds", facts.sample_seconds}};
  if (facts.held_out) {
    json["data"]["held_out"] = to_json(*facts.held_out);
  }
  for (const auto& [name, value] : facts.choices) {
    json["choices"][name] = value;
  }
  write_json(path_of(output), json);
}

void recall_run_facts(const std::string& output, RunFacts& facts) {
  if (!std::filesystem::exists(path_of(output))) {
    return;
  }
  try {
    const MappedFile file(path_of(output));
    const Json json = parse_strict_json(file.text(), file.path());
    std::vector<SampleAnswer> samples;
    for (const Json& entry : json.at("samples").elements()) {
      SampleAnswer& sample = samples.emplace_back();
      sample.prompt = entry.at("prompt").string();
      sample.expected = entry.at("expected").string();
      if (const Json* before = entry.find("before")) {
        sample.before = before->string();
      }
      if (const Json* after = entry.find("after")) {
        sample.after = after->string();
      }
    }
    facts.started = json.at("started").string();
    facts.sample_seconds = json.at("sample_seconds").number();
    facts.samples = std::move(samples);
  } catch (const std::exception&) {
    return;
  }
}

void record_failure(const std::string& output, const std::string& what) noexcept {
  try {
    Json json;
    {
      const MappedFile file(path_of(output));
      json = parse_strict_json(file.text(), file.path());
    }
    // A run that never started in this process keeps the end it had.
    if (json.at("state") == "running") {
      json["state"] = "failed";
      json["failure"] = what;
      json["updated"] = format_time(wall_time());
      write_json(path_of(output), json);
    }
  } catch (...) {  // NOLINT(bugprone-empty-catch): the error that is on its way says more
  }
}

}  // namespace flashloom
