#include "flashloom/text/tokenizer_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "flashloom/core/error.h"
#include "flashloom/text/unicode_nfc.h"
#include "flashloom/text/unicode_utf8.h"

namespace flashloom {
namespace {

constexpr unsigned kAlphabet = 256 + 68;  // the last character that stands for a byte, + 1

constexpr bool stands_for_itself(unsigned byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

struct ByteAlphabet {
  std::array<uint32_t, 256> character{};
  std::array<int16_t, kAlphabet> byte{};
};

constexpr ByteAlphabet make_byte_alphabet() {
  ByteAlphabet alphabet;
  alphabet.byte.fill(-1);
  uint32_t next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const uint32_t character = stands_for_itself(byte) ? byte : next++;
    alphabet.character[byte] = character;
    alphabet.byte[character] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr ByteAlphabet kByteAlphabet = make_byte_alphabet();

/// Appends the bytes that `token` spells; false, and nothing appended, if it does not spell bytes.
bool append_token_bytes(std::string& out, std::string_view token) {
  const size_t old_size = out.size();
  for (size_t position = 0; position < token.size();) {
    const DecodedCodePoint decoded = decode_code_point(token.data() + position);
    const int byte = byte_of_character(decoded.value);
    if (byte < 0) {
      out.resize(old_size);
      return false;
    }
    out.push_back(static_cast<char>(byte));
    position += decoded.size;
  }
  return true;
}

/// "list[index]", spelled out only when it is needed.
struct Place {
  std::string_view list;
  size_t index;

  std::string text() const { return fmt::format("{}[{}]", list, index); }
};

class Builder {
 public:
  explicit Builder(const TokenizerDescription& description) : description_(description) {}

  std::shared_ptr<Tokenizer::Data> build() {
    // Ids may have holes, but a table of them is sized by what the file holds: twice the entries
    // and some, so that a few reserved ids above a tiny vocabulary still pass.
    constexpr size_t kSpareIds = 4096;
    limit_ = 2 * (description_.vocabulary.size() + description_.added.size()) + kSpareIds;
    size_t bytes = 0;
    for (const auto& entry : description_.vocabulary) {
      bytes += entry.token.size();
    }
    for (const AddedToken& added : description_.added) {
      bytes += added.content.size();
    }
    // Both spellings of every token; a token's bytes are never longer than its text. Reserved in
    // full, and longer than a small string, since views of the arena must stay.
    std::string arena;
    arena.reserve(2 * bytes + 64);
    std::vector<Tokenizer::Data::Token> tokens;
    std::unordered_map<std::string_view, int32_t> ids;
    ids.reserve(description_.vocabulary.size() + description_.added.size());

    const auto put = [&](std::string_view text, int32_t id, const Place& place) {
      if (tokens.size() <= static_cast<size_t>(id)) {
        tokens.resize(static_cast<size_t>(id) + 1);
      }
      Tokenizer::Data::Token& token = tokens[static_cast<size_t>(id)];
      if (token.present) {
        fail(place.text(), fmt::format("id {} is also that of '{}'", id, token.text));
      }
      token.present = true;
      size_t begin = arena.size();
      arena.append(text);
      token.text = {arena.data() + begin, arena.size() - begin};
      begin = arena.size();
      if (!append_token_bytes(arena, text)) {
        arena.append(text);
      }
      token.bytes = {arena.data() + begin, arena.size() - begin};
      if (!ids.emplace(token.text, id).second) {
        fail(place.text(), fmt::format("the token '{}' stands twice", text));
      }
    };
    for (size_t i = 0; i < description_.vocabulary.size(); ++i) {
      const auto& entry = description_.vocabulary[i];
      const Place place{description_.vocabulary_place, i};
      put(entry.token, check_entry(entry.token, entry.id, place), place);
    }
    const Bpe bpe = make_bpe(tokens, ids);

    std::vector<AddedToken> raw;
    std::vector<AddedToken> normalized;
    for (size_t i = 0; i < description_.added.size(); ++i) {
      AddedToken added = description_.added[i];
      const Place place{"added_tokens", i};
      check_entry(added.content, added.id, place);
      const auto found = ids.find(added.content);
      if (found == ids.end()) {
        put(added.content, added.id, place);
      } else if (found->second != added.id) {
        fail(place.text(), fmt::format("'{}' has id {}, but {} in the vocabulary", added.content,
                                       added.id, found->second));
      }
      tokens[static_cast<size_t>(added.id)].special |= added.special;
      if (added.normalized && description_.nfc) {
        std::string content;
        append_nfc(content, added.content);
        added.content = std::move(content);
      }
      (added.normalized ? normalized : raw).push_back(std::move(added));
    }

    auto data = std::make_shared<Tokenizer::Data>(bpe);
    data->arena = std::move(arena);
    data->tokens = std::move(tokens);
    data->ids = std::move(ids);
    data->nfc = description_.nfc;
    data->raw_added = AddedTokenMatcher(std::move(raw));
    data->normalized_added = AddedTokenMatcher(std::move(normalized));
    for (const auto* ids_around : {&description_.prefix_ids, &description_.suffix_ids}) {
      for (const int32_t id : *ids_around) {
        if (static_cast<size_t>(id) >= data->tokens.size() ||
            !data->tokens[static_cast<size_t>(id)].present) {
          fail("post_processor", fmt::format("id {} is not in the vocabulary", id));
        }
      }
    }
    data->prefix_ids = description_.prefix_ids;
    data->suffix_ids = description_.suffix_ids;
    try {
      data->pre_tokenizer = make_pre_tokenizer(description_.stages);
    } catch (const Error& error) {
      fail("pre_tokenizer", error.what());
    }
    if (!description_.unknown_token.empty()) {
      data->unknown_id = data->ids.at(description_.unknown_token);
    }
    return data;
  }

 private:
  [[noreturn]] void fail(const std::string& place, const std::string& what) const {
    throw IoError(description_.file_name, place, what);
  }

  int32_t check_entry(std::string_view token, int64_t id, const Place& place) const {
    if (id < 0 || static_cast<uint64_t>(id) >= limit_) {
      fail(place.text(),
           fmt::format("id {}, expected 0 to {} for a file of {} tokens", id, limit_ - 1,
                       description_.vocabulary.size() + description_.added.size()));
    }
    if (!is_valid_utf8(token)) {
      fail(place.text(), "a token that is not UTF-8");
    }
    return static_cast<int32_t>(id);
  }

  Bpe make_bpe(const std::vector<Tokenizer::Data::Token>& tokens,
               const std::unordered_map<std::string_view, int32_t>& ids) const {
    std::optional<int32_t> unknown;
    if (!description_.unknown_token.empty()) {
      const auto found = ids.find(description_.unknown_token);
      if (found == ids.end()) {
        fail("model.unk_token",
             fmt::format("'{}' is not in the vocabulary", description_.unknown_token));
      }
      unknown = found->second;
    }
    std::array<Bpe::ByteSymbols, 256> bytes;
    for (unsigned byte = 0; byte < 256; ++byte) {
      bytes[byte] = byte_symbols(byte, ids, unknown);
    }
    Bpe bpe(bytes, description_.fuse_unknown);
    bpe.reserve_merges(description_.merges.size());
    std::string joined;
    for (size_t i = 0; i < description_.merges.size(); ++i) {
      const auto& [left, right] = description_.merges[i];
      joined.assign(left).append(right);
      const auto id = [&](std::string_view token) {
        const auto found = ids.find(token);
        if (found == ids.end()) {
          fail(fmt::format("{}[{}]", description_.merges_place, i),
               fmt::format("'{}' is not in the vocabulary", token));
        }
        return found->second;
      };
      const int32_t left_id = id(left);
      const int32_t right_id = id(right);
      bpe.add_merge(left_id, right_id, id(joined));
    }
    if (description_.ignore_merges) {
      for (size_t id = 0; id < tokens.size(); ++id) {
        // A token that does not spell bytes has its text as bytes, and no word can equal it.
        std::string spelled;
        if (tokens[id].present && append_token_bytes(spelled, tokens[id].text)) {
          bpe.add_whole_word(tokens[id].bytes, static_cast<int32_t>(id));
        }
      }
    }
    return bpe;
  }

  Bpe::ByteSymbols byte_symbols(unsigned byte,
                                const std::unordered_map<std::string_view, int32_t>& ids,
                                std::optional<int32_t> unknown) const {
    Bpe::ByteSymbols symbols;
    std::string character;
    append_code_point(character, character_of_byte(byte));
    if (const auto found = ids.find(character); found != ids.end()) {
      symbols.kind = Bpe::ByteSymbols::kKnown;
      symbols.ids[symbols.count++] = found->second;
      return symbols;
    }
    if (description_.byte_fallback) {
      for (const char c : character) {
        const auto found =
            ids.find(std::string_view(fmt::format("<0x{:02X}>", static_cast<unsigned char>(c))));
        if (found != ids.end()) {
          symbols.ids[symbols.count++] = found->second;
        }
      }
      if (symbols.count == character.size()) {
        symbols.kind = Bpe::ByteSymbols::kFallback;
        return symbols;
      }
      symbols.count = 0;
    }
    if (unknown) {
      symbols.kind = Bpe::ByteSymbols::kUnknown;
      symbols.ids[symbols.count++] = *unknown;
    }
    return symbols;
  }

  const TokenizerDescription& description_;
  size_t limit_ = 0;
};

}  // namespace

int byte_of_character(uint32_t code_point) {
  return code_point < kAlphabet ? kByteAlphabet.byte[code_point] : -1;
}

uint32_t character_of_byte(unsigned byte) {
  return kByteAlphabet.character[byte];
}

std::shared_ptr<Tokenizer::Data> make_tokenizer_data(const TokenizerDescription& description) {
  return Builder(description).build();
}

}  // namespace flashloom
