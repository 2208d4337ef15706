#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "flashloom/train/report/run_comparison.h"
#include "flashloom/train/report/run_folder.h"

namespace flashloom {

/// One HTML page that needs nothing else: no network, fonts or files. `program` is named at its
/// foot. Texts of the run reach the page as JSON in which no '<' stands, and become text nodes
/// there; a content security policy lets only the page's own script run.
std::string report_page(const RunFolder& run, std::string_view program);

/// Curves of several runs over one another, and what differed.
std::string comparison_page(std::span<const RunFolder> runs, const RunComparison& comparison,
                            std::string_view program);

/// `text` where HTML expects text or an attribute's value.
std::string escape_html(std::string_view text);

}  // namespace flashloom
