#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

// wgmma.mma_async m64nNk16 with f32 accumulators and bf16 or f16 operands. An accumulator is
// float[N / 2] a thread: element (row, column) of the 64 x N tile lies in thread
// 32 * (row / 16) + 4 * (row % 8) + (column % 8) / 2 at
// index 4 * (column / 8) + 2 * (row / 8 % 2) + column % 2.

namespace flashloom::cuda {

/// Before the first wgmma and after any ordinary access to accumulators or A registers.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most kPending committed groups run.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Keeps the compiler from moving accesses to registers of a running wgmma across this point.
template <int kCount>
__device__ __forceinline__ void wgmma_hold(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    asm volatile("" : "+f"(registers[i])::"memory");
  }
}

template <int kCount>
__device__ __forceinline__ void wgmma_hold(uint32_t (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    asm volatile("" : "+r"(registers[i])::"memory");
  }
}

/// Which dimension of an operand in shared memory is contiguous: the reduced one (kReduced, also
/// called K-major) or the other.
enum class Major : int { kReduced = 0, kOther = 1 };

/// d = a b (+ d if accumulate), for T = __nv_bfloat16 or __half.
///   from_shared:    a, b by descriptors
///   from_registers: a in four registers, the layout of two neighbouring 8-column groups of an
///                   accumulator converted to T
template <class T, int kN>
struct Wgmma;

// Operand lists cannot be made by templates: lists of 8 registers and their placeholders.
#define FLASHLOOM_F8(i)                                                                       \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define FLASHLOOM_F32(i) \
  FLASHLOOM_F8(i), FLASHLOOM_F8(i + 8), FLASHLOOM_F8(i + 16), FLASHLOOM_F8(i + 24)
#define FLASHLOOM_P32A                                                                \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22" \
  ",%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define FLASHLOOM_P16A "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define FLASHLOOM_P8B ",%32,%33,%34,%35,%36,%37,%38,%39"
#define FLASHLOOM_P8C ",%40,%41,%42,%43,%44,%45,%46,%47"
#define FLASHLOOM_P8D ",%48,%49,%50,%51,%52,%53,%54,%55"
#define FLASHLOOM_P16D ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define FLASHLOOM_P8E ",%64,%65,%66,%67,%68,%69,%70,%71"
#define FLASHLOOM_P8F ",%72,%73,%74,%75,%76,%77,%78,%79"
#define FLASHLOOM_P8G ",%80,%81,%82,%83,%84,%85,%86,%87"
#define FLASHLOOM_P8H ",%88,%89,%90,%91,%92,%93,%94,%95"
#define FLASHLOOM_P32I                                                                     \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113" \
  ",%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define FLASHLOOM_P64 FLASHLOOM_P32A FLASHLOOM_P8B FLASHLOOM_P8C FLASHLOOM_P16D

// i0 … i5 are the numbers of the operands that follow the accumulators.
#define FLASHLOOM_WGMMA(T, type, n, places, registers, i0, i1, i2, i3, i4, i5, i6)                \
  template <>                                                                                     \
  struct Wgmma<T, n> {                                                                            \
    static constexpr int kRegisters = n / 2;                                                      \
    template <Major kMajorA, Major kMajorB>                                                       \
    static __device__ __forceinline__ void from_shared(float (&d)[n / 2], uint64_t a, uint64_t b, \
                                                       int accumulate) {                          \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" i2                                        \
                   ", 0;\n"                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" places    \
                   "}, %" i0 ", %" i1 ", p, 1, 1, %" i3 ", %" i4 ";\n}\n"                         \
                   : registers                                                                    \
                   : "l"(a), "l"(b), "r"(accumulate), "n"(static_cast<int>(kMajorA)),             \
                     "n"(static_cast<int>(kMajorB)));                                             \
    }                                                                                             \
    template <Major kMajorB>                                                                      \
    static __device__ __forceinline__ void from_registers(float (&d)[n / 2], uint32_t a0,         \
                                                          uint32_t a1, uint32_t a2, uint32_t a3,  \
                                                          uint64_t b, int accumulate) {           \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" i5                                        \
                   ", 0;\n"                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" places    \
                   "}, {%" i0 ", %" i1 ", %" i2 ", %" i3 "}, %" i4 ", p, 1, 1, %" i6 ";\n}\n"     \
                   : registers                                                                    \
                   : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(accumulate),                 \
                     "n"(static_cast<int>(kMajorB)));                                             \
    }                                                                                             \
  };

#define FLASHLOOM_REGISTERS_32 FLASHLOOM_F8(0), FLASHLOOM_F8(8)
#define FLASHLOOM_REGISTERS_64 FLASHLOOM_F32(0)
#define FLASHLOOM_REGISTERS_80 FLASHLOOM_F32(0), FLASHLOOM_F8(32)
#define FLASHLOOM_REGISTERS_96 FLASHLOOM_F32(0), FLASHLOOM_F8(32), FLASHLOOM_F8(40)
#define FLASHLOOM_REGISTERS_112 FLASHLOOM_REGISTERS_96, FLASHLOOM_F8(48)
#define FLASHLOOM_REGISTERS_128 FLASHLOOM_F32(0), FLASHLOOM_F32(32)
#define FLASHLOOM_REGISTERS_144 FLASHLOOM_REGISTERS_128, FLASHLOOM_F8(64)
#define FLASHLOOM_REGISTERS_160 FLASHLOOM_REGISTERS_144, FLASHLOOM_F8(72)
#define FLASHLOOM_REGISTERS_176 FLASHLOOM_REGISTERS_160, FLASHLOOM_F8(80)
#define FLASHLOOM_REGISTERS_192 FLASHLOOM_REGISTERS_176, FLASHLOOM_F8(88)
#define FLASHLOOM_REGISTERS_256 FLASHLOOM_REGISTERS_192, FLASHLOOM_F32(96)

