#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/loaded_model.h"
#include "cli/terminal.h"
#include "flashloom/core/parallel.h"
#include "flashloom/models/sampling/sampling.h"

namespace flashloom::cli {
namespace {

struct Options {
  std::string model;
  std::string adapter;
  std::optional<std::string> prompt;
  bool chat = false;
  std::optional<std::string> system;
  int64_t max_new_tokens = 256;
  double temperature = 0.7;
  double top_p = 0.95;
  int64_t top_k = 0;
  int64_t seed = 0;
  int64_t context = 0;
  int64_t threads = 0;
  bool timing = false;
};

struct Answer {
  std::string text;
  int64_t prompt_tokens = 0;
  int64_t new_tokens = 0;
  double prompt_seconds = 0;
  double seconds = 0;
};

// Feeds what the context does not hold yet, then samples until an end token or the limit, printing
// whole characters as they come.
class Session {
 public:
  Session(LoadedModel& loaded, const Options& options)
      : loaded_(loaded),
        options_(options),
        random_(static_cast<uint64_t>(options.seed), RandomStream::sampling) {}

  Answer answer(const std::vector<int32_t>& ids) {
    LlamaGenerator& generator = loaded_.generator();
    const Tokenizer& tokenizer = loaded_.bundle().tokenizer;
    if (static_cast<int64_t>(ids.size()) >= generator.capacity()) {
      throw UsageError(
          fmt::format("the conversation has {} tokens and the context holds {}; give a "
                      "larger --context",
                      ids.size(), generator.capacity()));
    }
    // A later turn shares its beginning with the context: only the rest is worked on.
    size_t common = 0;
    while (common < context_.size() && common + 1 < ids.size() && context_[common] == ids[common]) {
      ++common;
    }
    generator.truncate(static_cast<int64_t>(common));
    const auto start = std::chrono::steady_clock::now();
    ConstTensorView logits = generator.append(std::span(ids).subspan(common));
    context_ = ids;
    Answer answer;
    answer.prompt_tokens = static_cast<int64_t>(ids.size() - common);
    answer.prompt_seconds = seconds_since(start);

    const auto first = std::chrono::steady_clock::now();
    StreamDecoder decoder(tokenizer, /*skip_special=*/true);
    while (!interrupted()) {
      const int32_t id = sample_token(logits, sampling(), random_, scratch_);
      if (tokenizer.is_end(id)) {
        break;
      }
      ++answer.new_tokens;
      emit(answer, decoder.push(id));
      if (answer.new_tokens == options_.max_new_tokens ||
          generator.length() >= generator.capacity()) {
        break;
      }
      logits = generator.append(std::span(&id, 1));
      context_.push_back(id);
    }
    emit(answer, decoder.finish());
    answer.seconds = seconds_since(first);
    return answer;
  }

 private:
  static double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  SamplingOptions sampling() const {
    return {.temperature = options_.temperature, .top_p = options_.top_p, .top_k = options_.top_k};
  }

  static void emit(Answer& answer, const std::string& text) {
    answer.text += text;
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  LoadedModel& loaded_;
  const Options& options_;
  RandomSequence random_;
  std::vector<int32_t> context_;  // what the generator's cache holds
  std::vector<int32_t> scratch_;
};

void report(const Options& options, const Answer& answer) {
  if (options.timing) {
    note(fmt::format("{} prompt tokens in {:.2f} s, {} new tokens in {:.2f} s ({:.1f} tokens/s)",
                     answer.prompt_tokens, answer.prompt_seconds, answer.new_tokens, answer.seconds,
                     static_cast<double>(answer.new_tokens) / answer.seconds));
  }
}

// Turns a growing conversation into ids, as the model saw them in training.
class ChatEncoder {
 public:
  explicit ChatEncoder(const ModelBundle& bundle)
      : tokenizer_(bundle.tokenizer), template_(open_chat_template(bundle)) {}

  std::vector<int32_t> encode(const std::vector<ChatMessage>& messages) const {
    const std::string text =
        template_.render(chat_messages(messages), {.add_generation_prompt = true});
    return tokenizer_.encode(text, {.add_special_tokens = false});
  }

