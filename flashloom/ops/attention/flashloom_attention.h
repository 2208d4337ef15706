#ifndef FLASHLOOM_OPS_ATTENTION_FLASHLOOM_ATTENTION_H_
#define FLASHLOOM_OPS_ATTENTION_FLASHLOOM_ATTENTION_H_

/* C interface of attention, for ctypes and foreign frameworks. attention.h is the contract; fields
 * that are zero are not used. Nothing allocates, synchronises or keeps a pointer.
 *
 * Structs start with their size and only ever grow at the end: a library takes the structs of older
 * headers (what they lack is zero) and those of newer ones if what it does not know is zero. Clear
 * a struct before filling it. */

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
  FLASHLOOM_E4M3 = 4,
  FLASHLOOM_U8 = 6,
  FLASHLOOM_I32 = 7,
  FLASHLOOM_U64 = 9
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

  /* Fields from here on came later; structs that end above are still taken. */

  FlashloomTensor entropy;              /* (B, H, S) f32; forward: out, backward: in */
  FlashloomTensor dentropy;             /* backward: optional (B, H, S) f32 */
  FlashloomTensor dsinks;               /* backward: optional (H) f32 */
  FlashloomTensor alibi_slopes;         /* (H) or (B, H) f32 */
  FlashloomTensor bias;                 /* (B or 1, H or 1, S_q or 1, S_k) */
  FlashloomTensor dbias;                /* backward: optional, like bias, f32 */
  FlashloomTensor dropout_seed;         /* (1) u64 */
  FlashloomTensor dropout_offset;       /* optional (1) u64 */
  FlashloomTensor page_table;           /* (B, pages a sequence) i32 */
  FlashloomTensor query_positions;      /* (B, H, S_q) i32 */
  FlashloomTensor key_positions;        /* (B, G, S_k) i32 */
  FlashloomTensor query_count;          /* (B, H) i32 */
  FlashloomTensor key_count;            /* (B, G) i32 */
  FlashloomTensor output_index;         /* (B, H, S_q) i32 */
  FlashloomTensor query_bucket_offsets; /* (B, H, buckets + 1) i32 */
  FlashloomTensor key_bucket_offsets;   /* (B, G, buckets + 1) i32 */
  /* Block mask in compressed rows; the transposed lists are for the backward pass. */
  FlashloomTensor block_row_offsets;        /* (B or 1, H or 1, block rows + 1) i32 */
  FlashloomTensor block_columns;            /* (B or 1, H or 1, entries) i32 */
  FlashloomTensor block_partial;            /* optional, like block_columns: -1 full, else index */
  FlashloomTensor block_bits;               /* (partial blocks, block_rows, block_keys / 8) u8 */
  FlashloomTensor block_column_offsets;     /* (B or 1, H or 1, block columns + 1) i32 */
  FlashloomTensor block_transposed_rows;    /* (B or 1, H or 1, entries) i32 */
  FlashloomTensor block_transposed_partial; /* like block_transposed_rows, with block_partial */
  FlashloomTensor gate_threshold;           /* (H, n) f32 */
  FlashloomTensor gate_kept;                /* out, optional */
  FlashloomTensor gate_dropped_mass;        /* out, optional (B, H, S_q) f32 */
  FlashloomTensor status;                   /* optional (1) i32 on the device */
  FlashloomTensor q_scale, k_scale, v_scale, out_scale; /* 8-bit storage, f32; GPU: slow loops */
  FlashloomTensor amax_out;                             /* out, optional (1) f32 */

  int64_t page_size;
  int64_t query_start, key_start; /* with has_starts: positions of row 0 of q and of k */
  int64_t block_rows, block_keys;
  int64_t gate_rows, gate_keys; /* 0: 128 and 64 */
  float softcap;
  float dropout_probability;
  float entropy_order;        /* 0: 1, Shannon's */
  float multiprocessor_share; /* 0: 1, the whole GPU */
  int32_t has_starts;
  int32_t exclude_self;
  int32_t accumulate; /* gradients are added to what is there */
  int32_t splits;
  int32_t gate_kind; /* 0 none, 1 absolute, 2 relative */
  int32_t reserved;  /* 0 */
} FlashloomAttention;

/* Joins parts of one attention over disjoint sets of keys. */
typedef struct FlashloomAttentionMerge {
  size_t size; /* sizeof(FlashloomAttentionMerge) of the caller's header */

  int32_t device_kind;
  int32_t device_index;
  void* stream;

  FlashloomTensor out;      /* (B, H, S, E) or (H, T, E) */
  FlashloomTensor lse;      /* optional, f32 */
  FlashloomTensor parts;    /* (P, B, H, S, E) f32 */
  FlashloomTensor part_lse; /* (P, B, H, S) f32 */
  FlashloomTensor sinks;    /* optional (H) f32 */
} FlashloomAttentionMerge;

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

int flashloom_attention_merge(const FlashloomAttentionMerge* call, char* message,
                              size_t message_bytes);

/* The backend that a call will take (numbered as in FlashloomAttention); `message` then says why
 * not a faster one. */
int flashloom_attention_forward_backend(const FlashloomAttention* call, int32_t* backend,
                                        char* message, size_t message_bytes);
int flashloom_attention_backward_backend(const FlashloomAttention* call, int32_t* backend,
                                         char* message, size_t message_bytes);

/* Waits for the stream; 1 if a kernel met bad index data since the status word was last cleared. */
int flashloom_attention_check(const FlashloomAttention* call, char* message, size_t message_bytes);

#ifdef __cplusplus
}
#endif

#endif /* FLASHLOOM_OPS_ATTENTION_FLASHLOOM_ATTENTION_H_ */
