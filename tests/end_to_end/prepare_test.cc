// Data sets that are tokenized once, and files of tokens.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "flashloom/io/temporary_directory_for_test.h"
#include "tests/end_to_end/program_for_test.h"

namespace flashloom {
namespace {

using testing::HasSubstr;

class Prepare : public ProgramTest {
 protected:
  static void SetUpTestSuite() {
    make_folder();
    write_file_atomically(path("a.jsonl"), chat_rows(60));
    write_file_atomically(path("b.jsonl"), R"({"text": "An old story of few words."})"
                                           "\n");
  }

  static std::string data() {
    return fmt::format("--data {} --data {}:2.5 --seq-len 24 ", path("a.jsonl"), path("b.jsonl"));
  }

  static ProgramResult prepare(const std::string& output, const std::string& flags = "") {
    return run(fmt::format("prepare --model {} {}--held-out 0.2 --long split --output {} {}",
                           path("model"), data(), path(output), flags));
  }

  static ProgramResult train(const std::string& data, const std::string& output,
                             const std::string& flags = "", int steps = 6,
                             const std::string& model = path("model")) {
    return run(
        fmt::format("finetune --model {} {} --output {} --batch-tokens 128 --samples 0 "
                    "--steps {} --lr 1e-2 --schedule constant {}",
                    model, data, path(output), steps, flags));
  }
};

TEST_F(Prepare, TrainsTheSameBitsAsTheFilesAndGoesOnWithEither) {
  const ProgramResult prepared = prepare("set", "--json");
  ASSERT_EQ(prepared.code, 0) << prepared.err;
  EXPECT_GT(nlohmann::json::parse(prepared.out).at("held_out_documents"), 0);
  const ProgramResult direct = train(data() + "--held-out 0.2 --long split", "direct", "--json");
  ASSERT_EQ(direct.code, 0) << direct.err;
  const std::string of_set = "--data " + path("set") + " --seq-len 24";
  const ProgramResult mapped = train(of_set, "mapped", "--json");
  ASSERT_EQ(mapped.code, 0) << mapped.err;
  EXPECT_TRUE(adapter("mapped") == adapter("direct"));
  const auto one = nlohmann::json::parse(direct.out);
  const auto two = nlohmann::json::parse(mapped.out);
  for (const char* name : {"eval_loss_before", "eval_loss", "eval_tokens", "tokens"}) {
    EXPECT_EQ(one.at(name), two.at(name)) << name;
  }
  // What a run says of its data is the same too, and so are the settings that it keeps.
  const auto first_line = [](const std::string& text) { return text.substr(0, text.find('\n')); };
  EXPECT_EQ(first_line(direct.err), first_line(mapped.err));
  const ProgramResult on = train(of_set, "direct", "", 8);
  EXPECT_EQ(on.code, 0) << on.err;
  EXPECT_THAT(on.err, HasSubstr("going on after step 6"));
}

TEST_F(Prepare, ServesThatModelFromAnotherPlaceAndRefusesOthers) {
  ASSERT_EQ(prepare("served").code, 0);
  const std::string of_set = "--data " + path("served") + " --seq-len 24";
  const auto with = [&](const std::string& file, const std::string& text) {
    const std::string copy = path("other_" + file);
    std::filesystem::remove_all(copy);
    std::filesystem::copy(path("model"), copy);
    std::filesystem::remove(copy + "/" + file);
    write_file_atomically(copy + "/" + file, text);
    return train(of_set, "other_run", "--resume never", 6, copy);
  };
  // The same tokenizer in another file: only what it does counts.
  const auto json = nlohmann::json::parse(read_for_test(path("model/tokenizer.json")));
  EXPECT_EQ(with("tokenizer.json", json.dump(3)).code, 0);
  auto changed = json;
  changed["model"]["merges"].erase(changed["model"]["merges"].size() / 2);
  const ProgramResult tokenizer = with("tokenizer.json", changed.dump());
  EXPECT_EQ(tokenizer.code, 1);
  EXPECT_THAT(tokenizer.err, HasSubstr("was prepared with another tokenizer than the model's"));
  const ProgramResult chat = with(
      "chat_template.jinja", read_for_test(path("model/chat_template.jinja")) + "{{ eos_token }}");
  EXPECT_EQ(chat.code, 1);
  EXPECT_THAT(chat.err, HasSubstr("was prepared with another chat template"));
}

TEST_F(Prepare, RefusesOtherFlagsAndWhatDoesNotStandAlone) {
  ASSERT_EQ(prepare("flags").code, 0);
  const std::string of_set = "--data " + path("flags");
  const ProgramResult length = train(of_set + " --long drop", "none");
  EXPECT_EQ(length.code, 1);
  EXPECT_THAT(length.err, HasSubstr("--seq-len: prepared with 24, now 1024"));
  EXPECT_THAT(length.err, HasSubstr("--long: prepared with split, now drop"));
  EXPECT_THAT(train(of_set + " --seq-len 24 --held-out 0.5", "none").err,
              HasSubstr("--held-out: prepared with 0.2, now 0.5"));
  const ProgramResult beside = train(of_set + " --data " + path("a.jsonl"), "none");
  EXPECT_EQ(beside.code, 2);
  EXPECT_THAT(beside.err, HasSubstr("stands alone"));
  EXPECT_EQ(train(of_set + ":2", "none").code, 2);
  EXPECT_THAT(train("--data " + path("model"), "none").err, HasSubstr("is neither"));
  EXPECT_THAT(train(of_set + " --seq-len 24 --eval-data " + path("a.jsonl"), "none").err,
              HasSubstr("has held-out data of its own"));
  EXPECT_THAT(run(fmt::format("prepare --model {} --data {} --output {}", path("model"),
                              path("flags"), path("again")))
                  .err,
              HasSubstr("a set that is prepared"));
}

TEST_F(Prepare, NamesWhatIsDamaged) {
  ASSERT_EQ(prepare("whole").code, 0);
  const auto broken = [&](const std::string& file,
                          const std::function<void(std::string&)>& change) {
    std::filesystem::remove_all(path("broken"));
    std::filesystem::copy(path("whole"), path("broken"));
    std::string bytes = read_for_test(path("broken/" + file));
    change(bytes);
    std::filesystem::remove(path("broken/" + file));
    write_file_atomically(path("broken/" + file), bytes);
    const ProgramResult result = train("--data " + path("broken") + " --seq-len 24", "none");
    EXPECT_EQ(result.code, 1) << result.err;
    EXPECT_THAT(result.err, HasSubstr(file));
    return result.err;
  };
  EXPECT_THAT(broken("train.safetensors", [](std::string& b) { b.back() ^= 1; }),
              HasSubstr("differs from its checksum"));
  broken("train.safetensors", [](std::string& b) { b.resize(b.size() / 2); });
  broken("held_out.safetensors", [](std::string& b) { b[b.size() / 2] ^= 1; });
  const auto record = [&](const char* side, const char* name, const nlohmann::json& value) {
    return broken("prepared.json", [&](std::string& bytes) {
      auto json = nlohmann::json::parse(bytes);
      (std::string(side).empty() ? json : json[side])[name] = value;
      bytes = json.dump();
    });
  };
  EXPECT_THAT(record("", "version", 9), HasSubstr("expected 1, found 9"));
  record("", "files", 7);
  broken("prepared.json", [](std::string& b) { b.resize(b.size() / 2); });
  // Numbers of the record are only compared with what the arrays hold.
  for (const char* name : {"documents", "tokens"}) {
    for (const int64_t value : {int64_t{-1}, int64_t{0}, INT64_MAX}) {
      std::filesystem::remove_all(path("lies"));
      std::filesystem::copy(path("whole"), path("lies"));
      auto json = nlohmann::json::parse(read_for_test(path("lies/prepared.json")));
      json["train"][name] = value;
      write_file_atomically(path("lies/prepared.json"), json.dump());
      const ProgramResult result = train("--data " + path("lies") + " --seq-len 24", "none");
      EXPECT_EQ(result.code, 1);
      EXPECT_THAT(result.err, HasSubstr("train.safetensors"));
      EXPECT_THAT(result.err, HasSubstr("expected"));
    }
  }
}

TEST_F(Prepare, TakesFilesOfTokens) {
  std::vector<int32_t> header(256);
  header[0] = 20240520;
  header[1] = 1;
  std::vector<uint16_t> tokens;
  for (int i = 0; i < 900; ++i) {
    tokens.push_back(static_cast<uint16_t>(i % 30 == 29 ? 2 : 50 + i % 90));
  }
  header[2] = static_cast<int32_t>(tokens.size());
  std::string bytes(reinterpret_cast<const char*>(header.data()), 4 * header.size());
  bytes.append(reinterpret_cast<const char*>(tokens.data()), 2 * tokens.size());
  write_file_atomically(path("tokens.bin"), bytes);
  const std::string flags = "--data " + path("tokens.bin") + " --seq-len 40 ";
  const ProgramResult direct = train(flags, "bin_direct");
  ASSERT_EQ(direct.code, 0) << direct.err;
  EXPECT_THAT(direct.err, HasSubstr("30 rows, 30 examples"));
  ASSERT_EQ(
      run(fmt::format("prepare --model {} {} --output {}", path("model"), flags, path("bin_set")))
          .code,
      0);
  ASSERT_EQ(train("--data " + path("bin_set") + " --seq-len 40", "bin_mapped").code, 0);
  EXPECT_TRUE(adapter("bin_direct") == adapter("bin_mapped"));
  bytes[8] = 1;
  write_file_atomically(path("tokens.bin"), bytes);
  EXPECT_THAT(train(flags, "none").err, HasSubstr("says"));
}

}  // namespace
}  // namespace flashloom
