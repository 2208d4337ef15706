#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <thread>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/process_memory.h"
#include "flashloom/ops/linear_cross_entropy/head_for_test.h"

namespace flashloom {
namespace {

// Entries of hidden and weight are below 1, so logits are below C and within C (C + 2) u of the
// truth; a loss is a difference of two such numbers. dz is within 2 C (C + 2) u + 16 u of itself
// (the softcap's slope doubles it), its absolute sum over a row is at most 2 (1 + 2 z_loss C), and
// sums over V or T add a rounding a term.
void expect_equals_reference(Head<float> actual, const LinearCrossEntropyOptions& options) {
  Head<float> expected(actual);
  Head<float> frozen(actual);  // no dweight: another kernel
  actual.run(options);
  frozen.run(options, true, false);
  expected.run_reference(options);
  const double u = 0x1p-24;
  const auto c = static_cast<double>(actual.channels);
  const double logit = c * (c + 2) * u;
  const double loss_slope = 2 + 2 * options.z_loss * (c + 10);
  expect_near(actual.loss, expected.loss, loss_slope * (logit + 16 * u * (c + 10)));
  const double terms = static_cast<double>(std::max(actual.vocabulary, actual.tokens));
  const double gradient = std::fabs(options.gradient_scale) * 2 *
                          (1 + 2 * options.z_loss * (c + 10)) * (4 * logit + 32 * u + terms * u);
  expect_near(frozen.loss, expected.loss, loss_slope * (logit + 16 * u * (c + 10)));
  expect_near(actual.dhidden, expected.dhidden, gradient);
  expect_near(frozen.dhidden, expected.dhidden, gradient);
  expect_near(actual.dweight, expected.dweight,
              gradient * static_cast<double>(actual.tokens) / 3 + u * terms);
}

TEST(LinearCrossEntropy, EqualsTheReference) {
  for (const auto [tokens, channels, vocabulary] :
       {std::array<int64_t, 3>{1, 1, 1}, {2, 3, 2}, {17, 24, 255}, {40, 16, 257}, {9, 33, 1000}}) {
    SCOPED_TRACE(testing::Message() << tokens << " " << channels << " " << vocabulary);
    expect_equals_reference(Head<float>(tokens, channels, vocabulary), {});
    expect_equals_reference(Head<float>(tokens, channels, vocabulary, 5), {.gradient_scale = 0.1f});
  }
}

TEST(LinearCrossEntropy, EqualsTheReferenceOverSeveralChunksAndSlices) {
  // 800 loss-bearing rows exceed the largest chunk; 11,000 columns make slices of two tiles.
  Head<float> head(1200, 8, 11000);
  for (size_t t = 0; t < 100; ++t) {
    head.labels[t] = static_cast<int32_t>(10999 - t);
  }
  expect_equals_reference(head, {.gradient_scale = 0.01f});
}

TEST(LinearCrossEntropy, TheGradientOfHiddenAloneKeepsNoLogits) {
  // Five tiles a slice.
  Head<float> head(600, 8, 41000);
  const int64_t bytes = linear_cross_entropy_workspace_bytes(600, 8, 41000, true, false);
  EXPECT_LT(bytes, linear_cross_entropy_workspace_bytes(600, 8, 41000, true) / 2);
  Head<float> expected(head);
  expected.run({}, true, false);
  std::vector<std::byte> workspace(static_cast<size_t>(bytes), std::byte{0xff});
  const auto run = [&](TensorView dweight, const LinearCrossEntropyOptions& options) {
    linear_cross_entropy(head.loss_view(), head.dhidden.view, dweight, head.hidden.view,
                         head.weight.view, head.labels_view(), workspace, options);
  };
  run({}, {});
  EXPECT_EQ(head.dhidden.memory, expected.dhidden.memory);
  EXPECT_THROW(run(head.dweight.view, {}), InvalidArgument);
  EXPECT_THROW(run({}, {.filter = 0.1f}), InvalidArgument);
  EXPECT_THROW(run({}, {.label_smoothing = 0.1f}), InvalidArgument);
}

TEST(LinearCrossEntropy, ABf16WeightCountsAsItsNumbersInF32) {
  for (const auto& [dhidden, dweight] : {std::pair(false, false), {true, false}, {true, true}}) {
    Head<float> head(1200, 8, 9000, 3);
    TestMatrix<bf16> weight(head.vocabulary, head.channels, 2, 3);
    for (size_t i = 0; i < weight.memory.size(); ++i) {
      head.weight.memory[i] = static_cast<float>(weight.memory[i]);
    }
    Head<float> half(head);
    head.run({.gradient_scale = 0.01f}, dhidden, dweight);
    std::vector<std::byte> workspace(static_cast<size_t>(
        linear_cross_entropy_workspace_bytes(1200, 8, 9000, dhidden || dweight)));
    linear_cross_entropy(half.loss_view(), dhidden ? half.dhidden.view : TensorView(),
                         dweight ? half.dweight.view : TensorView(), half.hidden.view, weight.view,
                         half.labels_view(), workspace, {.gradient_scale = 0.01f});
    EXPECT_EQ(half.loss.memory, head.loss.memory);
    EXPECT_EQ(half.dhidden.memory, head.dhidden.memory);
    EXPECT_EQ(half.dweight.memory, head.dweight.memory);
    EXPECT_THROW(linear_cross_entropy(half.loss_view(), half.dhidden.view, {}, half.hidden.view,
                                      weight.view, half.labels_view(), workspace, {.filter = 0.1f}),
                 InvalidArgument);
  }
}

TEST(LinearCrossEntropy, OptionsEqualTheReference) {
  for (const LinearCrossEntropyOptions& options :
       {LinearCrossEntropyOptions{.label_smoothing = 0.1f},
        LinearCrossEntropyOptions{.label_smoothing = 1.0f},
        LinearCrossEntropyOptions{.z_loss = 0.01f}, LinearCrossEntropyOptions{.softcap = 1.5f},
        LinearCrossEntropyOptions{
            .gradient_scale = 0.25f, .label_smoothing = 0.2f, .z_loss = 0.1f, .softcap = 3.0f}}) {
    SCOPED_TRACE(testing::Message()
                 << options.label_smoothing << " " << options.z_loss << " " << options.softcap);
    expect_equals_reference(Head<float>(33, 20, 601), options);
  }
}

// Two tokens whose (capped) logits are 0 and ln 3: lse is ln 4, the probabilities 1/4 and 3/4.
struct ClosedForm {
  const char* name;
  LinearCrossEntropyOptions options;
  double logit;  // of the second token, before the cap
  double loss;
  double dz0, dz1;
};

const double kLn3 = std::log(3.0);
const double kLn4 = std::log(4.0);

const std::vector<ClosedForm> kClosedForms = {
    {"none", {}, kLn3, kLn4, 0.25 - 1, 0.75},
    {"gradient scale", {.gradient_scale = 3}, kLn3, kLn4, 3 * (0.25 - 1), 3 * 0.75},
    {"label smoothing",
     {.label_smoothing = 0.5f},
     kLn3,
     0.5 * kLn4 + 0.5 * (kLn4 - kLn3 / 2),
     0.25 - 0.5 - 0.25,
     0.75 - 0.25},
    {"z-loss",
     {.z_loss = 0.5f},
     kLn3,
     kLn4 + 0.5 * kLn4* kLn4,
     0.25 * (1 + kLn4) - 1,
     0.75 * (1 + kLn4)},
    {"softcap",
     {.softcap = 2},
     2 * std::atanh(kLn3 / 2),
     kLn4,
     0.25 - 1,
     0.75 * (1 - kLn3 * kLn3 / 4)},
};

template <class T>
Head<T> closed_form_head(const ClosedForm& form) {
  Head<T> head(1, 1, 2);
  head.labels[0] = 0;
  head.hidden.memory[0] = 1;
  head.weight.memory[0] = 0;
  head.weight.memory[1] = static_cast<T>(form.logit);
  std::fill_n(head.dweight.memory.begin(), 2, T{0});
  return head;
}

TEST(LinearCrossEntropy, EachOptionHasItsClosedForm) {
  for (const ClosedForm& form : kClosedForms) {
    SCOPED_TRACE(form.name);
    Head<double> exact = closed_form_head<double>(form);
    exact.run_reference(form.options);
    EXPECT_NEAR(exact.loss.memory[0], form.loss, 1e-12);
    EXPECT_NEAR(exact.dweight.memory[0], form.dz0, 1e-12);
    EXPECT_NEAR(exact.dweight.memory[1], form.dz1, 1e-12);
    EXPECT_NEAR(exact.dhidden.memory[0], form.dz1 * form.logit, 1e-12);
    for (const bool with_dweight : {false, true}) {  // each has a kernel of its own
      Head<float> head = closed_form_head<float>(form);
      head.run(form.options, true, with_dweight);
      EXPECT_NEAR(head.loss.memory[0], form.loss, 1e-6);
      EXPECT_NEAR(head.dhidden.memory[0], form.dz1 * form.logit, 2e-6);
      if (with_dweight) {
        EXPECT_NEAR(head.dweight.memory[0], form.dz0, 1e-6);
        EXPECT_NEAR(head.dweight.memory[1], form.dz1, 1e-6);
      }
    }
    Head<float> evaluation = closed_form_head<float>(form);
    evaluation.run(form.options, false, false);
    EXPECT_NEAR(evaluation.loss.memory[0], form.loss, 1e-6);
  }
}

TEST(LinearCrossEntropy, GradientsOfTheReferenceAreFiniteDifferences) {
  for (const LinearCrossEntropyOptions& options :
       {LinearCrossEntropyOptions{.gradient_scale = 0.5f},
        LinearCrossEntropyOptions{.label_smoothing = 0.3f},
        LinearCrossEntropyOptions{.z_loss = 0.2f},
        LinearCrossEntropyOptions{
            .gradient_scale = 2, .label_smoothing = 0.1f, .z_loss = 0.1f, .softcap = 0.8f}}) {
    Head<double> head(5, 4, 7);
    head.dweight.memory.assign(head.dweight.memory.size(), 0.0);
    head.run_reference(options);
    const auto objective = [&] {
      Head<double> run(head);
      run.run_reference(options);
      double sum = 0;
      for (int64_t t = 0; t < run.tokens; ++t) {
        sum += run.loss.memory[static_cast<size_t>(t)];
      }
      return sum * static_cast<double>(options.gradient_scale);
    };
    const auto expect_gradient = [&](TestMatrix<double>& values,
                                     const TestMatrix<double>& gradient) {
      for (int64_t i = 0; i < values.view.size(); ++i) {
        double& value = values.memory[static_cast<size_t>(i)];
        const double saved = value;
        constexpr double kStep = 1e-5;  // error of the step^2 of third derivatives: 1e-9
        value = saved + kStep;
        const double up = objective();
        value = saved - kStep;
        const double down = objective();
        value = saved;
        EXPECT_NEAR((up - down) / (2 * kStep), gradient.memory[static_cast<size_t>(i)], 1e-8);
      }
    };
    expect_gradient(head.hidden, head.dhidden);
    expect_gradient(head.weight, head.dweight);
  }
}

TEST(LinearCrossEntropy, GivesTheSameBitsForAnyNumberOfThreads) {
  const auto run = [](int threads) {
    Head<float> head(700, 24, 9000);
    set_thread_count(threads);
    head.run({.gradient_scale = 0.01f, .label_smoothing = 0.1f});
    Head<float> frozen(700, 24, 9000);
    frozen.run({}, true, false);
    set_thread_count(0);
    return std::vector{head.loss.memory, head.dhidden.memory, head.dweight.memory,
                       frozen.loss.memory, frozen.dhidden.memory};
  };
  const auto one = run(1);
  for (const int threads : {2, 3, 5}) {
    EXPECT_EQ(run(threads), one) << threads;
  }
}

TEST(LinearCrossEntropy, AbsentGradientsAreNotTouched) {
  const Head<float> head(50, 20, 700, 1);
  Head<float> both(head);
  both.run();
  Head<float> only_dhidden(head);
  only_dhidden.run({}, true, false);
  EXPECT_EQ(only_dhidden.dweight.memory, head.dweight.memory);
  Head<float> only_dweight(head);
  only_dweight.run({}, false, true);
  EXPECT_EQ(only_dweight.loss.memory, both.loss.memory);
  EXPECT_EQ(only_dweight.dweight.memory, both.dweight.memory);
  EXPECT_EQ(only_dweight.dhidden.memory, head.dhidden.memory);
  Head<float> evaluation(head);
  evaluation.run({}, false, false);
  EXPECT_EQ(evaluation.loss.memory, both.loss.memory);
  EXPECT_EQ(evaluation.dhidden.memory, head.dhidden.memory);
}

TEST(LinearCrossEntropy, IgnoredRowsBearNothingAndAreNotRead) {
  Head<float> head(30, 10, 40);
  Head<float> with_nan(head);
  for (int64_t c = 0; c < head.channels; ++c) {
    with_nan.hidden.memory[static_cast<size_t>(head.channels + c)] = kNan;  // row 1 is ignored
  }
  head.run();
  with_nan.run();
  EXPECT_EQ(head.loss.memory[1], 0.0f);
  EXPECT_EQ(head.dhidden.memory[static_cast<size_t>(head.channels)], 0.0f);
  EXPECT_EQ(head.dhidden.memory, with_nan.dhidden.memory);
  EXPECT_EQ(head.dweight.memory, with_nan.dweight.memory);
}

TEST(LinearCrossEntropy, AllRowsIgnoredGivesZeros) {
  Head<float> head(5, 10, 40);
  head.labels.assign(5, kIgnoredLabel);
  const TestMatrix<> before(head.dweight);
  head.run();
  for (size_t t = 0; t < 5; ++t) {
    EXPECT_EQ(head.loss.memory[t], 0.0f);
  }
  for (size_t i = 0; i < 50; ++i) {
    EXPECT_EQ(head.dhidden.memory[i], 0.0f);
  }
  EXPECT_EQ(head.dweight.memory, before.memory);
}

TEST(LinearCrossEntropy, NoTokensAreLegal) {
  Head<float> head(0, 10, 40);
  EXPECT_NO_THROW(head.run());
}

TEST(LinearCrossEntropy, EqualLogitsCostTheLogOfTheVocabulary) {
  Head<float> head(9, 4, 777);
  head.weight.memory.assign(head.weight.memory.size(), 0.0f);
  head.run();
  for (size_t t = 0; t < 9; ++t) {
    EXPECT_NEAR(head.loss.memory[t], t % 3 == 1 ? 0 : std::log(777.0), 1e-6);
  }
}

TEST(LinearCrossEntropy, AConstantAddedToEveryLogitChangesNoLoss) {
  Head<float> head(9, 4, 300);
  for (int64_t t = 0; t < 9; ++t) {
    head.hidden.memory[static_cast<size_t>(t * 4)] = 1;
  }
  Head<float> shifted(head);
  for (int64_t v = 0; v < 300; ++v) {
    shifted.weight.memory[static_cast<size_t>(v * 4)] += 1000;  // exp(1000) overflows
  }
  head.run();
  shifted.run();
  for (size_t t = 0; t < 9; ++t) {
    EXPECT_NEAR(head.loss.memory[t], shifted.loss.memory[t], 1e-3);  // ulp of 1000 is 6e-5
  }
}

TEST(LinearCrossEntropy, TheGradientOverTheVocabularySumsToZero) {
  // A channel whose weight is 1 for every token: its gradient is the sum of dz over the vocabulary.
  Head<float> head(12, 6, 1300);
  for (int64_t v = 0; v < head.vocabulary; ++v) {
    head.weight.memory[static_cast<size_t>(v * 6)] = 1;
  }
  for (const auto& [smoothing, with_dweight] :
       {std::pair{0.0f, true}, std::pair{0.0f, false}, std::pair{0.3f, true}}) {
    head.run({.label_smoothing = smoothing}, true, with_dweight);
    for (int64_t t = 0; t < head.tokens; ++t) {
      EXPECT_NEAR(head.dhidden.memory[static_cast<size_t>(t * 6)], 0, 1e-5);
    }
  }
}

TEST(LinearCrossEntropy, NumbersThatAreNotFiniteMakeTheirRowNan) {
  for (const float bad : {kNan, kInfinity}) {
    for (const int64_t vocabulary : {5, 40, 600}) {
      Head<float> head(6, 4, vocabulary);
      head.hidden.memory[0] = bad;
      for (const bool with_dweight : {false, true}) {
        head.run({}, true, with_dweight);
        EXPECT_TRUE(std::isnan(head.loss.memory[0])) << bad;
        EXPECT_TRUE(std::isnan(head.dhidden.memory[0])) << bad;
        EXPECT_TRUE(std::isfinite(head.loss.memory[2]));
        EXPECT_TRUE(std::isfinite(head.dhidden.memory[2 * 4]));
      }
    }
  }
  for (size_t place = 0; place < 599; ++place) {  // in any lane of any vector
    Head<float> head(1, 1, 600);
    head.weight.memory[place] = kNan;
    for (const bool with_dweight : {false, true}) {
      head.run({}, true, with_dweight);
      ASSERT_TRUE(std::isnan(head.loss.memory[0])) << place;
    }
  }
}

TEST(LinearCrossEntropy, ALogitOfMinusInfinityHasNoProbability) {
  Head<float> head(1, 1, 600);
  head.hidden.memory[0] = 1;
  head.labels[0] = 599;
  std::fill_n(head.weight.memory.begin(), 590, -kInfinity);  // a whole tile, and part of one
  std::fill_n(head.weight.memory.begin() + 590, 10, 0.5f);
  for (const bool with_dweight : {false, true}) {
    head.run({}, !with_dweight, with_dweight);
    EXPECT_NEAR(head.loss.memory[0], std::log(10.0), 1e-6);
  }
}

TEST(LinearCrossEntropy, TheWorkspaceIsBounded) {
  // 8 x 1024 tokens of Qwen2.5-0.5B: workspace and dhidden, beyond the gradient of the weight.
  const int64_t tokens = 8 * 1024;
  const int64_t peak =
      linear_cross_entropy_workspace_bytes(tokens, 896, 151936, true) + tokens * 896 * 4;
  EXPECT_LE(peak, 135'000'000);
  EXPECT_LE(linear_cross_entropy_workspace_bytes(tokens, 896, 151936, false), 40'000'000);
  EXPECT_LE(linear_cross_entropy_workspace_bytes(64, 576, 49152, true), 20'000'000);
  for (const int64_t more : {100'000, 10'000'000}) {
    // Tokens cost their place in the list alone.
    EXPECT_LE(linear_cross_entropy_workspace_bytes(more, 896, 151936, true),
              linear_cross_entropy_workspace_bytes(tokens, 896, 151936, true) + 4 * more);
  }
}

// The largest anonymous memory that a second thread sees while `work` runs.
int64_t peak_anonymous_memory(const std::function<void()>& work) {
  std::atomic<bool> ended = false;
  int64_t peak = 0;
  std::thread watcher([&] {
    while (!ended) {
      peak = std::max(peak, anonymous_memory_bytes());
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  work();
  ended = true;
  watcher.join();
  return peak;
}

TEST(LinearCrossEntropy, TakesNoMemoryButItsWorkspace) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer keeps freed memory and a shadow of all";
#endif
  Head<float> head(1536, 32, 40000);  // 246 MB of logits
  head.run();                         // threads have their stacks, and products their blocks
  const int64_t workspace = linear_cross_entropy_workspace_bytes(1536, 32, 40000, true);
  EXPECT_LT(workspace, 100 << 20);
  const int64_t before = anonymous_memory_bytes();
  const int64_t peak = peak_anonymous_memory([&] { head.run(); });
  constexpr int64_t kNoise = 4 << 20;
  EXPECT_LE(peak, before + workspace + kNoise);
  EXPECT_GE(peak, before + workspace / 2);  // it was seen
}

TEST(LinearCrossEntropy, RejectsBadArguments) {
  Head<float> head(6, 8, 30);
  head.labels[3] = 30;
  try {
    head.run();
    FAIL() << "accepted a label outside the vocabulary";
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(),
                 "linear_cross_entropy: labels[3]: expected -100 or a token in [0, 30), got 30");
  }
  head.labels[3] = -1;
  EXPECT_THROW(head.run(), InvalidArgument);
  head.labels[3] = 0;
  EXPECT_NO_THROW(head.run());
  EXPECT_THROW(head.run({.gradient_scale = kNan}), InvalidArgument);
  EXPECT_THROW(head.run({.label_smoothing = 1.5f}), InvalidArgument);
  EXPECT_THROW(head.run({.z_loss = -1}), InvalidArgument);
  EXPECT_THROW(head.run({.softcap = -30}), InvalidArgument);
  std::vector<std::byte> small(100);
  const auto call = [&](TensorView loss, TensorView dhidden, ConstTensorView weight,
                        ConstTensorView labels) {
    linear_cross_entropy(loss, dhidden, {}, head.hidden.view, weight, labels, small);
  };
  const TensorView loss = head.loss_view();
  EXPECT_THROW(call(loss, {}, head.weight.view, head.labels_view()), InvalidArgument);
  EXPECT_THROW(call(loss.slice(0, 0, 5), {}, head.weight.view, head.labels_view()),
               InvalidArgument);
  EXPECT_THROW(call(loss, {}, head.weight.view.slice(1, 0, 7), head.labels_view()),
               InvalidArgument);
  EXPECT_THROW(call(loss, {}, head.weight.view, head.loss_view()), InvalidArgument);
  EXPECT_THROW(call(loss, head.weight.view, head.weight.view, head.labels_view()), InvalidArgument);
  EXPECT_THROW((void)linear_cross_entropy_workspace_bytes(-1, 8, 30, true), InvalidArgument);
  EXPECT_THROW((void)linear_cross_entropy_workspace_bytes(1, 8, int64_t{1} << 60, true),
               InvalidArgument);
}

}  // namespace
}  // namespace flashloom
