#pragma once

#include <cstdint>

#include "flashloom/cuda/tile/panel_layout.h"
#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/divisor.h"
#include "flashloom/ops/attention/sm90/backward_score.cuh"
#include "flashloom/ops/attention/sm90/schedule.cuh"

// Parameters, tile shapes and shared memory of the backward kernel.

namespace flashloom::sm90 {

/// A tensor (batch, heads, rows, dim) or packed (heads, rows, dim), or without dim; strides in
/// elements, 0 for the batch of a packed one.
struct RowTensor {
  void* data;
  int64_t batch, head, row;
  bool wide;  // f32 where the kernel's storage is 16-bit

  template <class T>
  __device__ __forceinline__ T* at(int64_t b, int64_t h, int64_t r) const {
    return static_cast<T*>(data) + b * batch + h * head + r * row;
  }
};

/// In which order blocks take the tiles of keys: a number of key-value heads is worked on together.
struct BackwardOrder {
  int32_t alone;    // in turn: the first heads, of which one comes after the other, late keys first
  int32_t section;  // of how many heads; 0: tiles of a head are neighbours
  int32_t sections;     // in all
  Divisor blocks;       // of a section
  Divisor width, last;  // heads of a section, of the last one
  Divisor tiles;        // of a head
  Divisor heads;        // of a sequence
};

struct BackwardWork;

/// How the last tiles of keys are split: behind `whole` ones, `tiles` of `parts` blocks each.
struct BackwardSplit {
  int32_t whole, parts, tiles;
};

struct BackwardParams {
  Problem problem;
  int32_t columns, value_columns;  // of q and k, of v and dout; a kernel's may be more
  RowTensor dk, dv;
  const float* lse;       // by place: in powers of two; +inf where nothing is to come
  const float* delta;     // by place: sum of dout * out, less dlse, plus dentropy * entropy
  const float* dentropy;  // by place, in general scores; or null
  float* dq;              // by place: sums in the order of accumulator fragments
  int32_t* added;         // by place, one a warpgroup, zero: how far the sums are; or null
  int32_t* ended;         // by key-value head, zero: takes 2 of each block that is done; or null
  int32_t* ready;         // by key-value head: places whose rows are prepared; or null: all are
  int32_t ready_count;    // what that comes to
  BackwardWork* works;    // where blocks stay: of all tiles of keys, in their order
  int32_t* next;          // and the first that no block has taken yet, and rows.drawn
  int32_t work_count, staying;  // tiles of keys; blocks
  int32_t whole;                // tiles of keys that are a block's
  Divisor parts;                // blocks of one of those behind
  float* part_sums;             // their dk and dv
  int32_t* part_counts;         // two a tile, zero: how many parts are there
  float scale;
  bool accumulate;      // add to dk, dv (f32)
  bool sends;           // dk and dv leave through the copy engine
  bool in_turn;         // sums in a fixed order
  bool turns_early;     // blocks meet tiles of queries long after those before them
  bool cyclic;          // key tiles start at different queries: sums in any order, no window
  int32_t query_tiles;  // places a head
  int32_t key_tiles;    // blocks a key-value head
  int32_t circle;       // key tiles of a head that start around a circle of queries
  BackwardOrder order;
  BackwardScore score;
  BackwardBlocks blocks;
};

/// Whether blocks add to dQ in a fixed order; `maybe`: where params.in_turn says so.
enum class BackwardTurns { never, maybe, always };

/// How a kernel works.
struct BackwardForm {
  int dim;       // columns: 64, 96 or 128; the copy engine fills those that tensors lack with zeros
  int queries;   // a tile; keys are 128, 64 a warpgroup
  bool swapped;  // dQ is computed transposed, half of the columns a warpgroup
  bool late;     // dQ of a step is computed beside the products of the next one, so that the
                 // warpgroups need not meet and one's exponentials run beside the other's products
  bool lists;    // may walk the lists of a block mask
  bool adjusts;  // softcap, ALiBi, dropout, exclude_self, dentropy
  bool exact;    // tensors have just these columns
  BackwardTurns turns;
  bool stays = false;  // blocks stay, one a multiprocessor, and take tiles of keys as they come
  bool parts = false;  // several blocks walk a tile of keys
};

template <class T_, BackwardForm kForm>
struct BackwardShape {
  using T = T_;
  static constexpr int kDim = kForm.dim;
  static constexpr int kStages = 2;
  static constexpr int kKeys = 128;
  static constexpr int kQueries = kForm.queries;
  static constexpr bool kSwapped = kForm.swapped;
  static constexpr bool kLate = kForm.late;
  static constexpr bool kLists = kForm.lists;
  static constexpr bool kAdjusts = kForm.adjusts;
  static constexpr bool kExact = kForm.exact;
  static constexpr bool kStays = kForm.stays;
  static_assert(!kStays || (kLate && !kAdjusts));
  static_assert(!kLate || !kLists || kStays);
  // Whether lists of a block mask are told in the ring of Q, a whole tile a step and a step that is
  // none at the end; or, where blocks stay, in pieces of 16 queries.
  static constexpr bool kTold = kLists && !kStays;
  static constexpr bool kPieces = kLists && kStays;
  // Whether V is an operand from registers, which spares shared memory, the busiest part.
  // With lists no register is left for it.
  static constexpr bool kHoldsValues = kStays && kDim == 64 && !kLists;
  // Whether dK and dV leave through shared memory, behind the loop. Kernels that have no register
  // left store them from registers: their loops would be compiled otherwise, and spill. At 96
  // columns there is no room but that of the next keys.
  static constexpr bool kSends = !(kDim == 128 && (kLate || kAdjusts)) && kDim != 96;
  // Whether they leave through the place of V before the block takes its next keys.
  static constexpr bool kSendsInPlace =
      kStays && kDim == 128 && !kSends && kForm.turns != BackwardTurns::maybe;
  // Whether the next scores are issued before a step's dK is ready.
  static constexpr bool kAhead = kDim == 64 && (kLate || kLists);
  // Whether the next step is found while a step's last products run.
  static constexpr bool kSeeks = kLate && !kAhead;
  // Whether the other warpgroup is told of dS behind the issue of the step's products: it needs it
  // a step later.
  static constexpr bool kTellsBehind = kLate && kDim > 64;
  // Whether threads that add may ask early whose turn is next; at 96 columns they would spill.
  static constexpr bool kAsksEarly = kDim != 96;
  // Whether a block walks a part of the queries of its tile of keys. The kernel for the others is
  // as it were without: its loop would be compiled otherwise (0.98).
  static constexpr bool kParts = kForm.parts;
  static constexpr bool kSplits =
      kLate && kDim == 128 && !kStays && !kParts && kForm.turns == BackwardTurns::never;

