// The arithmetic of an accumulator: a * b + c, or 2^a with a local table of the linear pieces.
module fsa_accumulator_mac #(
    parameter int E = 8,
    parameter int M = 23,
    parameter int P = 8,
    parameter logic [P*(1+E+M)-1:0] SLOPES = '0,      // piece nearest zero in the last bits
    parameter logic [P*(1+E+M)-1:0] INTERCEPTS = '0
) (
    input  logic [E+M:0] a,
    input  logic [E+M:0] b,
    input  logic [E+M:0] c,
    input  logic         exp2,
    output logic [E+M:0] out
);
  localparam int L = $clog2(P);
  localparam int X = E + 3;

  logic a_nan, a_inf, a_zero, a_sign, b_nan, b_inf, b_zero, b_sign, c_nan, c_inf, c_zero, c_sign;
  logic signed [E:0] a_exponent, b_exponent, c_exponent, whole, fraction_exponent, fma_exponent;
  logic [M:0] a_mantissa, b_mantissa, c_mantissa, fraction, fma_mantissa;
  logic huge;
  logic [L-1:0] piece;
  logic [E+M:0] multiplier, addend;
  fsa_unpack #(.E(E), .M(M)) unpack_a (
      .word(a), .is_nan(a_nan), .is_inf(a_inf), .is_zero(a_zero), .sign(a_sign),
      .exponent(a_exponent), .mantissa(a_mantissa));
  fsa_split #(.E(E), .M(M), .P(P)) split (
      .sign(a_sign), .exponent(a_exponent), .mantissa(a_mantissa), .huge(huge), .whole(whole),
      .piece(piece), .fraction_exponent(fraction_exponent), .fraction(fraction));
  assign multiplier = exp2 ? SLOPES[piece*(1+E+M)+:1+E+M] : b;
  assign addend = exp2 ? INTERCEPTS[piece*(1+E+M)+:1+E+M] : c;
  fsa_unpack #(.E(E), .M(M)) unpack_b (
      .word(multiplier), .is_nan(b_nan), .is_inf(b_inf), .is_zero(b_zero), .sign(b_sign),
      .exponent(b_exponent), .mantissa(b_mantissa));
  fsa_unpack #(.E(E), .M(M)) unpack_c (
      .word(addend), .is_nan(c_nan), .is_inf(c_inf), .is_zero(c_zero), .sign(c_sign),
      .exponent(c_exponent), .mantissa(c_mantissa));
  assign fma_exponent = exp2 ? fraction_exponent : a_exponent;
  assign fma_mantissa = exp2 ? fraction : a_mantissa;

  logic sum_nan, sum_inf, sum_zero, sum_sign, is_inf, is_zero, sign;
  logic signed [X-1:0] sum_exponent, exponent;
  logic [M+2:0] mantissa;
  fsa_fma #(.ME(E), .MM(M), .AE(E), .AM(M), .X(X)) fma (
      .a_nan(a_nan), .a_inf(a_inf), .a_sign(a_sign), .a_exponent(fma_exponent),
      .a_mantissa(fma_mantissa), .b_nan(b_nan), .b_inf(b_inf), .b_sign(b_sign),
      .b_exponent(b_exponent), .b_mantissa(b_mantissa), .c_nan(c_nan), .c_inf(c_inf),
      .c_sign(c_sign), .c_exponent(c_exponent), .c_mantissa(c_mantissa), .is_nan(sum_nan),
      .is_inf(sum_inf), .is_zero(sum_zero), .sign(sum_sign), .exponent(sum_exponent),
      .mantissa(mantissa));
  assign is_inf = !exp2 && sum_inf;
  assign is_zero = exp2 ? huge : sum_zero;
  assign sign = !exp2 && sum_sign;
  assign exponent = sum_exponent + (exp2 ? X'(whole) : '0);
  fsa_round #(.X(X), .I(M + 3), .E(E), .M(M)) round (
      .is_nan(sum_nan), .is_inf(is_inf), .is_zero(is_zero), .sign(sign), .exponent(exponent),
      .mantissa(mantissa), .word(out));
  logic unused;
  assign unused = &{1'b0, a_zero, b_zero, c_zero};
endmodule
