// What a function of a compiled module takes: one string that mirrors its kernel's C++ signature, such as
//
//   "scores[p.. b k], marginals[k]?, rows[p i b]?, workspace(p b k), p, b, k, epsilon, iterations i; 1 <= i"
//
//   scores[p.. b k]   a contiguous tensor. A letter is a size, at least 1; "2" and "vk+1" are made of sizes; ".." after
//                     the first or the last size gathers any number of dimensions there
//   marginals[k]?     it may be None; "columns[p i k]?rows" is None exactly where rows is
//   workspace(p b k)  memory that the binding takes, as much as the kernel asks for these sizes
//   p                 a size that the kernel is given: the tensors say it, Python does not
//   epsilon           a number; "iterations i" is one that is a size too
//   threads, device, stream   what their names say; the last two come from torch
//   1 <= i; c = k if s        what must hold
//
// The element types are those of the kernel's pointers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace imc {

// The values of letters.
class Sizes {
 public:
  bool known(char letter) const { return known_ >> (letter - 'a') & 1; }
  std::int64_t operator[](char letter) const { return values_[letter - 'a']; }
  void set(char letter, std::int64_t value) {
    values_[letter - 'a'] = value;
    known_ |= 1u << (letter - 'a');
  }

 private:
  std::int64_t values_[26] = {};
  std::uint32_t known_ = 0;
};

// A sum of products of letters, such as "vk+1".
struct Size {
  struct Term {
    std::int64_t factor;
    std::string letters;
  };
  std::string text;
  std::vector<Term> terms;
  char letter = 0;  // where it is one letter alone

  bool known(const Sizes& sizes) const;
  std::int64_t value(const Sizes& sizes) const;  // -1 where it overflows; all its letters are known
};

enum class Role { tensor, workspace, size, number, threads, device, stream };

struct Argument {
  Role role;
  std::string name, text;  // text: of a tensor's shape
  std::vector<Size> sizes;
  bool optional = false, gathers_first = false, gathers_last = false;
  std::string with;  // the tensor without which this is None
  char letter = 0;   // of a size, and of a number that is one
};

struct Condition {
  std::string text;
  char relation;  // '=', '<' or 'l' for <=
  Size left, right;
  char only_if = 0;

  bool holds(const Sizes& sizes) const;
};

struct Signature {
  std::vector<Argument> arguments;
  std::vector<Condition> conditions;

  // `further` arguments follow those of the text. Throws std::logic_error where it cannot be read.
  Signature(const std::string& text, const std::string& further);
};

}  // namespace imc
