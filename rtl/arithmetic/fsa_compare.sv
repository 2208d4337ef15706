// a - b, rounded once, and the larger of both by that difference's sign: b where it is negative,
// else a. A NaN on either side gives a and a NaN; equal infinities too.
module fsa_compare #(
    parameter int E = 8,
    parameter int M = 23
) (
    input  logic [E+M:0] a,
    input  logic [E+M:0] b,
    output logic [E+M:0] maximum,
    output logic [E+M:0] difference
);
  localparam int X = E + 3;
  logic a_nan, a_inf, a_zero, a_sign, b_nan, b_inf, b_zero, b_sign;
  logic signed [E:0] a_exponent, b_exponent;
  logic [M:0] a_mantissa, b_mantissa;
  fsa_unpack #(.E(E), .M(M)) unpack_a (
      .word(a), .is_nan(a_nan), .is_inf(a_inf), .is_zero(a_zero), .sign(a_sign),
      .exponent(a_exponent), .mantissa(a_mantissa));
  fsa_unpack #(.E(E), .M(M)) unpack_b (
      .word(b), .is_nan(b_nan), .is_inf(b_inf), .is_zero(b_zero), .sign(b_sign),
      .exponent(b_exponent), .mantissa(b_mantissa));

  // a * 1 - b: the multiplier is wires.
  logic is_nan, is_inf, is_zero, sign;
  logic signed [X-1:0] exponent;
  logic [M+2:0] mantissa;
  fsa_fma #(.ME(E), .MM(M), .AE(E), .AM(M), .X(X)) fma (
      .a_nan(a_nan), .a_inf(a_inf), .a_sign(a_sign), .a_exponent(a_exponent),
      .a_mantissa(a_mantissa), .b_nan(1'b0), .b_inf(1'b0), .b_sign(1'b0), .b_exponent('0),
      .b_mantissa({1'b1, {M{1'b0}}}), .c_nan(b_nan), .c_inf(b_inf), .c_sign(!b_sign),
      .c_exponent(b_exponent), .c_mantissa(b_mantissa), .is_nan(is_nan), .is_inf(is_inf),
      .is_zero(is_zero), .sign(sign), .exponent(exponent), .mantissa(mantissa));
  fsa_round #(.X(X), .I(M + 3), .E(E), .M(M)) round (
      .is_nan(is_nan), .is_inf(is_inf), .is_zero(is_zero), .sign(sign), .exponent(exponent),
      .mantissa(mantissa), .word(difference));
  assign maximum = difference[E+M] ? b : a;
  logic unused;
  assign unused = &{1'b0, a_zero, b_zero};
endmodule
