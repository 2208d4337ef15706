#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// What a buffer is for: the rows of the printed table.
enum class MemoryKind : uint8_t {
  weights,
  adapters,
  gradients,
  optimizer,
  activations,
  workspace,
  data,
  process  // what the program holds outside the arena
};

std::string_view memory_kind_name(MemoryKind kind);

/// Every buffer of a run, written down before the first step. Nothing is allocated until an Arena
/// is made from the plan, so "does it fit" is answered at once.
class MemoryPlan {
 public:
  /// A buffer's number in the plan.
  using Id = int32_t;

  /// A contiguous tensor. Throws InvalidArgument if the size overflows or is negative.
  Id add(std::string name, MemoryKind kind, DType dtype, std::initializer_list<int64_t> shape);

  /// Memory that somebody else holds, or will: it counts, but the arena has no room for it.
  void add_outside(std::string name, int64_t bytes);

  /// Buffers added between begin_scope() and end_scope() share memory with those of every other
  /// scope: only one scope's contents live at a time (workspaces of ops that run one after
  /// another).
  void begin_scope();
  void end_scope();

  /// Shape and dtype of a buffer, without memory: what Arena gives once there is one.
  TensorView shape(Id id) const;

  /// Of everything.
  int64_t total_bytes() const;

  int64_t arena_bytes() const { return fixed_bytes_ + scope_bytes_; }

  /// Without what shares memory with other stages: see shared_bytes().
  int64_t kind_bytes(MemoryKind kind) const;

  int64_t shared_bytes() const { return scope_bytes_; }

  /// What a purpose takes: a line of the table.
  struct Row {
    std::string_view kind;  // memory_kind_name(), or "shared": by stages that run one after another
    int64_t bytes = 0;
    int64_t buffers = 0;  // or stages
    std::string largest;  // buffer with its type and shape; what else the program holds
  };

  std::vector<Row> rows() const;

  /// The table: a line for each kind with bytes and number of buffers, the largest buffers, the
  /// sum.
  std::string table() const;

  /// Throws OutOfMemory, with the table, if the plan needs more than `budget` bytes.
  void require(int64_t budget) const;

 private:
  friend class Arena;

  struct Buffer {
    std::string name;
    MemoryKind kind;
    ConstTensorView view;  // shape and dtype; data is set by the arena
    int64_t bytes;         // rounded up to the alignment
    int64_t offset;        // in the fixed part, or in the scope
    int scope;             // 0: lives for the whole run
  };

  std::vector<Buffer> buffers_;

  struct Outside {
    std::string name;
    int64_t bytes;
  };

  std::vector<Outside> outside_;
  int64_t fixed_bytes_ = 0;
  int64_t scope_bytes_ = 0;  // largest scope
  int64_t open_bytes_ = 0;   // scope being written
  int open_scope_ = 0;
  int scopes_ = 0;
};

/// The memory of a plan's buffers: one zeroed, 64-byte aligned allocation.
class Arena {
 public:
  explicit Arena(const MemoryPlan& plan);
  ~Arena();
  Arena(Arena&&) noexcept;
  Arena& operator=(Arena&&) noexcept;

  /// The tensor with this number.
  TensorView operator[](MemoryPlan::Id id) const;

 private:
  std::byte* memory_ = nullptr;
  int64_t bytes_ = 0;
  std::vector<TensorView> views_;
};

/// Bytes this process may still take: the least of the machine's available memory and its cgroup's.
int64_t available_memory_bytes();

}  // namespace flashloom
