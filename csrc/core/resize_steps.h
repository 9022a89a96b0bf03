// From cells to pixels by one or two bilinear resizes (torch's F.interpolate, align_corners=False)
// with a crop in between: what a model does to the masks that it predicts at a part of its input's
// size. They go to the size of its padded input (`via`), the padding is cropped off, and the rest
// goes to the size of the original image.
#pragma once

#include <cstdint>

namespace fastseg {

// Heights and widths; all are at least 1 and below 2^31 but where there is no `via`.
struct ResizeSteps {
  int64_t cells[2] = {};
  int64_t via[2] = {};   // of the first resize; zeros: there is one alone
  int64_t crop[2] = {};  // rows and columns of it that the second one starts from
  int64_t size[2] = {};  // of the result

  bool has_via() const { return via[0] > 0; }
};

}  // namespace fastseg
