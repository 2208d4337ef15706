#include "flashloom/text/token_shard.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr int64_t kHeaderBytes = 1024;
constexpr std::string_view kLlmqMagic = "BIN.TOK\n";
constexpr int32_t kLlmcMagic16 = 20240520;
constexpr int32_t kLlmcMagic32 = 20240801;
constexpr int64_t kBlock = 1 << 16;  // tokens read at a time; a multiple of 8, for the masks

using Header = std::array<int32_t, kHeaderBytes / 4>;

struct Layout {
  int64_t tokens = 0;
  int64_t width = 4;       // bytes of a token
  int64_t vocabulary = 0;  // 0: not said
  bool masks = false;
};

class Shard {
 public:
  explicit Shard(const std::filesystem::path& file)
      : name_(file.string()), tokens_(file, std::ios::binary), masks_(file, std::ios::binary) {
    std::error_code error;
    if (std::filesystem::is_directory(file, error)) {
      fail("", "expected a file, got a directory");
    }
    if (!tokens_ || !masks_) {
      fail("", fmt::format("cannot be opened: {}", std::strerror(errno)));
    }
    const auto size = static_cast<int64_t>(std::filesystem::file_size(file, error));
    if (error) {
      fail("", error.message());
    }
    Header header = {};
    if (size < kHeaderBytes ||
        !tokens_.read(reinterpret_cast<char*>(header.data()), kHeaderBytes)) {
      fail("header", fmt::format("expected {} bytes, found a file of {}", kHeaderBytes, size));
    }
    layout_ = parse(header);
    const int64_t mask_bytes = layout_.masks ? (layout_.tokens + 7) / 8 : 0;
    const int64_t expected = kHeaderBytes + layout_.tokens * layout_.width + mask_bytes;
    if (size != expected) {
      fail("header", fmt::format("says {} tokens of {} bytes{}, a file of {} bytes; it has {}",
                                 layout_.tokens, layout_.width,
                                 layout_.masks ? " and their masks" : "", expected, size));
    }
    masks_.seekg(kHeaderBytes + layout_.tokens * layout_.width);
  }

  const Layout& layout() const { return layout_; }

  // The next tokens with their masks; empty behind the last.
  void next(std::vector<int32_t>& tokens, std::vector<uint8_t>& loss) {
    const int64_t count = std::min(kBlock, layout_.tokens - read_);
    tokens.resize(static_cast<size_t>(count));
    loss.assign(static_cast<size_t>(count), 1);
    bytes_.resize(static_cast<size_t>(count * layout_.width));
    fill(tokens_, bytes_);
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (layout_.width == 2) {
        uint16_t token = 0;
        std::memcpy(&token, bytes_.data() + 2 * i, 2);
        tokens[i] = token;
      } else {
        std::memcpy(&tokens[i], bytes_.data() + 4 * i, 4);
      }
    }
    if (layout_.masks) {
      bytes_.resize(static_cast<size_t>((count + 7) / 8));
      fill(masks_, bytes_);
      for (size_t i = 0; i < loss.size(); ++i) {
        loss[i] = static_cast<uint8_t>(bytes_[i / 8] >> (i % 8) & 1);
      }
    }
    read_ += count;
  }

  [[noreturn]] void fail(std::string_view place, std::string_view what) const {
    throw IoError(name_, place, what);
  }

 private:
  Layout parse(const Header& header) const {
    Layout layout;
    if (std::memcmp(header.data(), kLlmqMagic.data(), kLlmqMagic.size()) == 0) {
      const int32_t version = header[2];
      if (version != 1 && version != 2) {
        fail("header", fmt::format("expected version 1 or 2 of BIN.TOK, found {}", version));
      }
      if (header[3] != 4) {
        fail("header", fmt::format("expected 4 bytes a token, found {}", header[3]));
      }
      layout.tokens = header[4];
      if (version == 2) {
        if (header[5] < 0 || header[6] < 0 || header[6] > 1) {
          fail("header", fmt::format("expected a vocabulary, and masks 0 or 1; found {} and {}",
                                     header[5], header[6]));
        }
        layout.vocabulary = header[5];
        layout.masks = header[6] == 1;
      }
    } else if (header[0] == kLlmcMagic16 || header[0] == kLlmcMagic32) {
      const int32_t version = header[0] == kLlmcMagic16 ? 1 : 7;
      if (header[1] != version) {
        fail("header",
             fmt::format("expected version {} with {}, found {}", version, header[0], header[1]));
      }
      layout.tokens = header[2];
      layout.width = header[0] == kLlmcMagic16 ? 2 : 4;
    } else {
      fail("header",
           fmt::format("expected the tokens of llm.c ({} or {}) or of LLMQ (BIN.TOK), found {}",
                       kLlmcMagic16, kLlmcMagic32, header[0]));
    }
    if (layout.tokens < 1) {
      fail("header", fmt::format("expected one or more tokens, found {}", layout.tokens));
    }
    return layout;
  }

  void fill(std::ifstream& stream, std::vector<uint8_t>& bytes) const {
    if (!stream.read(reinterpret_cast<char*>(bytes.data()),
                     static_cast<std::streamsize>(bytes.size()))) {
      fail("", "cannot be read to its end");
    }
  }

  std::string name_;
  std::ifstream tokens_, masks_;
  Layout layout_;
  int64_t read_ = 0;
  std::vector<uint8_t> bytes_;
};

}  // namespace

