// One instruction in flight: its fields, its timer, and every signal whose window the timer is in.
// Windows come from the plan's table in fsa_config, and from nowhere else.
`include "fsa_config.sv"

module fsa_slot (
    input  logic                                clock,
    input  logic                                reset,
    input  logic                                enter,
    input  logic [95:0]                         instruction,
    output logic                                idle,
    output logic                                conflict_free,  // reached, or idle
    // Signals of the borders by number, and the PE's control bits by wave.
    output logic [fsa_config::SIGNALS-1:0]      active,
    output logic [fsa_config::CONTROL_BITS-1:0] parallel,
    output logic [fsa_config::CONTROL_BITS-1:0] up,
    output logic [fsa_config::CONTROL_BITS-1:0] down,
    output logic [fsa_config::PIECE_BITS-1:0]   piece,          // of constant_slopes
    output logic [8:0]                          mask,           // of compare_update
    output logic [fsa_config::SPAD_BITS-1:0]    spad_row,
    output logic                                reverse_in,
    output logic                                reverse_out,
    output logic                                delay,
    output logic [fsa_config::SUMS_BITS-1:0]    sums_row,       // of the accumulation SRAM
    output logic                                zero,
    output logic                                release_valid,
    output logic [4:0]                          release_semaphore,
    output logic [2:0]                          release_value
);
  localparam int T = fsa_config::TIMER_BITS;
  localparam int N = fsa_config::WINDOWS;
  localparam int S = fsa_config::SIGNAL_BITS;
  localparam int SPAD = fsa_config::SPAD_BITS;
  localparam int SUMS = fsa_config::SUMS_BITS;

  // Fields of the instruction that enters.
  logic [4:0] function_in, spad_stride_in, sums_stride_in;
  logic [7:0] limit_in;
  logic [SPAD-1:0] spad_row_in;
  logic [SUMS-1:0] sums_row_in;
  fsa_matrix_fields fields (
      .instruction(instruction), .code(function_in), .spad_row(spad_row_in),
      .spad_stride(spad_stride_in), .sums_row(sums_row_in), .sums_stride(sums_stride_in),
      .limit_less_one(limit_in));

  logic [4:0] code;
  logic [T-1:0] timer;
  logic busy, causal, releases;
  logic [7:0] limit_less_one;
  logic [4:0] spad_stride, sums_stride;

  logic [2:0] planned;  // the function whose windows these are
  logic [T-1:0] last_timer, free_timer, release_timer;
  always_comb begin
    planned = fsa_config::PLANNED_AS[code[2:0]*3+:3];
    last_timer = fsa_config::LAST_TIMER[planned*T+:T];
    free_timer = fsa_config::CONFLICT_FREE[planned*T+:T];
    release_timer = fsa_config::RELEASE[planned*T+:T];
  end
  assign idle = !busy;
  assign conflict_free = !busy || timer >= free_timer;
  assign release_valid = busy && releases && timer == release_timer;

  // Cycles since a window began, modulo 2^T, tell whether it still lasts.
  logic [N-1:0] now;
  logic [N*T-1:0] since;
  genvar w;
  generate
    for (w = 0; w < N; w = w + 1) begin : window
      assign since[w*T+:T] = timer - fsa_config::WINDOW_FIRST[w*T+:T];
      assign now[w] = busy && planned == fsa_config::WINDOW_FUNCTION[w*3+:3]
                      && since[w*T+:T] <= fsa_config::WINDOW_LENGTH[w*T+:T];
    end
  endgenerate

  // How far the window of the slopes, or of the updates, is: piece and key.
  logic [(1<<S)-1:0] border, moving_parallel, moving_up, moving_down;
  logic [T-1:0] since_slopes, since_update;
  always_comb begin
    border = '0;
    moving_parallel = '0;
    moving_up = '0;
    moving_down = '0;
    since_slopes = '0;
    since_update = '0;
    for (int k = 0; k < N; k = k + 1) begin
      if (now[k]) begin
        case (fsa_config::WINDOW_WAVE[k*2+:2])
          2'(fsa_config::WAVE_NONE): border[fsa_config::WINDOW_SIGNAL[k*S+:S]] = 1'b1;
          2'(fsa_config::WAVE_PARALLEL):
            moving_parallel[fsa_config::WINDOW_SIGNAL[k*S+:S]] = 1'b1;
          2'(fsa_config::WAVE_UP): moving_up[fsa_config::WINDOW_SIGNAL[k*S+:S]] = 1'b1;
          default: moving_down[fsa_config::WINDOW_SIGNAL[k*S+:S]] = 1'b1;
        endcase
        if (fsa_config::WINDOW_SIGNAL[k*S+:S] == S'(fsa_config::SIGNAL_CONSTANT_SLOPES))
          since_slopes = since[k*T+:T];
        if (fsa_config::WINDOW_SIGNAL[k*S+:S] == S'(fsa_config::SIGNAL_COMPARE_UPDATE))
          since_update = since[k*T+:T];
      end
    end
  end
  assign active = border[fsa_config::SIGNALS-1:0];
  assign parallel = moving_parallel[fsa_config::SIGNAL_MAC+:fsa_config::CONTROL_BITS];
  assign up = moving_up[fsa_config::SIGNAL_MAC+:fsa_config::CONTROL_BITS];
  assign down = moving_down[fsa_config::SIGNAL_MAC+:fsa_config::CONTROL_BITS];
  assign piece = since_slopes[fsa_config::PIECE_BITS-1:0];
  always_comb begin
    mask = causal ? 9'(since_update) : '0;
    if (code == 5'(fsa_config::FUNCTION_SCORE_LIMIT) && since_update > T'(limit_less_one))
      mask = '1;
  end

  always_ff @(posedge clock) begin
    if (reset) begin
      busy <= 1'b0;
      code <= '0;
      timer <= '0;
      causal <= 1'b0;
      releases <= 1'b0;
      limit_less_one <= '0;
      spad_row <= '0;
      spad_stride <= '0;
      sums_row <= '0;
      sums_stride <= '0;
      reverse_in <= 1'b0;
      reverse_out <= 1'b0;
      delay <= 1'b0;
      zero <= 1'b0;
      release_semaphore <= '0;
      release_value <= '0;
    end else if (enter) begin
      busy <= 1'b1;
      code <= function_in;
      timer <= '0;
      causal <= instruction[fsa_config::F_MATRIX_CAUSAL_WORD*32+fsa_config::F_MATRIX_CAUSAL_LOW];
      releases <= instruction[fsa_config::F_MATRIX_RELEASE_WORD*32
                              +fsa_config::F_MATRIX_RELEASE_LOW];
      limit_less_one <= limit_in;
      spad_row <= spad_row_in;
      spad_stride <= spad_stride_in;
      sums_row <= sums_row_in;
      sums_stride <= sums_stride_in;
      reverse_in <= instruction[fsa_config::F_MATRIX_REVERSE_IN_WORD*32
                                +fsa_config::F_MATRIX_REVERSE_IN_LOW];
      reverse_out <= instruction[fsa_config::F_MATRIX_REVERSE_OUT_WORD*32
                                 +fsa_config::F_MATRIX_REVERSE_OUT_LOW];
      delay <= instruction[fsa_config::F_MATRIX_DELAY_WORD*32+fsa_config::F_MATRIX_DELAY_LOW];
      zero <= instruction[fsa_config::F_MATRIX_ZERO_WORD*32+fsa_config::F_MATRIX_ZERO_LOW];
      release_semaphore <= instruction[fsa_config::F_MATRIX_SEMAPHORE_WORD*32
                                       +fsa_config::F_MATRIX_SEMAPHORE_LOW+:5];
      release_value <= instruction[fsa_config::F_MATRIX_RELEASE_VALUE_WORD*32
                                   +fsa_config::F_MATRIX_RELEASE_VALUE_LOW+:3];
    end else if (busy) begin
      busy <= timer != last_timer;
      timer <= timer + T'(1);
      if (active[fsa_config::SIGNAL_SPAD_READ])
        spad_row <= spad_row + SPAD'($signed(spad_stride));
      if (active[fsa_config::SIGNAL_ACCUMULATOR_READ])
        sums_row <= sums_row + SUMS'($signed(sums_stride));
    end
  end
  // Widths are those of all fields and signals; small arrays need less.
  logic unused;
  assign unused = &{1'b0, border, moving_parallel, moving_up, moving_down, since_slopes,
                    limit_less_one, sums_stride, spad_stride};
endmodule
