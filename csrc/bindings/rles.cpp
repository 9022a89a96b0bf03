#include "bindings/rles.h"

namespace fastseg {
namespace {

void read_count_list(const py::sequence& counts, const char* name, size_t index, Rle* rle) {
  const auto items = py::reinterpret_steal<py::object>(PySequence_Fast(counts.ptr(), ""));
  if (!items) throw py::error_already_set();
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(items.ptr());
  rle->toggles.reserve(size);
  for (Py_ssize_t i = 0; i < size; ++i) {
    const auto count = py::handle(PySequence_Fast_GET_ITEM(items.ptr(), i)).cast<int64_t>();
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

// Whether `size` holds two integers. Written out, as this is called for every RLE: nearly all are
// lists or tuples of ints.
bool read_size(py::handle size, Rle* rle) {
  if (!PySequence_Check(size.ptr()) || PySequence_Size(size.ptr()) != 2) {
    PyErr_Clear();
    return false;
  }
  const auto pair = py::reinterpret_steal<py::object>(PySequence_Fast(size.ptr(), ""));
  int64_t sides[2];
  for (int i = 0; i < 2; ++i) {
    if (!pair) throw py::error_already_set();
    PyObject* const side = PySequence_Fast_GET_ITEM(pair.ptr(), i);
    if (!PyIndex_Check(side)) return false;
    sides[i] = PyLong_AsLongLong(side);
    if (sides[i] == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      return false;
    }
  }
  rle->height = sides[0];
  rle->width = sides[1];
  return true;
}

Rle read_rle(py::handle object, const char* name, size_t index) {
  if (!PyDict_Check(object.ptr())) {
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
  FASTSEG_CHECK(read_size(size, &rle), name, "[", index, "]: size must be [height, width], got ",
                py::cast<std::string>(py::repr(size)));
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
  const auto items = py::reinterpret_steal<py::object>(PySequence_Fast(objects.ptr(), ""));
  if (!items) throw py::error_already_set();
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(items.ptr());
  std::vector<Rle> rles;
  rles.reserve(count);
  for (Py_ssize_t n = 0; n < count; ++n) {
    rles.push_back(read_rle(PySequence_Fast_GET_ITEM(items.ptr(), n), name, n));
  }
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

std::vector<Rle> read_shapes(const py::sequence& objects) {
  std::vector<Rle> rles = read_rles(objects, true);
  for (size_t n = 0; n < rles.size(); ++n) {
    FASTSEG_CHECK(rles[n].width <= kMaxShapeColumns, "rles[", n,
                  "] must have at most 2^24 columns, got ", rles[n].width);
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
