#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "flashloom/io/temporary_directory_for_test.h"
#include "tests/end_to_end/program_for_test.h"

namespace flashloom {
namespace {

// A model, data that can be learnt, and the program, for all tests of this file.
class Program : public ProgramTest {
 protected:
  static void SetUpTestSuite() {
    make_folder();
    const std::string answer = "It is the one.";
    write_file_atomically(data(), chat_rows(40, answer));
    write_file_atomically(held(), chat_rows(9, answer));
  }

  static std::string model() { return *folder_ / "model"; }

  static std::string data() { return *folder_ / "train.jsonl"; }

  static std::string held() { return *folder_ / "held.jsonl"; }

  static std::string training(const std::string& output) {
    return "finetune --model " + model() + " --data " + data() + " --eval-data " + held() +
           " --output " + output + " --batch-tokens 256 --lr 1e-2 --json ";
  }

  static double loss(const std::string& arguments) {
    const ProgramResult result = run("evaluate --json --data " + held() + " " + arguments);
    EXPECT_EQ(result.code, 0) << result.err;
    return nlohmann::json::parse(result.out).at("loss");
  }
};

TEST_F(Program, FineTunesEvaluatesAndMergesAnAdapter) {
  const std::string adapter = path("adapter");
  const ProgramResult result = run(training(adapter) + "--eval-steps 4 --save-steps 5 --epochs 5");
  ASSERT_EQ(result.code, 0) << result.err;
  const auto summary = nlohmann::json::parse(result.out);
  const double before = summary.at("eval_loss_before");
  const double after = summary.at("eval_loss");
  EXPECT_LT(after, 0.5 * before);
  for (const char* file :
       {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja",
        "metrics.jsonl", "best/adapter_model.safetensors"}) {
    EXPECT_TRUE(std::filesystem::exists(adapter + "/" + file)) << file;
  }
  const std::string checkpoint = adapter + "/checkpoint-" + summary.at("steps").dump();
  EXPECT_NEAR(loss("--model " + model() + " --adapter " + checkpoint), after, 1e-6);

  EXPECT_NEAR(loss("--model " + model()), before, 1e-6);
  EXPECT_NEAR(loss("--model " + model() + " --adapter " + adapter), after, 1e-6);
  const std::string merged = path("merged");
  ASSERT_EQ(run("merge --model " + model() + " --adapter " + adapter + " --output " + merged).code,
            0);
  EXPECT_NEAR(loss("--model " + merged), after, 1e-4);

  const ProgramResult answer = run("generate --model " + model() + " --adapter " + adapter +
                                   " --chat --prompt 'What is number 3?' --temperature 0");
  // The rows' answer is "It is the one."; where a tiny model stops hangs on the last bits of its
  // sums.
  EXPECT_THAT(answer.out, testing::StartsWith("It is")) << answer.err;
}

TEST_F(Program, FineTunesAllWeightsIntoAHuggingFaceDirectory) {
  const std::string output = path("full");
  const ProgramResult result = run(training(output) + "--method full --steps 12");
  ASSERT_EQ(result.code, 0) << result.err;
  const auto summary = nlohmann::json::parse(result.out);
  EXPECT_LT(summary.at("eval_loss").get<double>(),
            0.7 * summary.at("eval_loss_before").get<double>());
  EXPECT_NEAR(loss("--model " + output), summary.at("eval_loss"), 1e-6);
}

TEST_F(Program, WritesTheSameBitsForAnyNumberOfThreads) {
  for (const char* method : {"lora", "full"}) {
    const std::string name = std::string(method) == "lora" ? "adapter_model" : "model";
    std::string first;
    for (const char* threads : {"1", "3"}) {
      const std::string output = path(std::string(method) + threads);
      const ProgramResult result =
          run(training(output) + "--steps 3 --threads " + threads + " --method " + method);
      ASSERT_EQ(result.code, 0) << result.err;
      const std::string bytes = read_for_test(output + "/" + name + ".safetensors");
      ASSERT_FALSE(bytes.empty());
      first = first.empty() ? bytes : first;
      EXPECT_TRUE(bytes == first) << method;
    }
  }
}

TEST_F(Program, ReadsFlagsFromAFileThatTheCommandLineOverrides) {
  const std::string config = path("run.toml");
  write_file_atomically(
      config, "model = \"" + model() + "\"\ndata = [\"" + data() + "\"]\nsteps = 9\nlr = 1e-3\n");
  const ProgramResult result =
      run("finetune --config " + config + " --steps 1 --json --output " + path("from_file"));
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(nlohmann::json::parse(result.out).at("steps"), 1);

  write_file_atomically(config, "model = \"m\"\nlearning-rate = 1\n");
  const ProgramResult unknown = run("finetune --config " + config);
  EXPECT_EQ(unknown.code, 2);
  EXPECT_NE(unknown.err.find("line 2: learning-rate: unknown key"), std::string::npos)
      << unknown.err;

  write_file_atomically(config, "steps = \"many\"\n");
  const ProgramResult type = run("finetune --config " + config);
  EXPECT_EQ(type.code, 2);
  EXPECT_NE(type.err.find("steps: expected a whole number"), std::string::npos) << type.err;
}

TEST_F(Program, WeighsFilesAndHoldsRowsOut) {
  const ProgramResult result =
      run("finetune --model " + model() + " --data " + data() + ":1.5 --data " + held() +
          " --held-out 0.2 --output " + path("weighed") + " --batch-tokens 256 --steps 1 --json");
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("train.jsonl: "), std::string::npos) << result.err;
  EXPECT_NE(result.err.find(" examples, each drawn 1.5 times an epoch"), std::string::npos);
  EXPECT_NE(result.err.find("held-out data: "), std::string::npos);
  EXPECT_GT(nlohmann::json::parse(result.out).at("eval_tokens"), 0);
  const std::string job =
      "finetune --model " + model() + " --data " + data() + " --output " + path("not_made") + " ";
  const ProgramResult refused = run(job + "--seq-len 8 --long refuse");
  EXPECT_EQ(refused.code, 1);
  EXPECT_NE(refused.err.find("train.jsonl: line 1: expected at most 8 tokens"), std::string::npos)
      << refused.err;
  EXPECT_EQ(run(job + "--held-out 1").code, 2);
  EXPECT_EQ(run(job + "--held-out 0.1 --eval-data " + held()).code, 2);
  EXPECT_EQ(run(job + "--data " + held() + ":0").code, 2);
}

TEST_F(Program, EvaluatesTextsThroughAWindow) {
  const std::string text = "A window slides over a text. Each token is predicted once, and the sum";
  write_file_atomically(path("window.txt"), text);
  write_file_atomically(path("window.jsonl"), "{\"text\": \"" + text + "\"}\n");
  const auto json = [](const std::string& arguments) {
    const ProgramResult result = run("evaluate --json --model " + model() + " " + arguments);
    EXPECT_EQ(result.code, 0) << result.err;
    return nlohmann::json::parse(result.out);
  };
  const auto whole = json("--data " + path("window.txt") + " --window 128");
  EXPECT_EQ(whole.at("windows"), 1);
  EXPECT_EQ(whole.at("bytes"), text.size());
  const double tokens = whole.at("tokens");
  EXPECT_NEAR(double{whole.at("bits_per_byte")} * static_cast<double>(text.size()),
              double{whole.at("loss")} * tokens / std::log(2.0), 1e-3);
  // Wider than the text, or the same text from a row: the same number.
  EXPECT_EQ(json("--data " + path("window.txt") + " --window 300"), whole);
  EXPECT_EQ(json("--data " + path("window.jsonl") + " --window 128"), whole);
  // Every token once, whatever the stride; less context is another number.
  const auto narrow = json("--data " + path("window.txt") + " --window 8 --stride 3");
  EXPECT_EQ(narrow.at("tokens"), whole.at("tokens"));
  EXPECT_NE(narrow.at("loss"), whole.at("loss"));
  const std::string evaluate = "evaluate --model " + model();
  EXPECT_EQ(run(evaluate + " --data " + path("window.txt") + " --window 8 --stride 9").code, 2);
  EXPECT_EQ(run(evaluate + " --data " + path("window.txt") + " --stride 9").code, 2);
  EXPECT_EQ(run(evaluate + " --data " + data() + " --window 8").code, 1);  // conversations
}

TEST_F(Program, CountsChoicesByLikelihood) {
  const auto accuracy = [](int answer) {
    const std::string file = path("choices.jsonl");
    std::string rows;
    for (const char* choice : {"a stone", "a very long answer"}) {
      rows += R"({"question": "The sky is", "choices": ["blue", ")" + std::string(choice) +
              R"("], "answer": )" + std::to_string(answer) + "}\n";
    }
    write_file_atomically(file, rows);
    const ProgramResult result = run("evaluate --json --model " + model() + " --choices " + file);
    EXPECT_EQ(result.code, 0) << result.err;
    return nlohmann::json::parse(result.out);
  };
  const auto first = accuracy(0);
  const auto second = accuracy(1);
  EXPECT_EQ(first.at("questions"), 2);
  EXPECT_DOUBLE_EQ(double{first.at("acc")} + double{second.at("acc")}, 1);
  EXPECT_DOUBLE_EQ(double{first.at("acc_norm")} + double{second.at("acc_norm")}, 1);
  // Of two choices of a random model the shorter is likelier.
  EXPECT_EQ(double{first.at("acc")}, 1);
  EXPECT_EQ(run("evaluate --model " + model()).code, 2);
  EXPECT_EQ(run("evaluate --model " + model() + " --choices x --data " + data()).code, 2);
}

