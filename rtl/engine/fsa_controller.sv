// Issues matrix instructions to slots in rotation and drives the array's borders from what is
// active in any of them. Windows of different slots never drive one signal at once.
`include "fsa_config.sv"

module fsa_controller (
    input  logic                                clock,
    input  logic                                reset,
    input  logic                                valid,  // its semaphores can be had
    input  logic [95:0]                         instruction,
    input  logic                                serial,  // every instruction waits for all before
    output logic                                open,    // the plan lets an instruction enter
    output logic                                ready,   // this one issues, if valid
    output logic                                busy,
    output logic                                release_valid,
    output logic [4:0]                          release_semaphore,
    output logic [2:0]                          release_value,
    // Control bits of each row at column 0.
    output logic [fsa_config::R*fsa_config::CONTROL_BITS-1:0] controls,
    output logic [fsa_config::SIGNALS-1:0]      active,
    output logic [fsa_config::PIECE_BITS-1:0]   piece,
    output logic [8:0]                          mask,
    output logic [fsa_config::SPAD_BITS-1:0]    spad_row,
    output logic                                reverse_in,
    output logic                                reverse_out,
    output logic                                delay,
    output logic [fsa_config::SUMS_BITS-1:0]    sums_row,
    output logic                                zero
);
  localparam int N = fsa_config::SLOTS;
  localparam int B = $clog2(N);
  localparam int K = fsa_config::CONTROL_BITS;
  localparam int R = fsa_config::R;
  // What a slot says to the borders, behind one another.
  localparam int W = fsa_config::SIGNALS + 3 * K + fsa_config::PIECE_BITS + 9
                     + fsa_config::SPAD_BITS + 3 + fsa_config::SUMS_BITS + 1 + 1 + 5 + 3;

  logic [B-1:0] next;  // slot of the next instruction
  logic [N-1:0] idle, free, enter;
  logic wait_previous, previous_free;
  assign wait_previous = serial || instruction[fsa_config::F_MATRIX_WAIT_PREVIOUS_WORD*32
                                               +fsa_config::F_MATRIX_WAIT_PREVIOUS_LOW];
  assign previous_free = free[next==0?B'(N-1):next-B'(1)];
  assign open = idle[next] && previous_free;
  assign ready = wait_previous ? &idle : open;
  assign busy = !(&idle);
  always_ff @(posedge clock) begin
    if (reset) next <= '0;
    else if (valid && ready) next <= next == B'(N - 1) ? '0 : next + B'(1);
  end

  genvar s;
  generate
    for (s = 0; s < N; s = s + 1) begin : slot
      logic [W-1:0] words, so_far;
      logic [fsa_config::SIGNALS-1:0] slot_active;
      logic [K-1:0] slot_parallel, slot_up, slot_down;
      logic [fsa_config::PIECE_BITS-1:0] slot_piece;
      logic [8:0] slot_mask;
      logic [fsa_config::SPAD_BITS-1:0] slot_spad_row;
      logic [fsa_config::SUMS_BITS-1:0] slot_sums_row;
      logic slot_reverse_in, slot_reverse_out, slot_delay, slot_zero, slot_release;
      logic [4:0] slot_semaphore;
      logic [2:0] slot_value;
      assign enter[s] = valid && ready && next == B'(s);
      fsa_slot one (
          .clock(clock), .reset(reset), .enter(enter[s]), .instruction(instruction),
          .idle(idle[s]), .conflict_free(free[s]), .active(slot_active),
          .parallel(slot_parallel), .up(slot_up), .down(slot_down), .piece(slot_piece),
          .mask(slot_mask), .spad_row(slot_spad_row), .reverse_in(slot_reverse_in),
          .reverse_out(slot_reverse_out), .delay(slot_delay), .sums_row(slot_sums_row),
          .zero(slot_zero), .release_valid(slot_release), .release_semaphore(slot_semaphore),
          .release_value(slot_value));
      logic reads, reads_sums, updates;
      assign reads = slot_active[fsa_config::SIGNAL_SPAD_READ];
      assign reads_sums = slot_active[fsa_config::SIGNAL_ACCUMULATOR_READ];
      assign updates = slot_active[fsa_config::SIGNAL_COMPARE_UPDATE];
      assign words = {
          slot_active, slot_parallel, slot_up, slot_down,
          slot_active[fsa_config::SIGNAL_CONSTANT_SLOPES] ? slot_piece : '0,
          updates ? slot_mask : '0,
          reads ? {slot_spad_row, slot_reverse_in, slot_reverse_out, slot_delay} : '0,
          reads_sums ? {slot_sums_row, slot_zero} : '0,
          slot_release, slot_release ? {slot_semaphore, slot_value} : 8'b0};
      if (s == 0) begin : first
        assign so_far = words;
      end else begin : more
        assign so_far = words | slot[s-1].so_far;
      end
    end
  endgenerate
  logic [K-1:0] parallel, up, down;
  assign {active, parallel, up, down, piece, mask, spad_row, reverse_in, reverse_out, delay,
          sums_row, zero, release_valid, release_semaphore, release_value} = slot[N-1].so_far;

  // Waves: row r sees `down` after r cycles and `up` after R - 1 - r.
  logic [(R-1)*K-1:0] going_down, going_up;  // the youngest in the last bits
  always_ff @(posedge clock) begin
    if (reset) begin
      going_down <= '0;
      going_up <= '0;
    end else begin
      going_down <= ((R - 1) * K)'({going_down, down});
      going_up <= ((R - 1) * K)'({going_up, up});
    end
  end
  logic [R*K-1:0] downs, ups;
  assign downs = {going_down, down};
  assign ups = {going_up, up};
  genvar r;
  generate
    for (r = 0; r < R; r = r + 1) begin : row
      assign controls[r*K+:K] = parallel | downs[r*K+:K] | ups[(R-1-r)*K+:K];
    end
  endgenerate
endmodule
