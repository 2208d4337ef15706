#include "flashloom/systolic/report/perfetto.h"

#include <fmt/format.h>

#include <map>
#include <string_view>
#include <vector>

namespace flashloom::systolic {
namespace {

// Transfers overlap; each goes to the first lane that is free.
class Lanes {
 public:
  int place(int64_t from, int64_t to) {
    for (size_t lane = 0; lane < free_.size(); ++lane) {
      if (free_[lane] <= from) {
        free_[lane] = to;
        return static_cast<int>(lane);
      }
    }
    free_.push_back(to);
    return static_cast<int>(free_.size()) - 1;
  }

 private:
  std::vector<int64_t> free_;
};

enum Process { array = 1, loads = 2, stores = 3 };

}  // namespace

std::string perfetto_trace(const MachineConfig& config, const Schedule& schedule) {
  std::string text = "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n";
  const auto name_process = [&](int process, std::string_view name) {
    text += fmt::format(R"({{"name":"process_name","ph":"M","pid":{},"args":{{"name":"{}"}}}},)"
                        "\n",
                        process, name);
  };
  name_process(array, fmt::format("array {} x {}", config.shape.rows, config.shape.columns));
  name_process(loads, "loads");
  name_process(stores, "stores");
  const auto slice = [&](std::string_view name, int process, int thread, int64_t from, int64_t to,
                         int instruction) {
    text += fmt::format(
        R"({{"name":"{}","ph":"X","pid":{},"tid":{},"ts":{},"dur":{},"args":{{"instruction":{}}}}},)"
        "\n",
        name, process, thread, from, to - from, instruction);
  };
  for (const MatrixIssue& issue : schedule.issues) {
    const Function function =
        schedule.program[static_cast<size_t>(issue.instruction)].matrix_function();
    slice(function_name(function), array, issue.slot, issue.start(),
          issue.start() + plan_timing(function).busy.at(config.shape), issue.instruction);
  }
  Lanes lanes[2];
  std::map<int64_t, int64_t> bytes;  // change of what is under way
  for (const DmaTransfer& transfer : schedule.transfers) {
    const Instruction& instruction = schedule.program[static_cast<size_t>(transfer.instruction)];
    const int kind = instruction.is_store() ? 1 : 0;
    const int lane = lanes[kind].place(transfer.acquired, transfer.finished + 1);
    slice(fmt::format("row {}", instruction[Field::sram_row]), kind == 0 ? loads : stores, lane,
          transfer.acquired, transfer.finished + 1, transfer.instruction);
    const int64_t size = instruction[Field::repeat] * instruction[Field::row_bytes];
    bytes[transfer.acquired] += size;
    bytes[transfer.finished + 1] -= size;
  }
  int64_t under_way = 0;
  for (const auto& [cycle, change] : bytes) {
    under_way += change;
    text += fmt::format(
        R"({{"name":"bytes under way","ph":"C","pid":{},"ts":{},"args":{{"bytes":{}}}}},)"
        "\n",
        static_cast<int>(loads), cycle, under_way);
  }
  text += fmt::format(R"({{"name":"end","ph":"i","s":"g","pid":{},"tid":0,"ts":{}}}]}})"
                      "\n",
                      static_cast<int>(array), schedule.cycles);
  return text;
}

std::string request_csv(const Schedule& schedule) {
  std::string text = "instruction,port,kind,address,bytes,issued,finished\n";
  for (const MemoryRequest& request : schedule.requests) {
    text += fmt::format("{},{},{},{},{},{},{}\n", request.instruction, request.port,
                        request.is_write ? "write" : "read", request.address, request.bytes,
                        request.issued, request.finished);
  }
  return text;
}

}  // namespace flashloom::systolic
