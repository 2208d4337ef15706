#pragma once

#include <string_view>

/// The files beside this header, compiled in (cmake/EmbedFiles.cmake).
namespace flashloom::page_files {

extern const std::string_view kPageCss, kPageJs, kPlotJs;

}  // namespace flashloom::page_files
