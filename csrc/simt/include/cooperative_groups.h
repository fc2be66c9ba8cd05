#pragma once

#include "simt/executor.h"

namespace cooperative_groups {

struct grid_group {
  void sync() const { simt::sync_grid(); }
};
inline grid_group this_grid() { return {}; }

struct cluster_group {
  void sync() const { simt::sync_cluster(); }
  unsigned block_rank() const { return simt::cluster_rank(); }
  unsigned num_blocks() const { return simt::cluster_size(); }
  template <typename T>
  T* map_shared_rank(T* address, unsigned rank) const {
    return static_cast<T*>(simt::cluster_peer(address, rank));
  }
};
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
