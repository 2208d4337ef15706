#include "rtl/test/float_model.h"

#include <utility>

namespace flashloom::rtl {
namespace {

int bit_length(unsigned __int128 x) {
  int bits = 0;
  for (; x != 0; x >>= 1) {
    ++bits;
  }
  return bits;
}

}  // namespace

Value decode(uint32_t word, Format format) {
  Value value;
  const uint32_t stored = word & ((1u << format.mantissa_bits) - 1);
  const uint32_t biased = (word >> format.mantissa_bits) & ((1u << format.exponent_bits) - 1);
  value.negative = (word >> (format.bits() - 1)) & 1;
  if (biased == (1u << format.exponent_bits) - 1) {
    value.nan = stored != 0;
    value.infinite = stored == 0;
  } else if (biased != 0) {
    value.magnitude = stored + (1u << format.mantissa_bits);
    value.exponent = static_cast<int>(biased) - format.bias() - format.mantissa_bits;
  }
  return value;
}

uint32_t encode(const Value& value, Format format) {
  if (value.nan) {
    return format.quiet_nan();
  }
  if (value.infinite) {
    return format.infinity(value.negative);
  }
  const uint32_t zero = uint32_t(value.negative) << (format.bits() - 1);
  if (value.magnitude == 0) {
    return zero;
  }
  const int precision = format.mantissa_bits + 1;
  unsigned __int128 magnitude = value.magnitude;
  int exponent = value.exponent;
  const int excess = bit_length(magnitude) - precision;
  if (excess > 0) {
    const unsigned __int128 unit = static_cast<unsigned __int128>(1) << excess;
    const unsigned __int128 rest = magnitude % unit;
    magnitude /= unit;
    if (2 * rest > unit || (2 * rest == unit && magnitude % 2 == 1)) {
      ++magnitude;
    }
  } else {
    magnitude <<= -excess;
  }
  exponent += excess;
  if (bit_length(magnitude) > precision) {
    magnitude /= 2;
    ++exponent;
  }
  const int biased = exponent + format.mantissa_bits + format.bias();
  if (biased <= 0) {
    return zero;
  }
  if (biased >= (1 << format.exponent_bits) - 1) {
    return format.infinity(value.negative);
  }
  const uint32_t stored = static_cast<uint32_t>(magnitude) - (1u << format.mantissa_bits);
  return zero | (static_cast<uint32_t>(biased) << format.mantissa_bits) | stored;
}

Value negated(Value value) {
  value.negative = !value.negative;
  return value;
}

Value multiply(const Value& a, const Value& b) {
  Value product;
  product.negative = a.negative != b.negative;
  product.nan = a.nan || b.nan || (a.infinite && b.zero()) || (a.zero() && b.infinite);
  product.infinite = !product.nan && (a.infinite || b.infinite);
  if (!product.nan && !product.infinite) {
    product.magnitude = a.magnitude * b.magnitude;
    product.exponent = a.exponent + b.exponent;
  }
  return product;
}

Value add(const Value& a, const Value& b) {
  Value sum;
  sum.nan = a.nan || b.nan || (a.infinite && b.infinite && a.negative != b.negative);
  if (sum.nan) {
    return sum;
  }
  if (a.infinite || b.infinite) {
    return a.infinite ? a : b;
  }
  if (a.magnitude == 0 && b.magnitude == 0) {
    sum.negative = a.negative && b.negative;
    return sum;
  }
  if (a.magnitude == 0 || b.magnitude == 0) {
    return a.magnitude == 0 ? b : a;
  }
  const bool a_higher = a.exponent >= b.exponent;
  const Value& high = a_higher ? a : b;
  Value low = a_higher ? b : a;
  if (high.exponent - low.exponent > 70) {
    low.magnitude = 1;
    low.exponent = high.exponent - 70;
  }
  const __int128 high_part = static_cast<__int128>(high.magnitude)
                             << (high.exponent - low.exponent);
  const __int128 low_part = static_cast<__int128>(low.magnitude);
  const __int128 total =
      (high.negative ? -high_part : high_part) + (low.negative ? -low_part : low_part);
  sum.negative = total < 0;
  sum.magnitude = static_cast<unsigned __int128>(total < 0 ? -total : total);
  sum.exponent = low.exponent;
  return sum;
}

Value fma(const Value& a, const Value& b, const Value& c) {
  return add(multiply(a, b), c);
}

uint32_t reciprocal(uint32_t word, Format format) {
  const Value x = decode(word, format);
  Value result;
  result.nan = x.nan;
  result.negative = x.negative;
  result.infinite = x.zero();
  if (!x.nan && !x.infinite && !x.zero()) {
    const unsigned __int128 one = static_cast<unsigned __int128>(1) << 100;
    result.magnitude = (one / x.magnitude) | (one % x.magnitude != 0 ? 1 : 0);
    result.exponent = -100 - x.exponent;
  }
  return encode(result, format);
}

Exp2 split(const Value& x, Format format, int pieces) {
  Exp2 result{};
  const int top = bit_length(x.magnitude) + x.exponent;  // |x| < 2^top
  result.huge = x.nan || x.infinite || (x.magnitude != 0 && top > format.exponent_bits);
  if (result.huge) {
    return result;
  }
  // |x| = magnitude / 2^places: below one everything is fraction.
  const int places = -x.exponent;
  unsigned __int128 whole = 0;
  unsigned __int128 fraction = x.magnitude;
  if (places <= 0) {
    whole = x.magnitude << -places;
    fraction = 0;
  } else if (places < 128) {
    whole = x.magnitude >> places;
    fraction = x.magnitude - (whole << places);
  }
  result.fraction = Value{.negative = x.negative, .magnitude = fraction, .exponent = x.exponent};
  // A fraction with more than 100 places is below every piece but the first.
  result.piece = places > 0 && places < 100
                     ? static_cast<int>((fraction * static_cast<unsigned>(pieces)) >> places)
                     : 0;
  const int power = static_cast<int>(whole);
  result.whole_power = Value{.magnitude = 1, .exponent = x.negative ? -power : power};
  return result;
}

Value exp2(const Exp2& x, bool nan, const Value& slope, const Value& intercept) {
  if (nan || x.huge) {
    return Value{.nan = nan};
  }
  return multiply(x.whole_power, fma(x.fraction, slope, intercept));
}

}  // namespace flashloom::rtl
