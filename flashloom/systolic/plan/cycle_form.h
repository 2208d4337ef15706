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

  constexpr bool operator==(const ArrayShape&) const = default;
};

/// A cycle as a linear form of the shape, so that one table serves every array, C++ and
/// SystemVerilog.
struct CycleForm {
  int rows = 0;
  int columns = 0;
  int pieces = 0;
  int divider_latency = 0;
  int constant = 0;

  constexpr int at(const ArrayShape& shape) const {
    return rows * shape.rows + columns * shape.columns + pieces * shape.pieces +
           divider_latency * shape.divider_latency + constant;
  }

  constexpr CycleForm operator+(const CycleForm& other) const {
    return {rows + other.rows, columns + other.columns, pieces + other.pieces,
            divider_latency + other.divider_latency, constant + other.constant};
  }

  constexpr CycleForm operator+(int cycles) const {
    CycleForm sum = *this;
    sum.constant += cycles;
    return sum;
  }

  constexpr CycleForm operator-(int cycles) const { return *this + -cycles; }

  friend constexpr CycleForm operator*(int factor, const CycleForm& form) {
    return {factor * form.rows, factor * form.columns, factor * form.pieces,
            factor * form.divider_latency, factor * form.constant};
  }

  constexpr bool operator==(const CycleForm&) const = default;
};

/// "2*R + P + 4", an expression of SystemVerilog.
std::string describe(const CycleForm& form);

}  // namespace flashloom::systolic