  static constexpr BackwardForm parts_form() {
    BackwardForm form = kForm;
    form.parts = true;
    return form;
  }

  // Whether exponentials wait for dP.
  static constexpr bool kExpsBehind = kDim == 128 && (kStays || kParts);
  // Whether the warpgroups take turns with the exponentials, so that they stay half a step apart.
  static constexpr bool kAlternates = kLate && kDim == 64;
  // Whether a warpgroup passes a first step that hides all from it: under a causal mask that is
  // four of five for the second one with tiles of 80 queries, two of three with 96.
  static constexpr bool kPassesHidden = kLate && kDim > 64 && !kLists;
  // Buffers for dS; tiles of 80 queries leave room for two.
  static constexpr int kScoreBuffers = !kLate ? 2 : kDim == 64 ? 3 : 2;
  static constexpr BackwardTurns kTurns = kForm.turns;
  // A warpgroup's part of dQ: 64 columns x queries if swapped, else 64 queries x 64 columns. The
  // warpgroups split the columns; with 64 columns they split the queries.
  static constexpr bool kSplitQueries = !kSwapped && kQueries == 128;
  static constexpr int kQueryColumns = !kSwapped ? 64 : kDim > 64 ? kQueries : kQueries / 2;
  static_assert(kDim > 64 || kSwapped || kQueries == 128);
  // Of 96 columns the second warpgroup's part has 32 rows (it multiplies 32 more, whatever lies
  // behind K, and leaves them out).
  static constexpr bool kHalfRows = kDim == 96;
  static_assert(!kHalfRows || kSwapped);
  // In panels of 64, 96 columns would take the room of 128.
  using Panels = cuda::PanelLayout<kHalfRows ? 64 : 128>;
  static constexpr int kPanels =
      (kDim + static_cast<int>(Panels::kColumns) - 1) / static_cast<int>(Panels::kColumns);
  // Those of dS: of 16 queries where a tile is no whole number of 64.
  using ScorePanels = cuda::PanelLayout<kQueries % 64 != 0 ? 32 : 128>;
  static_assert(kQueries % 64 == 0 || (kSwapped && kDim > 64));
  // Buffers a warpgroup for its part of dQ on its way to memory; one more where it may wait for
  // its turn.
  static constexpr int kSumStages = kTurns == BackwardTurns::never || kLate ? 1 : 2;
  static constexpr int kThreads = 384;
  // Producers that walk lists or sum in either mode need more than 24 registers. A block has 504
  // for three warpgroups (168 a thread): asking for more waits for ever.
  static constexpr bool kLeanProducer = !kTold && kTurns != BackwardTurns::maybe;
  static constexpr int kProducerRegisters = kLeanProducer ? 24 : 40;
  static constexpr int kConsumerRegisters = kLeanProducer ? 240 : 232;
  static_assert(kProducerRegisters + 2 * kConsumerRegisters <= 504);
  static constexpr uint32_t kKeyBytes = kKeys * kPanels * Panels::kRowBytes;
  static constexpr uint32_t kQueryBytes = kQueries * kPanels * Panels::kRowBytes;
  static constexpr uint32_t kScoreBytes = kKeys * kQueries * 2;
  static constexpr uint32_t kRowBytes = kQueries * 4;
  static constexpr uint32_t kBarrierBytes = 1024;
  // Tiles start at multiples of 1024 bytes.
  static constexpr uint32_t kRowArrays = kAdjusts ? 3 : 2;  // lse, delta, dentropy
  static constexpr uint32_t kRowsBytes = (kRowArrays * kStages * kRowBytes + 1023) / 1024 * 1024;
  // A warpgroup's part of dQ.
  static constexpr uint32_t kSumBytes = 64 * kQueryColumns * 4;
  static constexpr uint32_t kSharedBytes =
      kBarrierBytes + kRowsBytes + 2 * kKeyBytes + 2 * kStages * kQueryBytes +
      kScoreBuffers * kScoreBytes + 2 * kSumStages * kSumBytes - (kHalfRows ? kSumBytes / 2 : 0);
  static_assert(!kHalfRows || kSumStages == 1);
  static_assert(kSharedBytes <= 227 * 1024);

