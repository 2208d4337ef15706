// The queue of instruction words before the decoder. The host pushes them, or a program in memory
// is fetched: bursts of up to 16 words that stay within 64 bytes, as far ahead as there is room.
`include "fsa_config.sv"

module fsa_words #(
    parameter int DEPTH = fsa_config::WORD_QUEUE
) (
    input  logic        clock,
    input  logic        reset,
    input  logic        flush,          // what is in the queue, and what still comes
    input  logic        push,           // not without room
    input  logic [31:0] pushed,
    output logic [31:0] room,
    output logic        enters,         // a word, in this cycle
    input  logic        fetch,          // starts to read `count` words from `address` on
    input  logic [38:0] address,        // of a word
    input  logic [31:0] count,
    input  logic        halt,           // asks for no more
    output logic        quiet,          // memory owes nothing
    output logic        ended,          // of a fetched program nothing is left, here either
    output logic        fetch_error,    // memory answered so, in this cycle
    output logic        word_valid,
    input  logic        word_ready,
    output logic [31:0] word,
    // AXI reads of words, length less one.
    output logic        ar_valid,
    input  logic        ar_ready,
    output logic [38:0] ar_address,
    output logic [3:0]  ar_length,
    input  logic        r_valid,
    output logic        r_ready,
    input  logic [31:0] r_data,
    input  logic [1:0]  r_resp
);
  localparam int B = $clog2(DEPTH + 1);

  logic takes, leaves, asks, empty, full, dropping;
  logic [B-1:0] held, owed;  // words in the queue, and words that memory still owes
  logic [31:0] left;         // words not yet asked for
  assign takes = r_valid && r_ready;
  assign r_ready = 1'b1;  // there is room for all that was asked for
  assign enters = push || (takes && !dropping && !flush);
  assign leaves = word_valid && word_ready;
  fsa_fifo #(.WIDTH(32), .DEPTH(DEPTH)) queue (
      .clock(clock), .reset(reset || flush), .push(enters), .in(push ? pushed : r_data),
      .pop(leaves), .head(word), .empty(empty), .full(full));
  assign word_valid = !empty;
  assign room = 32'(DEPTH) - 32'(held);
  assign asks = ar_valid && ar_ready;
  assign quiet = owed == '0 && !ar_valid;
  assign fetch_error = takes && r_resp[1];

  // The next burst ends with the words, or where 64 bytes end.
  logic [4:0] to_border, length;
  logic [38:0] next_address;
  logic fits;
  assign to_border = 5'd16 - {1'b0, next_address[5:2]};
  assign length = left < 32'(to_border) ? left[4:0] : to_border;
  assign fits = 32'(held) + 32'(owed) + 32'(length) <= 32'(DEPTH);
  logic fetched;  // the program that runs
  assign ended = fetched && left == '0 && quiet && empty;
  always_ff @(posedge clock) begin
    if (reset) begin
      held <= '0;
      owed <= '0;
      left <= '0;
      next_address <= '0;
      ar_valid <= 1'b0;
      ar_address <= '0;
      ar_length <= '0;
      dropping <= 1'b0;
      fetched <= 1'b0;
    end else begin
      if (flush) held <= '0;
      else held <= held + B'(enters) - B'(leaves);
      owed <= owed + (asks ? B'(ar_length) + B'(1) : '0) - B'(takes);
      if (asks) ar_valid <= 1'b0;
      if (fetch) begin
        fetched <= count != '0;
        left <= count;
        next_address <= address;
        dropping <= 1'b0;
      end else if (halt || flush) begin
        left <= '0;
        dropping <= 1'b1;
      end else if (left != '0 && !ar_valid && fits) begin
        ar_valid <= 1'b1;
        ar_address <= next_address;
        ar_length <= 4'(length - 5'd1);
        left <= left - 32'(length);
        next_address <= next_address + {32'b0, length, 2'b0};
      end
    end
  end
  logic unused;
  assign unused = &{1'b0, full, r_resp[0]};
endmodule
