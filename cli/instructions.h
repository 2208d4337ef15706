#pragma once

#include <string>
#include <vector>

namespace flashloom::cli {

/// Values of `--instructions`: "best", then what kernels are compiled for.
std::vector<std::string> instruction_choices();

/// Makes the kernels use these; the best of the machine by default. Returns their name. Throws
/// UsageError for what this machine does not have.
std::string choose_instructions(const std::string& flag);

}  // namespace flashloom::cli
