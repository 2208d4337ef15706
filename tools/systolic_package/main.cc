// Writes the SystemVerilog constants of the systolic array's instructions and plan:
//   systolic_package FILE

#include <fstream>
#include <iostream>

#include "flashloom/systolic/isa/verilog_package.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: systolic_package FILE\n";
    return 2;
  }
  std::ofstream file(argv[1]);
  file << flashloom::systolic::verilog_constants();
  file.close();
  if (!file) {
    std::cerr << "systolic_package: cannot write " << argv[1] << "\n";
    return 1;
  }
  return 0;
}
