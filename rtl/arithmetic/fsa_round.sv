// One rounding, to nearest even, of an exact result whose tail is jammed into its last bit. What is
// below the smallest normal number after rounding becomes a signed zero; a NaN is the positive
// quiet one.
module fsa_round #(
    parameter int X = 11,  // bits of the incoming exponent
    parameter int I = 26,  // of the incoming mantissa: leading one, M + 1 or more, sticky
    parameter int E = 8,   // exponent bits of the result
    parameter int M = 23   // stored mantissa bits of the result; I >= M + 3
) (
    input  logic                is_nan,
    input  logic                is_inf,
    input  logic                is_zero,
    input  logic                sign,
    input  logic signed [X-1:0] exponent,
    input  logic        [I-1:0] mantissa,
    output logic        [E+M:0] word
);
  localparam logic signed [X-1:0] kBias = (1 << (E - 1)) - 1;
  logic [M-1:0] kept;
  logic         half, tail, up, carry, overflow, underflow, infinite, zero;
  logic [M-1:0] stored;
  logic signed [X-1:0] rounded_exponent;
  logic [E-1:0] biased;

  assign kept = mantissa[I-2-:M];
  assign half = mantissa[I-2-M];
  assign tail = |mantissa[I-3-M:0];
  assign up = half && (tail || kept[0]);
  assign {carry, stored} = {1'b0, kept} + {{M{1'b0}}, up};
  assign rounded_exponent = exponent + $signed({{(X - 1) {1'b0}}, carry});
  assign overflow = rounded_exponent > kBias;
  assign underflow = rounded_exponent <= -kBias;
  assign biased = E'(rounded_exponent + kBias);

  assign infinite = is_inf || (overflow && !is_zero);
  assign zero = is_zero || underflow;
  always_comb begin
    if (is_nan) word = {1'b0, {E{1'b1}}, 1'b1, {(M - 1) {1'b0}}};
    else if (infinite) word = {sign, {E{1'b1}}, {M{1'b0}}};
    else if (zero) word = {sign, {E{1'b0}}, {M{1'b0}}};
    else word = {sign, biased, stored};
  end
endmodule