 private:
  Tokenizer tokenizer_;
  ChatTemplate template_;
};

int converse(const ChatEncoder& encoder, Session& session, const Options& options,
             std::vector<ChatMessage> messages) {
  const bool terminal = isatty(STDIN_FILENO) != 0;
  if (terminal) {
    note("an empty line or Ctrl-D ends the conversation");
  }
  std::string line;
  for (;;) {
    if (terminal) {
      fmt::print(stderr, "> ");
    }
    if (!std::getline(std::cin, line) || line.empty() || interrupted()) {
      return interrupted() ? kInterrupted : kSuccess;
    }
    messages.push_back({"user", line});
    const Answer answer = session.answer(encoder.encode(messages));
    fmt::print("\n");
    report(options, answer);
    messages.push_back({"assistant", answer.text});
  }
}

int run(const Options& options) {
  validate(SamplingOptions{options.temperature, options.top_p, options.top_k});
  if (options.max_new_tokens < 1 || options.context < 0) {
    throw UsageError("--max-new-tokens and --context must be above 0");
  }
  if (!options.prompt && !options.chat) {
    throw UsageError("give --prompt TEXT (or - for standard input), or --chat for a conversation");
  }
  set_thread_count(static_cast<int>(options.threads));
  std::string prompt = options.prompt.value_or("");
  if (prompt == "-") {
    prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  }
  // The longest context that a single answer needs; a conversation gets room for several turns.
  constexpr int64_t kConversation = 4096;
  int64_t context = options.context;
  const Tokenizer tokenizer = open_tokenizer(options.model);
  if (context == 0) {
    const auto prompt_tokens = static_cast<int64_t>(tokenizer.encode(prompt).size());
    constexpr int64_t kTemplate = 256;  // what a chat template adds, and a system prompt
    const auto system = static_cast<int64_t>(tokenizer.encode(options.system.value_or("")).size());
    context = prompt_tokens + system + kTemplate + options.max_new_tokens;
    context = options.prompt ? context : std::max(context, kConversation);
  }
  catch_interrupts();
  LoadedModel loaded({.model = options.model, .adapter = options.adapter, .context = context});
  Session session(loaded, options);
  if (options.chat) {
    const ChatEncoder encoder(loaded.bundle());
    std::vector<ChatMessage> messages;
    if (options.system) {
      messages.push_back({"system", *options.system});
    }
    if (!options.prompt) {
      return converse(encoder, session, options, std::move(messages));
    }
    messages.push_back({"user", prompt});
    report(options, session.answer(encoder.encode(messages)));
  } else {
    report(options, session.answer(loaded.bundle().tokenizer.encode(prompt)));
  }
  fmt::print("\n");
  return interrupted() ? kInterrupted : kSuccess;
}

}  // namespace

Command generate_command() {
  auto options = std::make_shared<Options>();
  return {
      .name = "generate",
      .summary = "Continue a prompt, or hold a conversation",
      .flags = {{"--model", &options->model, "Hugging Face directory or GGUF file", true},
                {"--adapter", &options->adapter, "directory with a LoRA adapter"},
                {"--prompt", &options->prompt, "the text; - reads standard input"},
                {"--chat", &options->chat,
                 "put the prompt into the model's chat template; without a prompt, converse"},
                {"--system", &options->system, "system message of a chat"},
                {"--max-new-tokens", &options->max_new_tokens, "longest answer"},
                {"--temperature", &options->temperature, "0 takes the likeliest token each time"},
                {"--top-p", &options->top_p, "keep the likeliest tokens up to this probability"},
                {"--top-k", &options->top_k, "keep at most so many tokens; 0: all"},
                {"--seed", &options->seed, "of the random numbers"},
                {"--context", &options->context, "tokens the context can hold; 0: as needed"},
                {"--threads", &options->threads, "0: all cores"},
                {"--timing", &options->timing, "say tokens a second on standard error"}},
      .run = [options] { return run(*options); },
      .footer = "Example: flashloom generate --model MODEL --chat --prompt \"What is a B-tree?\""};
}

}  // namespace flashloom::cli
