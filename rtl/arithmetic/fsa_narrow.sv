// An accumulator's word rounded to an element.
module fsa_narrow #(
    parameter int AE = 8,
    parameter int AM = 23,
    parameter int EE = 5,
    parameter int EM = 10
) (
    input  logic [AE+AM:0] wide,
    output logic [EE+EM:0] narrow
);
  logic is_nan, is_inf, is_zero, sign;
  logic signed [AE:0] exponent;
  logic [AM:0] mantissa;
  fsa_unpack #(.E(AE), .M(AM)) unpack (
      .word(wide), .is_nan(is_nan), .is_inf(is_inf), .is_zero(is_zero), .sign(sign),
      .exponent(exponent), .mantissa(mantissa));
  fsa_round #(.X(AE + 2), .I(AM + 3), .E(EE), .M(EM)) round (
      .is_nan(is_nan), .is_inf(is_inf), .is_zero(is_zero), .sign(sign),
      .exponent({exponent[AE], exponent}), .mantissa({mantissa, 2'b00}), .word(narrow));
endmodule
