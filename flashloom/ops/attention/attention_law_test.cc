#include <gtest/gtest.h>

#include "flashloom/ops/attention/attention_test_contract.h"
#include "flashloom/ops/attention/attention_test_law.h"

// The CPU kernels under the law that the GPU kernels are held to, on the same calls.

namespace flashloom {
namespace {

using attention_test::ContractCase;
using attention_test::ContractCases;
using attention_test::Executor;
using attention_test::Law;

TEST(AttentionLaw, HoldsOnTheCpuForTheWholeContract) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const ContractCases contract(dtype, 24, 24, dtype == DType::f32 ? 7 : 8);
    for (const ContractCase& c : contract.cases()) {
      SCOPED_TRACE(c.name + ", " + std::string(dtype_name(dtype)));
      Law(c.call, true).expect(AttentionBackend::cpu, Executor());
    }
  }
}

}  // namespace
}  // namespace flashloom