TEST_F(Program, SaysWhatIsWrongAndWhere) {
  EXPECT_EQ(run("").code, 2);
  EXPECT_EQ(run("finetune --no-such-flag").code, 2);
  EXPECT_EQ(run("finetune --model " + model() + " --data " + data()).code, 2);
  EXPECT_EQ(run(training(path("bad")) + "--lora-rank 0").code, 2);
  EXPECT_EQ(run("--help").code, 0);

  const ProgramResult no_model = run("evaluate --model /nowhere --data " + data());
  EXPECT_EQ(no_model.code, 1);
  EXPECT_NE(no_model.err.find("/nowhere"), std::string::npos) << no_model.err;

  const std::string broken = path("broken.jsonl");
  write_file_atomically(broken, "{\"text\": \"fine\"}\n{\"text\": \n");
  const ProgramResult bad_row = run("evaluate --model " + model() + " --data " + broken);
  EXPECT_EQ(bad_row.code, 1);
  EXPECT_NE(bad_row.err.find("broken.jsonl: line 2"), std::string::npos) << bad_row.err;

  const std::string masked = path("masked.jsonl");
  write_file_atomically(masked, R"({"messages": [{"role": "user", "content": "no answer"}]})"
                                "\n");
  const ProgramResult nothing = run("evaluate --model " + model() + " --data " + masked);
  EXPECT_EQ(nothing.code, 1);
  EXPECT_FALSE(nothing.err.empty());
}

TEST_F(Program, PreviewsTokenizesAndInspects) {
  const ProgramResult preview =
      run("finetune --model " + model() + " --data " + data() + " --preview 2");
  EXPECT_EQ(preview.code, 0);
  EXPECT_NE(preview.out.find("example 2"), std::string::npos);
  EXPECT_EQ(preview.out.find("example 3"), std::string::npos);
  EXPECT_NE(preview.out.find("learn"), std::string::npos);

  const ProgramResult ids = run("tokenize --model " + model() + " <" + data());
  EXPECT_EQ(ids.code, 0);
  EXPECT_EQ(std::count(ids.out.begin(), ids.out.end(), '\n'), 40);

  const ProgramResult facts = run("inspect --json " + model());
  EXPECT_EQ(nlohmann::json::parse(facts.out).at("layers"), 2) << facts.err;
  EXPECT_NE(run("--version").out.find("flashloom 0.1.0"), std::string::npos);
}

}  // namespace
}  // namespace flashloom
