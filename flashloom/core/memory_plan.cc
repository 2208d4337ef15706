#include "flashloom/core/memory_plan.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <utility>

#include "flashloom/core/error.h"
#include "flashloom/core/progress.h"

namespace flashloom {
namespace {

constexpr int64_t kAlignment = 64;            // a cache line, and the widest vector
constexpr int64_t kLimit = int64_t{1} << 50;  // beyond any machine: catches sizes from bad files
constexpr auto kKinds = static_cast<size_t>(MemoryKind::process) + 1;

}  // namespace

std::string_view memory_kind_name(MemoryKind kind) {
  constexpr std::array<std::string_view, kKinds> kNames = {"weights",   "adapters",    "gradients",
                                                           "optimizer", "activations", "workspace",
                                                           "data",      "process"};
  return kNames[static_cast<size_t>(kind)];
}

MemoryPlan::Id MemoryPlan::add(std::string name, MemoryKind kind, DType dtype,
                               std::initializer_list<int64_t> shape) {
  int64_t bytes = static_cast<int64_t>(dtype_bytes(dtype));
  for (const int64_t size : shape) {
    if (size < 0 || (size > 0 && bytes > kLimit / size)) {
      throw InvalidArgument("MemoryPlan::add", name, "sizes of less than 2^50 bytes together",
                            fmt::format("a dimension of {}", size));
    }
    bytes *= size;
  }
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  int64_t& end = open_scope_ > 0 ? open_bytes_ : fixed_bytes_;
  buffers_.push_back(
      {std::move(name), kind, ConstTensorView(nullptr, dtype, shape), bytes, end, open_scope_});
  end += bytes;
  scope_bytes_ = std::max(scope_bytes_, open_bytes_);
  return static_cast<Id>(buffers_.size()) - 1;
}

void MemoryPlan::add_outside(std::string name, int64_t bytes) {
  if (bytes < 0 || bytes > kLimit) {
    throw InvalidArgument("MemoryPlan::add_outside", name, "0 to 2^50 bytes",
                          fmt::format("{}", bytes));
  }
  outside_.push_back({std::move(name), bytes});
}

void MemoryPlan::begin_scope() {
  if (open_scope_ > 0) {
    throw InvalidArgument("MemoryPlan::begin_scope", "scope", "no open scope", "one that is open");
  }
  open_scope_ = ++scopes_;
  open_bytes_ = 0;
}

void MemoryPlan::end_scope() {
  open_scope_ = 0;
}

TensorView MemoryPlan::shape(Id id) const {
  const ConstTensorView& buffer = buffers_.at(static_cast<size_t>(id)).view;
  TensorView view;
  view.dtype = buffer.dtype;
  view.rank = buffer.rank;
  view.shape = buffer.shape;
  view.strides = buffer.strides;
  return view;
}

int64_t MemoryPlan::total_bytes() const {
  return arena_bytes() + kind_bytes(MemoryKind::process);
}

int64_t MemoryPlan::kind_bytes(MemoryKind kind) const {
  int64_t bytes = 0;
  if (kind == MemoryKind::process) {
    for (const Outside& outside : outside_) {
      bytes += outside.bytes;
    }
  }
  for (const Buffer& buffer : buffers_) {
    if (buffer.kind == kind && buffer.scope == 0) {
      bytes += buffer.bytes;
    }
  }
  return bytes;
}

std::vector<MemoryPlan::Row> MemoryPlan::rows() const {
  std::vector<Row> rows;
  for (size_t k = 0; k < kKinds; ++k) {
    const auto kind = static_cast<MemoryKind>(k);
    int64_t count = 0;
    const Buffer* largest = nullptr;
    for (const Buffer& buffer : buffers_) {
      if (buffer.kind == kind && buffer.scope == 0) {
        ++count;
        if (largest == nullptr || buffer.bytes > largest->bytes) {
          largest = &buffer;
        }
      }
    }
    if (count > 0) {
      rows.push_back({memory_kind_name(kind), kind_bytes(kind), count,
                      fmt::format("{} {}", largest->name, describe(largest->view))});
    }
  }
  if (scope_bytes_ > 0) {
    rows.push_back({"shared", scope_bytes_, scopes_, ""});
  }
  for (const Outside& outside : outside_) {
    rows.push_back({memory_kind_name(MemoryKind::process), outside.bytes, 0, outside.name});
  }
  return rows;
}

std::string MemoryPlan::table() const {
  std::string text;
  for (const Row& row : rows()) {
    const std::string what = row.largest.empty() ? fmt::format("shared by {} stages", row.buffers)
                             : row.buffers == 0
                                 ? row.largest
                                 : fmt::format("{} buffers, largest {}", row.buffers, row.largest);
    text += fmt::format("  {:<12} {:>9}  {}\n", row.kind, format_bytes(row.bytes), what);
  }
  return text + fmt::format("  {:<12} {:>9}\n", "together", format_bytes(total_bytes()));
}

void MemoryPlan::require(int64_t budget) const {
  if (total_bytes() > budget) {
    throw OutOfMemory(fmt::format("this run needs {} of memory and {} are free\n{}",
                                  format_bytes(total_bytes()), format_bytes(budget), table()));
  }
}

Arena::Arena(const MemoryPlan& plan) : bytes_(std::max<int64_t>(plan.arena_bytes(), kAlignment)) {
  void* memory = mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw OutOfMemory(fmt::format("could not map {}\n{}", format_bytes(bytes_), plan.table()));
  }
  madvise(memory, static_cast<size_t>(bytes_), MADV_HUGEPAGE);  // fewer TLB misses; may be refused
  memory_ = static_cast<std::byte*>(memory);
  views_.reserve(plan.buffers_.size());
  for (const MemoryPlan::Buffer& buffer : plan.buffers_) {
    views_.push_back(plan.shape(static_cast<MemoryPlan::Id>(views_.size())));
    views_.back().data = memory_ + (buffer.scope > 0 ? plan.fixed_bytes_ : 0) + buffer.offset;
  }
}

Arena::~Arena() {
  if (memory_ != nullptr) {
    munmap(memory_, static_cast<size_t>(bytes_));
  }
}

Arena::Arena(Arena&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)),
      bytes_(other.bytes_),
      views_(std::move(other.views_)) {}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(bytes_, other.bytes_);
  std::swap(views_, other.views_);
  return *this;
}

TensorView Arena::operator[](MemoryPlan::Id id) const {
  return views_.at(static_cast<size_t>(id));
}

int64_t available_memory_bytes() {
  int64_t available = static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  std::ifstream info("/proc/meminfo");
  std::string key;
  int64_t kilobytes = 0;
  std::string unit;
  while (info >> key >> kilobytes >> unit) {
    if (key == "MemAvailable:") {
      available = kilobytes * 1024;
      break;
    }
  }
  int64_t limit = 0;
  int64_t used = 0;
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit) {  // "max" does not parse: no limit
    std::ifstream("/sys/fs/cgroup/memory.current") >> used;
    available = std::min(available, limit - used);
  }
  return available;
}

}  // namespace flashloom
