// A row of words, reversed or not, element i delayed by i cycles or not, reversed or not. What was
// chosen with the last valid row stays chosen while its elements drain.
module fsa_delayer #(
    parameter int COUNT = 8,
    parameter int WIDTH = 16
) (
    input  logic                   clock,
    input  logic                   reset,
    input  logic                   valid,
    input  logic                   reverse_in,
    input  logic                   delay,
    input  logic                   reverse_out,
    input  logic [COUNT*WIDTH-1:0] in,
    output logic [COUNT*WIDTH-1:0] out
);
  logic kept_delay, kept_reverse, delay_now, reverse_now;
  always_ff @(posedge clock) begin
    if (reset) begin
      kept_delay <= 1'b0;
      kept_reverse <= 1'b0;
    end else if (valid) begin
      kept_delay <= delay;
      kept_reverse <= reverse_out;
    end
  end
  assign delay_now = valid ? delay : kept_delay;
  assign reverse_now = valid ? reverse_out : kept_reverse;

  logic [COUNT*WIDTH-1:0] turned, delayed, chosen;
  assign chosen = delay_now ? delayed : turned;
  genvar i;
  generate
    for (i = 0; i < COUNT; i = i + 1) begin : element
      assign turned[i*WIDTH+:WIDTH] =
          reverse_in ? in[(COUNT-1-i)*WIDTH+:WIDTH] : in[i*WIDTH+:WIDTH];
      assign out[i*WIDTH+:WIDTH] =
          reverse_now ? chosen[(COUNT-1-i)*WIDTH+:WIDTH] : chosen[i*WIDTH+:WIDTH];
      if (i == 0) begin : straight
        assign delayed[WIDTH-1:0] = turned[WIDTH-1:0];
      end else begin : late
        logic [i*WIDTH-1:0] stages;  // the youngest in the last bits
        always_ff @(posedge clock) begin
          if (reset) stages <= '0;
          else stages <= (i * WIDTH)'({stages, turned[i*WIDTH+:WIDTH]});
        end
        assign delayed[i*WIDTH+:WIDTH] = stages[i*WIDTH-1-:WIDTH];
      end
    end
  endgenerate
endmodule
