// Reads JSON in place, value by value, without building a tree: files of results are large, and a
// few fields of each entry are wanted.
//
//   JsonReader json(text, size);
//   json.read_object([&](std::string_view key) {     // must consume the value of every key
//     if (key == "score") score = json.read_number();
//     else json.skip_value();
//   });
//
// Errors are std::invalid_argument with the byte where the text is at fault.
#pragma once

#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>

#include "core/check.h"

namespace fastseg {

class JsonReader {
 public:
  JsonReader(const char* text, int64_t size) : begin_(text), at_(text), end_(text + size) {}

  int64_t position() const { return at_ - begin_; }

  // The first character of the next value, or 0 at the end of the text.
  char peek() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
    return at_ == end_ ? '\0' : *at_;
  }

  [[noreturn]] void fail(const char* expected) {
    const std::string found = peek() == '\0' ? "the end" : "'" + std::string(1, *at_) + "'";
    throw std::invalid_argument(
        message("JSON: expected ", expected, " at byte ", position(), ", got ", found));
  }

  template <class Member>
  void read_object(Member&& member) {
    take('{', "an object");
    const Nested nested(this);
    if (taken('}')) return;
    do {
      if (peek() != '"') fail("a key");
      const std::string_view key = read_plain_string();
      take(':', "':'");
      member(key);
    } while (taken(','));
    take('}', "',' or '}'");
  }

  template <class Item>
  void read_array(Item&& item) {
    take('[', "an array");
    const Nested nested(this);
    if (taken(']')) return;
    do {
      item();
    } while (taken(','));
    take(']', "',' or ']'");
  }

  // Part of an array: from its '[' (`from_start`) or from an item, to the item at `stop` or, if
  // that is null, to the array's end, which must be the text's. False when no item begins at
  // `stop`.
  template <class Item>
  bool read_items(bool from_start, const char* stop, Item&& item) {
    if (from_start) take('[', "an array");
    const Nested nested(this);
    do {
      peek();
      if (stop != nullptr && at_ >= stop) return at_ == stop;
      item();
    } while (taken(','));
    take(']', "',' or ']'");
    expect_end();
    return stop == nullptr;
  }

  double read_number() {
    const char first = peek();
    double value = 0;
    if (first == 'N' || first == 'I') return read_special(first);
    if (first == '-' && end_ - at_ > 1 && at_[1] == 'I') return ++at_, -read_special('I');
    if (first != '-' && (first < '0' || first > '9')) fail("a number");
    const auto [next, error] = std::from_chars(at_, end_, value);
    if (error == std::errc::result_out_of_range) return read_out_of_range(next);
    if (error != std::errc()) fail("a number");
    at_ = next;
    return value;
  }

  // A number without a fraction, as 3 or 3.0.
  int64_t read_integer() {
    peek();
    int64_t value = 0;
    const auto [next, error] = std::from_chars(at_, end_, value);
    if (error == std::errc() && (next == end_ || (*next != '.' && *next != 'e' && *next != 'E'))) {
      at_ = next;
      return value;
    }
    const char* const start = at_;
    const double number = read_number();
    if (!(std::abs(number) < 9e15) || number != std::floor(number)) {
      at_ = start;
      fail("an integer");
    }
    return static_cast<int64_t>(number);
  }

  // true and false, and numbers.
  bool read_flag() {
    const char first = peek();
    if (first != 't' && first != 'f') return read_number() != 0;
    skip_word(first == 't' ? "true" : "false");
    return first == 't';
  }

  // Appends the string to `text`, with its escapes resolved.
  void append_string(std::string* text) {
    take('"', "a string");
    while (true) {
      const char* const quote = find('"');
      const void* const escape = std::memchr(at_, '\\', quote - at_);
      if (escape == nullptr) {
        text->append(at_, quote);
        at_ = quote + 1;
        return;
      }
      text->append(at_, static_cast<const char*>(escape));
      at_ = static_cast<const char*>(escape) + 1;
      if (at_ == end_) fail("an escape");
      append_escape(text);
    }
  }

  void skip_value() {
    switch (peek()) {
      case '{':
        return read_object([&](std::string_view) { skip_value(); });
      case '[':
        return read_array([&] { skip_value(); });
      case '"':
        read_plain_string();
        return;
      case 't':
        return skip_word("true");
      case 'f':
        return skip_word("false");
      case 'n':
        return skip_word("null");
      default:
        read_number();
    }
  }

  // Whether the next value is null, which is then consumed.
  bool read_null() {
    if (peek() != 'n') return false;
    skip_word("null");
    return true;
  }

  void expect_end() {
    if (peek() != '\0') fail("the end");
  }

 private:
  // Counts the values that the current one lies in: deeper ones would exhaust the stack.
  struct Nested {
    explicit Nested(JsonReader* json) : json(json) {
      if (++json->depth_ > kMaxDepth) json->fail("fewer nested values");
    }
    ~Nested() { --json->depth_; }
    JsonReader* json;
  };
  static constexpr int kMaxDepth = 500;

  bool taken(char wanted) {
    if (peek() != wanted || at_ == end_) return false;
    ++at_;
    return true;
  }

  void take(char wanted, const char* expected) {
    if (!taken(wanted)) fail(expected);
  }

  const char* find(char wanted) {
    const void* const found = std::memchr(at_, wanted, end_ - at_);
    if (found == nullptr) {
      at_ = end_;
      fail("the end of a string");
    }
    return static_cast<const char*>(found);
  }

  // A string as it is written, escapes and all.
  std::string_view read_plain_string() {
    take('"', "a string");
    const char* const start = at_;
    while (true) {
      const char* const quote = find('"');
      int64_t escapes = 0;
      while (quote - escapes > start && quote[-escapes - 1] == '\\') ++escapes;
      at_ = quote + 1;
      if (escapes % 2 == 0) return {start, static_cast<size_t>(quote - start)};
    }
  }

  void skip_word(std::string_view word) {
    if (static_cast<size_t>(end_ - at_) < word.size() || std::memcmp(at_, word.data(), word.size()))
      fail("a value");
    at_ += word.size();
  }

  double read_special(char first) {  // what Python writes for these
    skip_word(first == 'N' ? "NaN" : "Infinity");
    return first == 'N' ? std::nan("") : std::numeric_limits<double>::infinity();
  }

  // Beyond the range of double: 0 or infinity, as the exponent's sign says.
  double read_out_of_range(const char* next) {
    const std::string_view number(at_, next - at_);
    at_ = next;
    const size_t exponent = number.find_first_of("eE");
    const bool tiny = exponent != std::string_view::npos && number[exponent + 1] == '-';
    const double size = tiny ? 0 : std::numeric_limits<double>::infinity();
    return number[0] == '-' ? -size : size;
  }

  void append_escape(std::string* text) {
    static constexpr char kNames[] = "\"\\/bfnrt", kValues[] = "\"\\/\b\f\n\r\t";
    const char escaped = *at_;
    if (const char* const name = std::strchr(kNames, escaped); name != nullptr && escaped != 0) {
      text->push_back(kValues[name - kNames]);
      ++at_;
      return;
    }
    int code = 0;
    const char* const last = at_ + 5;
    const bool complete = escaped == 'u' && end_ - at_ >= 5 &&
                          std::from_chars(at_ + 1, last, code, 16).ptr == last && code < 128;
    if (!complete) fail("an escape of an ASCII character");
    text->push_back(static_cast<char>(code));
    at_ = last;
  }

  const char *begin_, *at_, *end_;
  int depth_ = 0;
};

}  // namespace fastseg
