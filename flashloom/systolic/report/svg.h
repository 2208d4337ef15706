#pragma once

#include <string>
#include <string_view>

namespace flashloom::systolic {

/// A drawing that carries its own ground, readable on light and dark pages.
class Svg {
 public:
  Svg(double width, double height, std::string_view title);

  /// `kind` is a class of the style: "series0" to "series5", "faint", "edge".
  void rectangle(std::string_view kind, double x, double y, double width, double height,
                 std::string_view hover = {});
  void line(std::string_view kind, double x0, double y0, double x1, double y1);
  void circle(std::string_view kind, double x, double y, double radius,
              std::string_view hover = {});
  /// `anchor`: start, middle, end.
  void text(double x, double y, std::string_view words, std::string_view anchor = "start",
            bool small = false);

  std::string finish() const;

 private:
  std::string body_;
};

/// &, < and > as XML wants them.
std::string escape_xml(std::string_view text);

}  // namespace flashloom::systolic
