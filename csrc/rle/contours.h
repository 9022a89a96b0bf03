// The contours of a mask, along the edges of its pixels.
//
// A row where a column changes is a horizontal edge of length 1: the upper edge of an interval, run
// through rightwards, or a lower one, run through leftwards, so that the mask is on the right hand.
// On the line between two columns, the sorted edges of both that end there pair up: between the two
// of a pair, one column is inside and the other is not, which is a vertical edge. So each
// horizontal edge has one that follows it, and the contours are the cycles.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "rle/columns.h"

namespace fastseg {

struct Corner {
  int64_t x, y;
};

// Regions of pixels that share a side, each with its outer contour (clockwise on screen) and those
// of its holes (counter-clockwise). Finds those of one mask after the other; keeps its memory.
class ContourFinder {
 public:
  void find(const Runs& runs, int64_t height) {
    columns_.assign(runs, height);
    list_edges();
    link_edges();
    list_rings();
  }

  struct Ring {
    int64_t first_edge;  // the uppermost of the leftmost: a lower edge for holes
    int64_t outer;       // the ring around this one; itself for an outer one
  };
  const std::vector<Ring>& rings() const { return rings_; }

  // The corners of one ring.
  void append_ring(const Ring& ring, std::vector<Corner>* corners) const {
    const size_t begin = corners->size();
    int64_t edge = ring.first_edge;
    do {
      edge = follow(edge, begin, corners);
    } while (edge != ring.first_edge);
  }

  // The corners of an outer ring with its holes: from the upper left corner of each hole a cut goes
  // up to the contour above, there and back.
  void append_joined(const Ring& ring, std::vector<Corner>* corners) const {
    struct Walk {
      int64_t first, edge;
      bool closed;
    };
    const size_t begin = corners->size();
    std::vector<Walk> walks = {{ring.first_edge, ring.first_edge, false}};
    while (!walks.empty()) {
      Walk& walk = walks.back();
      if (walk.closed) {
        const int64_t hole = walk.first;
        walks.pop_back();
        if (walks.empty()) break;
        append_corner(left_end(hole), begin, corners);
        append_corner(left_end(hole - 1), begin, corners);
        continue;
      }
      const int64_t edge = follow(walk.edge, begin, corners);
      walk.edge = edge;
      walk.closed = edge == walk.first;
      if (!begins_hole_[edge]) continue;
      append_corner(left_end(edge), begin, corners);
      append_corner(left_end(edge + 1), begin, corners);
      walks.push_back({edge + 1, edge + 1, false});
    }
  }

 private:
  // Edges have the numbers of their rows in columns_, so upper edges are even.
  static bool is_upper(int64_t edge) { return edge % 2 == 0; }

  void list_edges() {
    edges_.clear();
    for (int64_t x = 0; x < columns_.size(); ++x) {
      const Intervals column = columns_[x];
      for (int64_t i = 0; i < column.size; ++i) {
        edges_.push_back({columns_.first() + x, column.rows[i]});
      }
    }
  }

  // Pairs up the edges on each line: edges [left, middle) of the column before it and [middle, end)
  // of the one behind it.
  void link_edges() {
    next_.resize(edges_.size());
    int64_t left = 0, middle = 0;
    for (int64_t x = 0; x <= columns_.size(); ++x) {
      const int64_t end = middle + (x < columns_.size() ? columns_[x].size : 0);
      int64_t i = left, j = middle, waiting = -1;
      while (i < middle || j < end) {
        const bool from_left = j == end || (i < middle && comes_first(i, j));
        const int64_t edge = from_left ? i++ : j++;
        if (waiting < 0) {
          waiting = edge;
          continue;
        }
        // One of the two comes to this line, the other leaves it.
        const bool waiting_arrives = (waiting < middle) == is_upper(waiting);
        waiting_arrives ? next_[waiting] = edge : next_[edge] = waiting;
        waiting = -1;
      }
      left = middle;
      middle = end;
    }
  }

  // Where pixels meet at a corner alone, the contour stays with the pixel whose edge ends: lower
  // edges come first.
  bool comes_first(int64_t a, int64_t b) const {
    return edges_[a].y < edges_[b].y || (edges_[a].y == edges_[b].y && !is_upper(a));
  }

  void list_rings() {
    rings_.clear();
    ring_of_.assign(edges_.size(), -1);
    begins_hole_.assign(edges_.size(), false);
    for (int64_t first = 0; first < static_cast<int64_t>(edges_.size()); ++first) {
      if (ring_of_[first] >= 0) continue;
      const int64_t ring = rings_.size();
      // Right above a hole lies the mask, and the interval there begins on a ring that is known.
      rings_.push_back({first, is_upper(first) ? ring : rings_[ring_of_[first - 1]].outer});
      if (!is_upper(first)) begins_hole_[first - 1] = true;
      for (int64_t edge = first; ring_of_[edge] < 0; edge = next_[edge]) ring_of_[edge] = ring;
    }
  }

  // Goes from the end of an edge to the one that follows, which is returned.
  int64_t follow(int64_t edge, size_t begin, std::vector<Corner>* corners) const {
    const int64_t next = next_[edge], line = edges_[edge].x + is_upper(edge);
    if (edges_[edge].y != edges_[next].y) {
      append_corner({line, edges_[edge].y}, begin, corners);
      append_corner({line, edges_[next].y}, begin, corners);
    }
    return next;
  }

  Corner left_end(int64_t edge) const { return edges_[edge]; }

  // Leaves out what repeats the last corner of the ring that begins at `begin`.
  static void append_corner(Corner corner, size_t begin, std::vector<Corner>* corners) {
    const bool repeats =
        corners->size() > begin && corners->back().x == corner.x && corners->back().y == corner.y;
    if (!repeats) corners->push_back(corner);
  }

  Columns columns_;
  std::vector<Corner> edges_;  // the left ends
  std::vector<int64_t> next_;  // the edge that follows along the contour
  std::vector<Ring> rings_;
  std::vector<int64_t> ring_of_;
  std::vector<bool> begins_hole_;  // whether the edge right below it, a lower one, begins a hole
};

}  // namespace fastseg
