// 32 semaphores. One can be taken while it is free and holds the asked value; who releases it
// writes a value. In a cycle the matrix engine takes first, then loads, then stores; releases come
// after.
module fsa_semaphores (
    input  logic       clock,
    input  logic       reset,
    // Asks; a request that is not valid asks for nothing and can always be had.
    input  logic       matrix_asks,
    input  logic [4:0] matrix_semaphore,
    input  logic [2:0] matrix_value,
    input  logic       second_asks,
    input  logic [4:0] second_semaphore,
    input  logic [2:0] second_value,
    output logic       matrix_may,
    input  logic       matrix_takes,
    input  logic       load_asks,
    input  logic [4:0] load_semaphore,
    input  logic [2:0] load_value,
    output logic       load_may,
    input  logic       load_takes,
    input  logic       store_asks,
    input  logic [4:0] store_semaphore,
    input  logic [2:0] store_value,
    output logic       store_may,
    input  logic       store_takes,
    input  logic       matrix_releases,
    input  logic [4:0] matrix_released,
    input  logic [2:0] matrix_released_value,
    input  logic       load_releases,
    input  logic [4:0] load_released,
    input  logic [2:0] load_released_value,
    input  logic       store_releases,
    input  logic [4:0] store_released,
    input  logic [2:0] store_released_value
);
  logic [31:0] busy;
  logic [95:0] values;
  logic taken_for_load, taken_for_store;
  assign matrix_may = (!matrix_asks || (!busy[matrix_semaphore]
                                        && values[matrix_semaphore*3+:3] == matrix_value))
                      && (!second_asks || (!busy[second_semaphore]
                                           && values[second_semaphore*3+:3] == second_value));
  assign taken_for_load = matrix_takes && ((matrix_asks && matrix_semaphore == load_semaphore)
                                           || (second_asks && second_semaphore == load_semaphore));
  assign load_may = !load_asks || (!busy[load_semaphore] && !taken_for_load
                                   && values[load_semaphore*3+:3] == load_value);
  assign taken_for_store = (matrix_takes && ((matrix_asks && matrix_semaphore == store_semaphore)
                                             || (second_asks
                                                 && second_semaphore == store_semaphore)))
                           || (load_takes && load_asks && load_semaphore == store_semaphore);
  assign store_may = !store_asks || (!busy[store_semaphore] && !taken_for_store
                                     && values[store_semaphore*3+:3] == store_value);
  always_ff @(posedge clock) begin
    if (reset) begin
      busy <= '0;
      values <= '0;
    end else begin
      if (matrix_takes && matrix_asks) busy[matrix_semaphore] <= 1'b1;
      if (matrix_takes && second_asks) busy[second_semaphore] <= 1'b1;
      if (load_takes && load_asks) busy[load_semaphore] <= 1'b1;
      if (store_takes && store_asks) busy[store_semaphore] <= 1'b1;
      if (matrix_releases) begin
        busy[matrix_released] <= 1'b0;
        values[matrix_released*3+:3] <= matrix_released_value;
      end
      if (load_releases) begin
        busy[load_released] <= 1'b0;
        values[load_released*3+:3] <= load_released_value;
      end
      if (store_releases) begin
        busy[store_released] <= 1'b0;
        values[store_released*3+:3] <= store_released_value;
      end
    end
  end
endmodule
