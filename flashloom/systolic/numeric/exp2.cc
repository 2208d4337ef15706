#include "flashloom/systolic/numeric/exp2.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "flashloom/core/error.h"

namespace flashloom::systolic {

Exp2Table exp2_table(FloatFormat slope_format, FloatFormat intercept_format, int pieces) {
  const int most = most_pieces(intercept_format);
  if (pieces < 1 || pieces > most || (pieces & (pieces - 1)) != 0) {
    throw InvalidArgument("systolic", "pieces", fmt::format("a power of two up to {}", most),
                          fmt::format("{}", pieces));
  }
  Exp2Table table;
  for (int piece = 0; piece < pieces; ++piece) {
    const double x0 = -static_cast<double>(piece + 1) / pieces;
    const double y0 = std::exp2(x0);
    const double y1 = std::exp2(-static_cast<double>(piece) / pieces);
    const double slope = (y1 - y0) * pieces;
    table.slopes.push_back(round_double(slope_format, slope));
    table.intercepts.push_back(round_double(intercept_format, y0 - slope * x0));
  }
  return table;
}

uint32_t accumulator_exp2(FloatFormat format, uint32_t x, const Exp2Table& table) {
  const Exp2Split split = split_exp2(format, x, static_cast<int>(table.slopes.size()));
  const auto piece = static_cast<size_t>(split.piece);
  return round_to(format,
                  exact_exp2(split, format, table.slopes[piece], format, table.intercepts[piece]));
}

uint32_t round_double(FloatFormat format, double value) {
  Exact exact{.kind = NumberKind::finite, .sign = std::signbit(value)};
  if (std::isnan(value)) {
    exact.kind = NumberKind::nan;
  } else if (std::isinf(value)) {
    exact.kind = NumberKind::infinity;
  } else {
    int exponent = 0;
    const double fraction = std::frexp(std::abs(value), &exponent);
    exact.significand = static_cast<uint64_t>(std::ldexp(fraction, 53));
    exact.exponent = exponent - 53;
  }
  return round_to(format, exact);
}

double to_double(FloatFormat format, uint32_t bits) {
  const Exact exact = unpack(format, bits);
  double magnitude = 0;
  if (exact.kind == NumberKind::nan) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  if (exact.kind == NumberKind::infinity) {
    magnitude = std::numeric_limits<double>::infinity();
  } else if (exact.kind == NumberKind::finite) {
    magnitude =
        std::ldexp(static_cast<double>(static_cast<uint64_t>(exact.significand)), exact.exponent);
  }
  return exact.sign ? -magnitude : magnitude;
}

}  // namespace flashloom::systolic
