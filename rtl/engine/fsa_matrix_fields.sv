// The fields of a matrix instruction that are numbers; rows are cut to the memories' sizes.
`include "fsa_config.sv"

module fsa_matrix_fields (
    input  logic [95:0]                      instruction,
    output logic [4:0]                       code,
    output logic [fsa_config::SPAD_BITS-1:0] spad_row,
    output logic [4:0]                       spad_stride,
    output logic [fsa_config::SUMS_BITS-1:0] sums_row,
    output logic [4:0]                       sums_stride,
    output logic [7:0]                       limit_less_one
);
  assign code = instruction[fsa_config::F_MATRIX_FUNCTION_WORD*32
                            +fsa_config::F_MATRIX_FUNCTION_LOW+:5];
  assign spad_row = instruction[fsa_config::F_MATRIX_SPAD_ROW_WORD*32
                                +fsa_config::F_MATRIX_SPAD_ROW_LOW+:fsa_config::SPAD_BITS];
  assign spad_stride = instruction[fsa_config::F_MATRIX_SPAD_STRIDE_WORD*32
                                   +fsa_config::F_MATRIX_SPAD_STRIDE_LOW+:5];
  assign sums_row = instruction[fsa_config::F_MATRIX_ACCUMULATOR_ROW_WORD*32
                                +fsa_config::F_MATRIX_ACCUMULATOR_ROW_LOW+:fsa_config::SUMS_BITS];
  assign sums_stride = instruction[fsa_config::F_MATRIX_ACCUMULATOR_STRIDE_WORD*32
                                   +fsa_config::F_MATRIX_ACCUMULATOR_STRIDE_LOW+:5];
  // Stored less one, in two parts.
  assign limit_less_one = {
      instruction[fsa_config::F_MATRIX_LIMIT_WORD1*32+fsa_config::F_MATRIX_LIMIT_LOW1
                  +:8-fsa_config::F_MATRIX_LIMIT_BITS0],
      instruction[fsa_config::F_MATRIX_LIMIT_WORD*32+fsa_config::F_MATRIX_LIMIT_LOW
                  +:fsa_config::F_MATRIX_LIMIT_BITS0]};
  logic unused;
  assign unused = &{1'b0, instruction};
endmodule
