// a * b + c, rounded once to the accumulator's format.
module fsa_plain_mac #(
    parameter int EE = 5,
    parameter int EM = 10,
    parameter int AE = 8,
    parameter int AM = 23
) (
    input  logic [EE+EM:0] a,
    input  logic [EE+EM:0] b,
    input  logic [AE+AM:0] c,
    output logic [AE+AM:0] out
);
  localparam int X = AE + 3;
  logic a_nan, a_inf, a_zero, a_sign, b_nan, b_inf, b_zero, b_sign, c_nan, c_inf, c_zero, c_sign;
  logic signed [EE:0] a_exponent, b_exponent;
  logic [EM:0] a_mantissa, b_mantissa;
  logic signed [AE:0] c_exponent;
  logic [AM:0] c_mantissa;
  fsa_unpack #(.E(EE), .M(EM)) unpack_a (
      .word(a), .is_nan(a_nan), .is_inf(a_inf), .is_zero(a_zero), .sign(a_sign),
      .exponent(a_exponent), .mantissa(a_mantissa));
  fsa_unpack #(.E(EE), .M(EM)) unpack_b (
      .word(b), .is_nan(b_nan), .is_inf(b_inf), .is_zero(b_zero), .sign(b_sign),
      .exponent(b_exponent), .mantissa(b_mantissa));
  fsa_unpack #(.E(AE), .M(AM)) unpack_c (
      .word(c), .is_nan(c_nan), .is_inf(c_inf), .is_zero(c_zero), .sign(c_sign),
      .exponent(c_exponent), .mantissa(c_mantissa));
  logic is_nan, is_inf, is_zero, sign;
  logic signed [X-1:0] exponent;
  logic [AM+2:0] mantissa;
  fsa_fma #(.ME(EE), .MM(EM), .AE(AE), .AM(AM), .X(X)) fma (
      .a_nan(a_nan), .a_inf(a_inf), .a_sign(a_sign), .a_exponent(a_exponent),
      .a_mantissa(a_mantissa), .b_nan(b_nan), .b_inf(b_inf), .b_sign(b_sign),
      .b_exponent(b_exponent), .b_mantissa(b_mantissa), .c_nan(c_nan), .c_inf(c_inf),
      .c_sign(c_sign), .c_exponent(c_exponent), .c_mantissa(c_mantissa), .is_nan(is_nan),
      .is_inf(is_inf), .is_zero(is_zero), .sign(sign), .exponent(exponent), .mantissa(mantissa));
  fsa_round #(.X(X), .I(AM + 3), .E(AE), .M(AM)) round (
      .is_nan(is_nan), .is_inf(is_inf), .is_zero(is_zero), .sign(sign), .exponent(exponent),
      .mantissa(mantissa), .word(out));
  logic unused;
  assign unused = &{1'b0, a_zero, b_zero, c_zero};
endmodule
