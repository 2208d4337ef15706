#include "flashloom/json/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace flashloom {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

Json parsed(std::string_view text) {
  return parse_strict_json(text, "test.json");
}

std::string error_of(std::string_view text) {
  try {
    parsed(text);
  } catch (const IoError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Json, LiteralsAreObjectsAndKeepTheirOrder) {
  const Json json = {{"zebra", 1},
                     {"apple", {{"colour", "red"}}},
                     {"sizes", std::vector<int64_t>{3, 2}},
                     {"pair", Json::array({"a", 0.5})},
                     {"nothing", nullptr},
                     {"truth", true}};
  EXPECT_EQ(json.dump(), R"({"zebra":1,"apple":{"colour":"red"},"sizes":[3,2],"pair":["a",0.5],)"
                         R"("nothing":null,"truth":true})");
  // Two strings in braces are a member, not a list.
  EXPECT_EQ(Json({{"type", "NFC"}}).dump(), R"({"type":"NFC"})");
}

// nlohmann/json is the oracle of the layout.
TEST(Json, WritesAndReadsAsNlohmannDoes) {
  const std::string texts[] = {
      "null",
      "[]",
      "{}",
      "[[],{}]",
      R"({"a":[1,-2,3.5,1e-7,1e22,18446744073709551615],"b":{"c":[]}})",
      R"(["\u0000\n\"\\/","é","\ud83d\ude00",true,false,0.1,-0.0,5e-324,1.7976931348623157e308])"};
  for (const std::string& text : texts) {
    const auto oracle = nlohmann::ordered_json::parse(text);
    const Json json = parsed(text);
    EXPECT_EQ(json.dump(), oracle.dump());
    EXPECT_EQ(json.dump(2), oracle.dump(2));
    EXPECT_EQ(json.dump(-1, JsonText::ascii), oracle.dump(-1, ' ', true));
    EXPECT_EQ(parsed(json.dump()), json);
  }
}

TEST(Json, NumbersKeepAllTheirBits) {
  EXPECT_EQ(parsed("9223372036854775807").integer(), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(parsed("-9223372036854775808").integer(), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(parsed("18446744073709551615").unsigned_integer(),
            std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(Json(std::numeric_limits<uint64_t>::max()).dump(), "18446744073709551615");
  EXPECT_EQ(parsed("3").number(), 3.0);
  EXPECT_EQ(Json(0.25f).number(), 0.25);
  EXPECT_TRUE(parsed("3").is_unsigned());
  EXPECT_FALSE(parsed("-3").is_unsigned());
  EXPECT_FALSE(parsed("3.0").is_integer());
}

TEST(Json, SaysWhatItIsInsteadOfWhatWasAskedFor) {
  const Json json = parsed(R"({"big": 18446744073709551615, "text": "x"})");
  const auto asked = [](auto ask) { return [ask] { static_cast<void>(ask()); }; };
  EXPECT_THAT(asked([&] { return json.at("text").integer(); }),
              ThrowsMessage<JsonError>("expected a whole number below 2^63, got \"x\""));
  EXPECT_THAT(asked([&] { return json.at("big").integer(); }),
              ThrowsMessage<JsonError>(HasSubstr("2^63")));
  EXPECT_THAT(asked([&] { return json.at("absent"); }),
              ThrowsMessage<JsonError>("'absent' is missing"));
  EXPECT_THAT(asked([&] { return json.elements().size(); }),
              ThrowsMessage<JsonError>(HasSubstr("a list")));
  EXPECT_THAT(asked([&] { return json.at("text").at("deeper"); }),
              ThrowsMessage<JsonError>(HasSubstr("an object")));
  EXPECT_EQ(json.find("absent"), nullptr);
  EXPECT_EQ(json.at("text").find("deeper"), nullptr);
}

TEST(Json, MembersAreMadeAndErased) {
  Json json;
  json["a"]["b"] = 1;
  json["list"].push_back("x");
  json["a"]["b"] = 2;
  EXPECT_EQ(json.dump(), R"({"a":{"b":2},"list":["x"]})");
  json.erase("a");
  EXPECT_EQ(json.dump(), R"({"list":["x"]})");
  EXPECT_THROW(json["list"]["name"], JsonError);
  EXPECT_THROW(json.push_back(1), JsonError);
}

TEST(Json, EqualityIsOfValues) {
  EXPECT_EQ(parsed(R"({"a": 1, "b": [2]})"), parsed(R"({"b": [2.0], "a": 1})"));
  EXPECT_NE(parsed("[1, 2]"), parsed("[2, 1]"));
  EXPECT_NE(parsed("1"), parsed("true"));
  EXPECT_NE(parsed(R"({"a": 1})"), parsed(R"({"b": 1})"));
  EXPECT_EQ(parsed("\"x\""), "x");
}

TEST(Json, TextThatIsNoUtf8) {
  const Json json("a\xff");
  EXPECT_THAT([&] { json.dump(); }, ThrowsMessage<JsonError>(HasSubstr("UTF-8")));
  EXPECT_EQ(json.dump(-1, JsonText::replaced), "\"a\xef\xbf\xbd\"");
}

TEST(ParseStrictJson, NamesTheByte) {
  EXPECT_THAT(error_of("{\"a\": 1"), HasSubstr("test.json: byte 8: malformed JSON"));
  EXPECT_THAT(error_of("[1] 2"), HasSubstr("byte 5: malformed JSON"));
  EXPECT_THAT(error_of(""), HasSubstr("malformed JSON"));
  EXPECT_THAT(error_of("\"\xff\""), HasSubstr("malformed JSON"));
  EXPECT_THAT(error_of("1e999"), HasSubstr("a number beyond all limits"));
  EXPECT_THAT(error_of(R"({"a": {"b": 1, "b": 2}})"), HasSubstr("\"b\": name given twice"));
  EXPECT_EQ(error_of(R"({"a": {"b": 1}, "b": 2})"), "no error");
}

TEST(ParseStrictJson, RefusesDeepNesting) {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') +
           std::string(static_cast<size_t>(depth), ']');
  };
  EXPECT_EQ(error_of(nested(kMaxJsonNesting)), "no error");
  EXPECT_THAT(error_of(nested(kMaxJsonNesting + 1)), HasSubstr("nested deeper than 64"));
  EXPECT_THAT(error_of(std::string(100000, '[')), HasSubstr("nested deeper"));
}

TEST(JsonFault, IsTheFirstByteThatIsWrong) {
  EXPECT_EQ(json_fault("[1, 2]"), std::nullopt);
  EXPECT_EQ(json_fault("[1,, 2]"), 4u);
}

}  // namespace
}  // namespace flashloom
