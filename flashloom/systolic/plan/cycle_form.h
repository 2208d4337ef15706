#pragma once

#include <compare>
#include <string>

namespace flashloom::systolic {

/// What the cycles of the plan depend on.
struct ArrayShape {
  int rows = 8;              // R: head dimension, keys of a tile
  int columns = 8;           // C: queries of a tile
  int pieces = 8;            // P: chords of exp2
  int divider_latency = 15;  // L: cycles of a reciprocal
  int pe_depth = 1;          // S: stages of a PE's multiply-add, cycles of a hop up or down
  bool shadow = false;       // PEs have a second register for queries: they load beside the work

  constexpr bool operator==(const ArrayShape&) const = default;
};

/// A cycle as a form of the shape, so that one table serves every array, C++ and SystemVerilog.
struct CycleForm {
  int rows = 0;
  int columns = 0;
  int pieces = 0;
  int divider_latency = 0;
  int depth = 0;
  int depth_rows = 0;  // of S·R: a way through the array
  int shadow = 0;      // with a shadow register
  int constant = 0;

  constexpr int at(const ArrayShape& shape) const {
    return rows * shape.rows + columns * shape.columns + pieces * shape.pieces +
           divider_latency * shape.divider_latency + depth * shape.pe_depth +
           depth_rows * shape.pe_depth * shape.rows + (shape.shadow ? shadow : 0) + constant;
  }

  /// The same for PEs of one stage without a shadow register: the published array and the RTL.
  constexpr CycleForm published() const {
    CycleForm form = *this;
    form.rows += depth_rows;
    form.constant += depth;
    form.depth = form.depth_rows = form.shadow = 0;
    return form;
  }

  constexpr CycleForm operator+(const CycleForm& other) const {
    return {.rows = rows + other.rows,
            .columns = columns + other.columns,
            .pieces = pieces + other.pieces,
            .divider_latency = divider_latency + other.divider_latency,
            .depth = depth + other.depth,
            .depth_rows = depth_rows + other.depth_rows,
            .shadow = shadow + other.shadow,
            .constant = constant + other.constant};
  }

  constexpr CycleForm operator+(int cycles) const {
    CycleForm sum = *this;
    sum.constant += cycles;
    return sum;
  }

  constexpr CycleForm operator-(int cycles) const { return *this + -cycles; }

  constexpr CycleForm operator-(const CycleForm& other) const { return *this + -1 * other; }

  friend constexpr CycleForm operator*(int factor, const CycleForm& form) {
    return {.rows = factor * form.rows,
            .columns = factor * form.columns,
            .pieces = factor * form.pieces,
            .divider_latency = factor * form.divider_latency,
            .depth = factor * form.depth,
            .depth_rows = factor * form.depth_rows,
            .shadow = factor * form.shadow,
            .constant = factor * form.constant};
  }

  constexpr bool operator==(const CycleForm&) const = default;
};

/// "2*R + P + 4", of published() forms an expression of SystemVerilog; "2*S*R", "shadow" in others.
std::string describe(const CycleForm& form);

}  // namespace flashloom::systolic