void read_token_shard(
    const std::filesystem::path& file, const Tokenizer& tokenizer, int64_t longest,
    FunctionRef<void(std::span<const int32_t> tokens, std::span<const uint8_t> loss, bool begins)>
        visit) {
  if (longest < 1) {
    throw InvalidArgument("read_token_shard", "longest", "1 or more", fmt::format("{}", longest));
  }
  Shard shard(file);
  const bool masks = shard.layout().masks;
  const int32_t vocabulary = tokenizer.vocabulary_size();
  if (shard.layout().vocabulary > vocabulary) {
    shard.fail("header", fmt::format("made with a vocabulary of {}; the model's tokenizer has {}",
                                     shard.layout().vocabulary, vocabulary));
  }
  std::vector<int32_t> block, piece;
  std::vector<uint8_t> block_loss, piece_loss;
  bool begins = true;
  bool filling = masks;  // in what may fill an example up
  int64_t zeros = 0;
  const auto put = [&](int32_t token, uint8_t loss) {
    piece.push_back(token);
    piece_loss.push_back(loss);
  };
  const auto give = [&](bool ends) {
    if (!piece.empty()) {
      visit(piece, piece_loss, begins);
      begins = false;
      piece.clear();
      piece_loss.clear();
    }
    if (ends) {
      begins = true;
      filling = masks;
      zeros = 0;
    }
  };
  int64_t place = 0;
  for (shard.next(block, block_loss); !block.empty(); shard.next(block, block_loss)) {
    for (size_t i = 0; i < block.size(); ++i, ++place) {
      const int32_t token = block[i];
      if (token < 0 || token >= vocabulary) {
        shard.fail(fmt::format("token {}", place),
                   fmt::format("expected 0 to {} (the model's tokenizer), found {}", vocabulary - 1,
                               token));
      }
      if (filling && token == 0 && block_loss[i] == 0) {
        ++zeros;
        continue;
      }
      if (filling && zeros > 0 && tokenizer.bos_id() == 0) {
        put(0, 0);
      }
      filling = false;
      if (static_cast<int64_t>(piece.size()) == longest) {
        give(/*ends=*/false);
      }
      put(token, block_loss[i]);
      if (tokenizer.is_end(token) && (!masks || block_loss[i] != 0)) {
        give(/*ends=*/true);
      }
    }
  }
  give(/*ends=*/true);
}

}  // namespace flashloom
