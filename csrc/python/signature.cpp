#include "python/signature.h"

#include <algorithm>
#include <cctype>
#include <stdexcept>

namespace imc {
namespace {

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(' '), last = text.find_last_not_of(' ');
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (std::size_t first = 0; first <= text.size();) {
    const auto end = std::min(text.find(separator, first), text.size());
    if (const std::string part = trimmed(text.substr(first, end - first)); !part.empty()) parts.push_back(part);
    first = end + 1;
  }
  return parts;
}

[[noreturn]] void unreadable(const std::string& text) { throw std::logic_error("no signature: " + text); }

Size read_size(const std::string& text) {
  Size size;
  size.text = text;
  for (const std::string& term : split(text, '+')) {
    std::size_t at = 0;
    while (at < term.size() && std::isdigit(term[at])) ++at;
    const std::string letters = term.substr(at);
    for (char letter : letters) {
      if (letter < 'a' || letter > 'z') unreadable(text);
    }
    size.terms.push_back({at ? std::stoll(term.substr(0, at)) : 1, letters});
  }
  if (size.terms.empty()) unreadable(text);
  if (text.size() == 1 && std::isalpha(text[0])) size.letter = text[0];
  return size;
}

Argument read_shaped(const std::string& text, std::size_t open) {
  const char closing = text[open] == '[' ? ']' : ')';
  const auto close = text.find(closing, open);
  if (close == std::string::npos) unreadable(text);
  Argument argument{};
  argument.role = closing == ']' ? Role::tensor : Role::workspace;
  argument.name = text.substr(0, open);
  argument.text = text.substr(open, close - open + 1);
  argument.optional = close + 1 < text.size() && text[close + 1] == '?';
  if (argument.optional) argument.with = text.substr(close + 2);
  if (!argument.optional && close + 1 != text.size()) unreadable(text);
  const auto parts = split(text.substr(open + 1, close - open - 1), ' ');
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto dots = parts[i].find("..");
    if (dots != std::string::npos) (i == 0 ? argument.gathers_first : argument.gathers_last) = true;
    if (dots != std::string::npos && i > 0 && i + 1 < parts.size()) unreadable(text);
    argument.sizes.push_back(read_size(parts[i].substr(0, dots)));
  }
  return argument;
}

Argument read_argument(const std::string& text) {
  if (const auto open = text.find_first_of("[("); open != std::string::npos) return read_shaped(text, open);
  const auto words = split(text, ' ');
  Argument argument{};
  argument.name = words[0];
  argument.role = text == "threads"         ? Role::threads
                  : text == "device"        ? Role::device
                  : text == "stream"        ? Role::stream
                  : words[0].size() == 1 ? Role::size
                                            : Role::number;
  if (words.size() == 2 || argument.role == Role::size) argument.letter = read_size(words.back()).letter;
  if (words.size() > 2 || (words.size() == 2 && !argument.letter)) unreadable(text);
  return argument;
}

Condition read_condition(const std::string& text) {
  Condition condition{};
  const auto words = split(text, ' ');
  if (words.size() != 3 && !(words.size() == 5 && words[3] == "if")) unreadable(text);
  condition.text = words[0] + " " + words[1] + " " + words[2];
  if (words[1] != "<=" && words[1] != "<" && words[1] != "=") unreadable(text);
  condition.relation = words[1] == "<=" ? 'l' : words[1][0];
  condition.left = read_size(words[0]);
  condition.right = read_size(words[2]);
  if (words.size() == 5) condition.only_if = words[4][0];
  return condition;
}

}  // namespace

bool Size::known(const Sizes& sizes) const {
  for (const Term& term : terms) {
    for (char one : term.letters) {
      if (!sizes.known(one)) return false;
    }
  }
  return true;
}

std::int64_t Size::value(const Sizes& sizes) const {
  if (letter) return sizes[letter];
  std::int64_t sum = 0;
  for (const Term& term : terms) {
    std::int64_t product = term.factor;
    for (char one : term.letters) {
      if (__builtin_mul_overflow(product, sizes[one], &product)) return -1;
    }
    if (__builtin_add_overflow(sum, product, &sum)) return -1;
  }
  return sum;
}

bool Condition::holds(const Sizes& sizes) const {
  if (only_if && !sizes[only_if]) return true;
  const std::int64_t a = left.value(sizes), b = right.value(sizes);
  if (a < 0 || b < 0) return false;
  return relation == '=' ? a == b : relation == '<' ? a < b : a <= b;
}

Signature::Signature(const std::string& text, const std::string& further) {
  const auto end = std::min(text.find(';'), text.size());
  for (const std::string& part : split(text.substr(0, end) + ", " + further, ',')) {
    arguments.push_back(read_argument(part));
  }
  for (const std::string& part : split(text.substr(end), ';')) conditions.push_back(read_condition(part));
}

}  // namespace imc
