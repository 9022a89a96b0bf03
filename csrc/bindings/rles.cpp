#include "bindings/rles.h"

namespace fastseg {
namespace {

void read_count_list(const py::sequence& counts, const char* name, size_t index, Rle* rle) {
  const size_t size = counts.size();
  for (size_t i = 0; i < size; ++i) {
    const int64_t count = counts[i].cast<int64_t>();
    FASTSEG_CHECK(count >= 0 && count <= kMaxMaskArea - rle->total, name, "[", index, "]: counts[",
                  i, "] must be at least 0 and the sum less than 2^32, got ", count);
    if (i > 0) rle->toggles.push_back(static_cast<uint32_t>(rle->total));
    rle->total += count;
  }
}

// dict[key] or null, borrowed; keys are interned once, as this is called for every RLE.
PyObject* item(const py::dict& dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict.ptr(), key);
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

Rle read_rle(py::handle object, const char* name, size_t index) {
  if (!py::isinstance<py::dict>(object)) {
    throw py::type_error(message(name, "[", index,
                                 "] must be a dict with 'size' and 'counts', got ",
                                 Py_TYPE(object.ptr())->tp_name));
  }
  const auto dict = py::reinterpret_borrow<py::dict>(object);
  static PyObject* const size_key = PyUnicode_InternFromString("size");
  static PyObject* const counts_key = PyUnicode_InternFromString("counts");
  const py::handle size = item(dict, size_key), counts = item(dict, counts_key);
  FASTSEG_CHECK(size && counts, name, "[", index, "] must have the keys 'size' and 'counts', got ",
                py::cast<std::string>(py::repr(py::list(dict))));
  Rle rle;
  rle.counts = py::reinterpret_borrow<py::object>(counts);
  try {
    const auto pair = size.cast<std::pair<int64_t, int64_t>>();
    rle.height = pair.first;
    rle.width = pair.second;
  } catch (const py::cast_error&) {
    FASTSEG_CHECK(false, name, "[", index, "]: size must be [height, width], got ",
                  py::cast<std::string>(py::repr(size)));
  }
  FASTSEG_CHECK(fits_rle(rle.height, rle.width), name, "[", index,
                "]: size must be of fewer than 2^32 pixels, got ", rle.size());
  rle.area = static_cast<uint32_t>(rle.height * rle.width);
  if (PyBytes_Check(counts.ptr())) {
    rle.text = PyBytes_AS_STRING(counts.ptr());
    rle.text_size = PyBytes_GET_SIZE(counts.ptr());
  } else if (PyUnicode_Check(counts.ptr())) {
    Py_ssize_t length = 0;
    rle.text = PyUnicode_AsUTF8AndSize(counts.ptr(), &length);
    if (rle.text == nullptr) throw py::error_already_set();
    rle.text_size = length;
  } else if (py::isinstance<py::sequence>(counts)) {
    try {
      read_count_list(py::reinterpret_borrow<py::sequence>(counts), name, index, &rle);
    } catch (const py::cast_error&) {
      throw py::type_error(message(name, "[", index, "]: counts must hold integers"));
    }
  } else {
    throw py::type_error(message(name, "[", index,
                                 "]: counts must be bytes, str or a list of ints, got ",
                                 Py_TYPE(counts.ptr())->tp_name));
  }
  return rle;
}

}  // namespace

bool fits_rle(int64_t height, int64_t width) {
  return height >= 0 && width >= 0 && (width == 0 || height <= kMaxMaskArea / width);
}

uint32_t checked_area(int64_t height, int64_t width) {
  FASTSEG_CHECK(fits_rle(height, width), "masks must be of fewer than 2^32 pixels, got height ",
                height, " and width ", width);
  return static_cast<uint32_t>(height * width);
}

std::vector<Rle> read_rles(const py::sequence& objects, bool complete, const char* name) {
  std::vector<Rle> rles;
  rles.reserve(objects.size());
  for (py::handle object : objects) rles.push_back(read_rle(object, name, rles.size()));
  int64_t text_size = 1;
  for (const Rle& rle : rles) text_size += rle.text_size;
  {
    py::gil_scoped_release release;
    parallel_for(rles.size(), kRunsPerTask * rles.size() / text_size,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t n = begin; n < end; ++n) {
                     Rle& rle = rles[n];
                     if (rle.text == nullptr) continue;
                     rle.error = read_counts(rle.text, rle.text_size, &rle.toggles, &rle.total);
                   }
                 });
  }
  for (size_t n = 0; n < rles.size(); ++n) {
    const Rle& rle = rles[n];
    FASTSEG_CHECK(rle.error.empty(), name, "[", n, "]: counts ", rle.error);
    FASTSEG_CHECK(rle.total <= rle.area && (!complete || rle.total == rle.area), name, "[", n,
                  "]: counts sum to ", rle.total, ", but size ", rle.size(), " has ", rle.area,
                  " pixels");
  }
  return rles;
}

int64_t rles_per_task(const std::vector<Rle>& rles) {
  int64_t runs = 1;
  for (const Rle& rle : rles) runs += rle.toggles.size();
  return kRunsPerTask * static_cast<int64_t>(rles.size()) / runs;
}

py::dict make_rle(int64_t height, int64_t width, const std::string& counts) {
  py::list size(2);
  size[0] = height;
  size[1] = width;
  py::dict rle;
  rle["size"] = std::move(size);
  rle["counts"] = py::bytes(counts);
  return rle;
}

py::list make_rles(int64_t height, int64_t width, const std::vector<std::string>& counts) {
  py::list rles(counts.size());
  for (size_t n = 0; n < counts.size(); ++n) rles[n] = make_rle(height, width, counts[n]);
  return rles;
}

}  // namespace fastseg