  static __device__ __forceinline__ uint32_t sum_bytes(int32_t group) {
    return kHalfRows && group == 1 ? kSumBytes / 2 : kSumBytes;
  }
};

/// A block's keys and the tiles of queries [begin, end) that may see them.
struct alignas(16) BackwardWork {
  int32_t batch, head, key;  // key-value head; first key
  int32_t begin, end;
  int32_t first;  // where the walk starts; it wraps at the end
  Sequence sequence;
};

/// One step of a block: a tile of queries of a query head.
struct BackwardStep {
  int32_t t;  // -1: no more
  int32_t head;
  int32_t partial;  // block of bits to look at, or -1
};

/// One step where blocks stay and walk lists: what one or two blocks of the mask have of a tile of
/// queries, in pieces of 16. Behind the last block a tile may hold less.
struct BackwardPieces {
  int32_t count[2];    // pieces
  int32_t head[2];     // query head
  int32_t row[2];      // first query
  int32_t partial[2];  // block of bits to look at, or -1
  int32_t rank[2];     // in turn: how many tiles of keys add before
};

/// What of it hides something from consumers.
struct BackwardHidden {
  int32_t count;
  int32_t row[2];
  int32_t partial[2];
};

/// What a warp that walks lists keeps in shared memory, since its registers are few.
struct BackwardLead {
  uint32_t tiles;  // of keys, done
  int32_t steps;   // of this one, done
  uint32_t place;  // steps of all
};

template <class Shape>
struct BackwardBarriers {
  uint64_t k_full, v_full;
  uint64_t q_full[Shape::kStages], q_empty[Shape::kStages];
  uint64_t dout_full[Shape::kStages], dout_empty[Shape::kStages];
  uint64_t ds_full[Shape::kScoreBuffers], ds_empty[Shape::kScoreBuffers];    // where dQ is late
  uint64_t sum_full[2][Shape::kSumStages], sum_empty[2][Shape::kSumStages];  // by warpgroup
  BackwardStep steps[Shape::kStages];  // of each tile of q, where lists may be walked
  uint64_t work_full[2], work_empty[2], k_empty, v_empty;  // where blocks stay
  // Of the last steps and the next ones; and at 2 parity + stage of their tile of q.
  BackwardPieces pieces[Shape::kPieces ? 8 : 1];
  BackwardPieces dout_pieces[Shape::kPieces ? 4 : 1];  // the same, of dout
  BackwardHidden hidden[Shape::kPieces ? 4 : 1];
  BackwardLead lead[Shape::kPieces ? 4 : 2];  // a warp each
  int32_t parts_before[2];                    // of a tile's parts, by warpgroup
};

template <class Shape>
struct BackwardShared {
  char* base;

