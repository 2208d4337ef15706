#ifndef FLASHLOOM_OPS_ATTENTION_FLASHLOOM_ATTENTION_H_
#define FLASHLOOM_OPS_ATTENTION_FLASHLOOM_ATTENTION_H_

/* C interface of attention, for ctypes and foreign frameworks. attention.h is the contract; fields
 * that are zero are not used. Nothing allocates, synchronises or keeps a pointer. */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Element types. */
enum {
  FLASHLOOM_F32 = 0,
  FLASHLOOM_F64 = 1,
  FLASHLOOM_BF16 = 2,
  FLASHLOOM_F16 = 3,
  FLASHLOOM_I32 = 7
};

/* A tensor in the caller's memory; strides count elements. rank 0: not given. */
typedef struct FlashloomTensor {
  void* data;
  int32_t dtype;
  int32_t rank;
  int64_t shape[6];
  int64_t strides[6];
} FlashloomTensor;

typedef struct FlashloomAttention {
  size_t size; /* sizeof(FlashloomAttention) of the caller's header */

  int32_t device_kind; /* 0 CPU, 1 CUDA */
  int32_t device_index;
  void* stream; /* cudaStream_t */
  void* workspace;
  size_t workspace_bytes;

  FlashloomTensor q, k, v; /* (B, H, S, D) or packed (H, T, D) */
  FlashloomTensor out;
  FlashloomTensor lse;                  /* (B, H, S) f32; forward: optional */
  FlashloomTensor dout, dlse;           /* backward */
  FlashloomTensor dq, dk, dv;           /* backward */
  FlashloomTensor cu_query, cu_key;     /* (B + 1) i32 */
  FlashloomTensor used_query, used_key; /* (B) i32 */
  FlashloomTensor sinks;                /* (H) f32 */
  int64_t max_query, max_key;

  int64_t left, right; /* visible keys around a query; -1: all. Causal: left -1, right 0 */
  int32_t has_offset;  /* 0: the last query stands beside the last key */
  int32_t deterministic;
  int64_t offset;  /* position of query 0 */
  float scale;     /* 0: 1 / sqrt(D) */
  int32_t backend; /* 0 automatic, 1 reference, 2 cpu, 3 portable, 4 sm90 */
} FlashloomAttention;

/* 0, or 1 invalid argument, 2 unsupported, 3 anything else; then `message` (may be null) says what
 * was expected. */
int flashloom_attention_forward(const FlashloomAttention* call, char* message,
                                size_t message_bytes);
int flashloom_attention_backward(const FlashloomAttention* call, char* message,
                                 size_t message_bytes);

/* Bytes of workspace from shapes alone; data may be null. */
int flashloom_attention_forward_workspace(const FlashloomAttention* call, size_t* bytes,
                                          char* message, size_t message_bytes);
int flashloom_attention_backward_workspace(const FlashloomAttention* call, size_t* bytes,
                                           char* message, size_t message_bytes);

#ifdef __cplusplus
}
#endif

#endif /* FLASHLOOM_OPS_ATTENTION_FLASHLOOM_ATTENTION_H_ */
