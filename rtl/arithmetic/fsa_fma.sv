// a * b + c, exact up to a sticky bit, for the rounders behind it.
//
// One wide word holds the product at its right end and, AM + 4 binary places further left, the
// addend, which is then shifted right to its weight. If it would have to go left, it stays: the
// product is below its guard bits and only its being there counts. F fraction bits keep every bit
// of an addend that the product can cancel.
//
// The multiplicand `a` need not be normalised (fsa_split's fractions are not), as long as no bit of
// c is more than F places below a_exponent + b_exponent.
module fsa_fma #(
    parameter int ME = 5,   // multiplicands: exponent and stored mantissa bits
    parameter int MM = 10,
    parameter int AE = 8,   // addend and result
    parameter int AM = 23,
    parameter int X = 11    // bits of the result's exponent
) (
    input  logic                 a_nan,
    input  logic                 a_inf,
    input  logic                 a_sign,
    input  logic signed [ME:0]   a_exponent,
    input  logic        [MM:0]   a_mantissa,
    input  logic                 b_nan,
    input  logic                 b_inf,
    input  logic                 b_sign,
    input  logic signed [ME:0]   b_exponent,
    input  logic        [MM:0]   b_mantissa,
    input  logic                 c_nan,
    input  logic                 c_inf,
    input  logic                 c_sign,
    input  logic signed [AE:0]   c_exponent,
    input  logic        [AM:0]   c_mantissa,
    output logic                 is_nan,
    output logic                 is_inf,
    output logic                 is_zero,
    output logic                 sign,
    output logic signed [X-1:0]  exponent,
    output logic        [AM+2:0] mantissa    // leading one, AM bits, guard, sticky
);
  localparam int F = (2 * MM > AM + 2) ? 2 * MM : AM + 2;
  localparam int W = F + AM + 6;        // addend's leading one down to the product's last, sticky
  localparam int B = $clog2(W);         // bits of a shift by up to W - 1
  localparam logic signed [X-1:0] kAhead = X'(AM + 4);
  localparam logic signed [X-1:0] kLast = X'(W - 1);

  logic a_zero, b_zero, c_zero, product_zero, product_inf, product_sign, subtract;
  assign a_zero = ~|a_mantissa;
  assign b_zero = ~|b_mantissa;
  assign c_zero = ~|c_mantissa;
  assign product_zero = a_zero || b_zero;
  assign product_inf = a_inf || b_inf;
  assign product_sign = a_sign ^ b_sign;
  assign subtract = product_sign ^ c_sign;

  // The addend at its weight.
  logic signed [X-1:0] product_exponent, places;
  logic stay, lost;
  logic [B-1:0] shift;
  logic [W-1:0] addend;
  assign product_exponent = X'(a_exponent) + X'(b_exponent);
  assign places = product_exponent - X'(c_exponent) + kAhead;
  assign stay = product_zero || (places < 0 && !c_zero);
  assign shift = stay ? '0 : (places > kLast) ? kLast[B-1:0] : places[B-1:0];
  always_comb begin
    addend = {c_mantissa, {(W - AM - 1) {1'b0}}};
    lost = 1'b0;
    for (int k = 0; k < B; k = k + 1) begin
      if (shift[k]) begin
        lost = lost || |(addend & ((W'(1) << (1 << k)) - W'(1)));
        addend = addend >> (1 << k);
      end
    end
    addend[0] = addend[0] || lost;
  end

  // Sum or difference, and its magnitude.
  logic [2*MM+1:0] product;
  logic [W-1:0] product_placed, magnitude;
  logic [W:0] sum;
  logic negative;
  assign product = {{(MM + 1) {1'b0}}, a_mantissa} * {{(MM + 1) {1'b0}}, b_mantissa};
  assign product_placed = {{(W - F - 3) {1'b0}}, product, {(F - 2 * MM + 1) {1'b0}}};
  assign sum = {1'b0, product_placed} + ({1'b0, addend} ^ {(W + 1) {subtract}})
               + {{W{1'b0}}, subtract};
  assign negative = sum[W];
  assign magnitude = negative ? -sum[W-1:0] : sum[W-1:0];

  // Leading one to the top, a power of two at a time.
  logic [W-1:0] normal;
  logic [B-1:0] zeros;
  always_comb begin
    normal = magnitude;
    for (int k = B - 1; k >= 0; k = k - 1) begin
      zeros[k] = (normal >> (W - (1 << k))) == '0;
      if (zeros[k]) normal = normal << (1 << k);
    end
  end
  assign exponent = (stay ? X'(c_exponent) : product_exponent + kAhead)
                    - $signed({{(X - B) {1'b0}}, zeros});
  assign mantissa = {normal[W-1-:AM+2], |normal[W-AM-3:0]};

  logic cancelled;
  assign cancelled = !normal[W-1];
  assign is_nan = a_nan || b_nan || c_nan || (product_inf && product_zero)
                  || (product_inf && c_inf && subtract);
  assign is_inf = product_inf || c_inf;
  assign is_zero = cancelled && !is_inf;
  always_comb begin
    if (c_inf) sign = c_sign;
    else if (product_inf) sign = product_sign;
    else if (product_zero && c_zero) sign = product_sign && c_sign;
    else if (cancelled) sign = 1'b0;
    else sign = negative ? c_sign : product_sign;
  end
endmodule