#define FLASHLOOM_WGMMA_ALL(T, type)                                                               \
  FLASHLOOM_WGMMA(T, type, 32, FLASHLOOM_P16A, FLASHLOOM_REGISTERS_32, "16", "17", "18", "19",     \
                  "20", "21", "22")                                                                \
  FLASHLOOM_WGMMA(T, type, 64, FLASHLOOM_P32A, FLASHLOOM_REGISTERS_64, "32", "33", "34", "35",     \
                  "36", "37", "38")                                                                \
  FLASHLOOM_WGMMA(T, type, 80, FLASHLOOM_P32A FLASHLOOM_P8B, FLASHLOOM_REGISTERS_80, "40", "41",   \
                  "42", "43", "44", "45", "46")                                                    \
  FLASHLOOM_WGMMA(T, type, 96, FLASHLOOM_P32A FLASHLOOM_P8B FLASHLOOM_P8C, FLASHLOOM_REGISTERS_96, \
                  "48", "49", "50", "51", "52", "53", "54")                                        \
  FLASHLOOM_WGMMA(T, type, 112, FLASHLOOM_P32A FLASHLOOM_P8B FLASHLOOM_P8C FLASHLOOM_P8D,          \
                  FLASHLOOM_REGISTERS_112, "56", "57", "58", "59", "60", "61", "62")               \
  FLASHLOOM_WGMMA(T, type, 128, FLASHLOOM_P64, FLASHLOOM_REGISTERS_128, "64", "65", "66", "67",    \
                  "68", "69", "70")                                                                \
  FLASHLOOM_WGMMA(T, type, 144, FLASHLOOM_P64 FLASHLOOM_P8E, FLASHLOOM_REGISTERS_144, "72", "73",  \
                  "74", "75", "76", "77", "78")                                                    \
  FLASHLOOM_WGMMA(T, type, 160, FLASHLOOM_P64 FLASHLOOM_P8E FLASHLOOM_P8F,                         \
                  FLASHLOOM_REGISTERS_160, "80", "81", "82", "83", "84", "85", "86")               \
  FLASHLOOM_WGMMA(T, type, 176, FLASHLOOM_P64 FLASHLOOM_P8E FLASHLOOM_P8F FLASHLOOM_P8G,           \
                  FLASHLOOM_REGISTERS_176, "88", "89", "90", "91", "92", "93", "94")               \
  FLASHLOOM_WGMMA(T, type, 192,                                                                    \
                  FLASHLOOM_P64 FLASHLOOM_P8E FLASHLOOM_P8F FLASHLOOM_P8G FLASHLOOM_P8H,           \
                  FLASHLOOM_REGISTERS_192, "96", "97", "98", "99", "100", "101", "102")            \
  FLASHLOOM_WGMMA(                                                                                 \
      T, type, 256,                                                                                \
      FLASHLOOM_P64 FLASHLOOM_P8E FLASHLOOM_P8F FLASHLOOM_P8G FLASHLOOM_P8H FLASHLOOM_P32I,        \
      FLASHLOOM_REGISTERS_256, "128", "129", "130", "131", "132", "133", "134")

FLASHLOOM_WGMMA_ALL(__nv_bfloat16, "bf16")
FLASHLOOM_WGMMA_ALL(__half, "f16")

#undef FLASHLOOM_WGMMA_ALL
#undef FLASHLOOM_WGMMA
#undef FLASHLOOM_REGISTERS_32
#undef FLASHLOOM_REGISTERS_64
#undef FLASHLOOM_REGISTERS_80
#undef FLASHLOOM_REGISTERS_96
#undef FLASHLOOM_REGISTERS_112
#undef FLASHLOOM_REGISTERS_128
#undef FLASHLOOM_REGISTERS_144
#undef FLASHLOOM_REGISTERS_160
#undef FLASHLOOM_REGISTERS_176
#undef FLASHLOOM_REGISTERS_192
#undef FLASHLOOM_REGISTERS_256
#undef FLASHLOOM_P64
#undef FLASHLOOM_P32A
#undef FLASHLOOM_P16A
#undef FLASHLOOM_P8B
#undef FLASHLOOM_P8C
#undef FLASHLOOM_P8D
#undef FLASHLOOM_P32I
#undef FLASHLOOM_P16D
#undef FLASHLOOM_P8E
#undef FLASHLOOM_P8F
#undef FLASHLOOM_P8G
#undef FLASHLOOM_P8H
#undef FLASHLOOM_F8
#undef FLASHLOOM_F32

}  // namespace flashloom::cuda
