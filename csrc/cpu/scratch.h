// Where scratch memory comes from. Large blocks stay with the thread that used them: given back to the system after every
// call, their pages would be mapped and cleared anew each time, which took longer than the arithmetic (all losses of an
// IMC-SwAV step at the paper's sizes: 4,000 page faults, 14 ms; kept, 7 ms).
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace imc::IMC_ISA {

struct Block {
  void* data;
  std::size_t bytes;
};

constexpr std::size_t kSmallBlock = std::size_t(1) << 16;  // the allocator keeps smaller ones itself
constexpr std::size_t kKeptBytes = std::size_t(64) << 20;  // by a thread, at most
constexpr std::size_t kHugePage = std::size_t(2) << 20;

class KeptBlocks {
 public:
  // The smallest kept block that is large enough and not far too large, or none.
  Block take(std::size_t bytes) {
    std::size_t best = blocks_.size();
    for (std::size_t i = 0; i < blocks_.size(); ++i)
      if (blocks_[i].bytes >= bytes && blocks_[i].bytes <= 2 * bytes &&
          (best == blocks_.size() || blocks_[i].bytes < blocks_[best].bytes))
        best = i;
    if (best == blocks_.size()) return {nullptr, 0};
    std::swap(blocks_[best], blocks_.back());
    const Block block = blocks_.back();
    blocks_.pop_back();
    bytes_ -= block.bytes;
    return block;
  }
  // Keeps a block, in place of the oldest where there are too many. Called by destructors: it does not throw.
  void keep(Block block) noexcept {
    if (block.bytes > kKeptBytes || !has_room()) return std::free(block.data);
    while (bytes_ + block.bytes > kKeptBytes) {
      bytes_ -= blocks_.front().bytes;
      std::free(blocks_.front().data);
      blocks_.erase(blocks_.begin());
    }
    blocks_.push_back(block);
    bytes_ += block.bytes;
  }
  ~KeptBlocks() {
    for (const Block& block : blocks_) std::free(block.data);
  }

 private:
  bool has_room() noexcept {
    try {
      blocks_.reserve(kKeptBytes / kSmallBlock);
      return true;
    } catch (const std::bad_alloc&) {
      return false;
    }
  }

  std::vector<Block> blocks_;
  std::size_t bytes_ = 0;
};

inline KeptBlocks& kept_blocks() {
  thread_local KeptBlocks blocks;
  return blocks;
}

inline Block take_block(std::size_t bytes) {
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  bytes = (bytes + alignment - 1) / alignment * alignment;
  if (bytes == 0) bytes = alignment;
#ifndef __SANITIZE_ADDRESS__  // which would not see a block's end
  if (bytes >= kSmallBlock)
    if (const Block block = kept_blocks().take(bytes); block.data) return block;
#endif
  void* data = std::aligned_alloc(alignment, bytes);
  if (!data) throw std::bad_alloc();
#ifdef __linux__
  if (alignment == kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return {data, bytes};
}

inline void return_block(Block block) {
#ifndef __SANITIZE_ADDRESS__
  if (block.bytes >= kSmallBlock) return kept_blocks().keep(block);
#endif
  std::free(block.data);
}

}  // namespace imc::IMC_ISA