  __device__ __forceinline__ BackwardBarriers<Shape>& barriers() const {
    return *reinterpret_cast<BackwardBarriers<Shape>*>(base);
  }

  __device__ __forceinline__ BackwardWork& work(uint32_t buffer = 0) const {
    static_assert(sizeof(BackwardBarriers<Shape>) + 2 * sizeof(BackwardWork) <=
                  Shape::kBarrierBytes);
    return reinterpret_cast<BackwardWork*>(base +
                                           Shape::kBarrierBytes)[-1 - static_cast<int>(buffer)];
  }

  __device__ __forceinline__ float* lse(uint32_t stage) const {
    return reinterpret_cast<float*>(base + Shape::kBarrierBytes + stage * Shape::kRowBytes);
  }

  __device__ __forceinline__ float* delta(uint32_t stage) const {
    return lse(Shape::kStages + stage);
  }

  __device__ __forceinline__ float* dentropy(uint32_t stage) const {
    static_assert(Shape::kAdjusts);
    return delta(Shape::kStages + stage);
  }

  __device__ __forceinline__ char* k() const {
    return base + Shape::kBarrierBytes + Shape::kRowsBytes;
  }

  __device__ __forceinline__ char* v() const { return k() + Shape::kKeyBytes; }

  __device__ __forceinline__ char* q(uint32_t stage) const {
    return v() + Shape::kKeyBytes + stage * Shape::kQueryBytes;
  }

  __device__ __forceinline__ char* dout(uint32_t stage) const { return q(Shape::kStages + stage); }

  __device__ __forceinline__ char* ds(uint32_t buffer) const {
    return q(2 * Shape::kStages) + buffer * Shape::kScoreBytes;
  }

  /// Where a warpgroup leaves its part of dQ.
  __device__ __forceinline__ char* sum(int32_t group, uint32_t stage) const {
    return ds(Shape::kScoreBuffers) + (group * Shape::kSumStages + stage) * Shape::kSumBytes;
  }
};

}  // namespace flashloom::sm90
