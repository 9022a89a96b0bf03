// COCO files and lists of dicts -> columns (annotations.h) as NumPy arrays.
#include <pybind11/numpy.h>

#include "bindings/array.h"
#include "evaluation/annotations.h"
#include "evaluation/annotations_json.h"

namespace fastseg {
namespace {

// The vector's memory as an array of shape [size / columns, columns], or [size].
template <class Vector>
py::array to_numpy(Vector&& vector, int64_t columns = 0) {
  using T = typename Vector::value_type;
  using Item = std::conditional_t<std::is_same_v<T, char>, uint8_t, T>;
  auto* const owned = new Vector(std::move(vector));
  const py::capsule owner(owned, [](void* memory) { delete static_cast<Vector*>(memory); });
  const auto* const data = reinterpret_cast<const Item*>(owned->data());
  const auto size = static_cast<py::ssize_t>(owned->size());
  if (columns == 0) return py::array_t<Item>({size}, data, owner);
  return py::array_t<Item>({size / static_cast<py::ssize_t>(columns), py::ssize_t(columns)}, data,
                           owner);
}

void put_masks(MaskPool&& masks, const py::dict& columns) {
  columns["sizes"] = to_numpy(std::move(masks.sizes), 2);
  columns["text"] = to_numpy(std::move(masks.text));
  columns["text_ends"] = to_numpy(std::move(masks.text_ends));
  columns["coordinates"] = to_numpy(std::move(masks.coordinates));
  columns["coordinate_ends"] = to_numpy(std::move(masks.coordinate_ends));
  columns["polygon_ends"] = to_numpy(std::move(masks.polygon_ends));
}

py::dict to_columns(Annotations&& found) {
  py::dict columns;
  columns["ids"] = to_numpy(std::move(found.ids));
  columns["image_ids"] = to_numpy(std::move(found.images));
  columns["category_ids"] = to_numpy(std::move(found.categories));
  columns["scores"] = to_numpy(std::move(found.scores));
  columns["areas"] = to_numpy(std::move(found.areas));
  columns["boxes"] = to_numpy(std::move(found.boxes), 4);
  columns["crowds"] = to_numpy(std::move(found.crowds));
  columns["ignores"] = to_numpy(std::move(found.ignores));
  columns["mask_ends"] = to_numpy(std::move(found.mask_ends));
  put_masks(std::move(found.masks), columns);
  return columns;
}

// ---- from a file's text ------------------------------------------------------------------------

std::pair<const char*, int64_t> text_of(const py::buffer_info& buffer, int64_t begin, int64_t end) {
  const int64_t size = buffer.size * buffer.itemsize;
  FASTSEG_CHECK(0 <= begin && begin <= end && end <= size, "begin and end must be in [0, ", size,
                "], got ", begin, " and ", end);
  return {static_cast<const char*>(buffer.ptr) + begin, end - begin};
}

// Entries of the array text[begin:end], "results" or "annotations".
py::dict read_json(const py::buffer& text, int64_t begin, int64_t end, const std::string& name,
                   bool with_masks) {
  const py::buffer_info buffer = text.request();
  const auto [start, size] = text_of(buffer, begin, end);
  Annotations found;
  {
    py::gil_scoped_release release;
    found = read_annotations(start, size, name, with_masks, nullptr);
  }
  return to_columns(std::move(found));
}

// The same for a whole file, whose pages are given back as soon as they have been read.
py::dict read_file(int descriptor, int64_t size, const std::string& name, bool with_masks) {
  Annotations found;
  {
    py::gil_scoped_release release;
    const MappedFile file(descriptor, size);
    found = read_annotations(file.data(), size, name, with_masks, &file);
  }
  return to_columns(std::move(found));
}

// Where the value of each key of an object lies: {key: (begin, end)}.
py::dict json_members(const py::buffer& text) {
  const py::buffer_info buffer = text.request();
  const auto [start, size] = text_of(buffer, 0, buffer.size * buffer.itemsize);
  std::vector<std::tuple<std::string, int64_t, int64_t>> members;
  {
    py::gil_scoped_release release;
    JsonReader json(start, size);
    json.read_object([&](std::string_view key) {
      json.peek();
      const int64_t begin = json.position();
      json.skip_value();
      members.emplace_back(key, begin, json.position());
    });
    json.expect_end();
  }
  py::dict found;
  for (const auto& [key, begin, end] : members) {
    found[py::str(key)] = py::make_tuple(begin, end);
  }
  return found;
}

// ---- from Python objects -----------------------------------------------------------------------

// dict[key], or null where it is missing or None.
py::handle item(const py::dict& dict, const char* key) {
  PyObject* const value = PyDict_GetItemString(dict.ptr(), key);
  return value == Py_None ? nullptr : value;
}

std::string shown(py::handle value) { return py::cast<std::string>(py::repr(value)); }

double number_of(py::handle value, const char* key) {
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    throw py::type_error(message(key, " must be a number, got ", shown(value)));
  }
  return number;
}

int64_t integer_of(py::handle value, const char* key) {
  if (!PyIndex_Check(value.ptr())) {
    const double number = number_of(value, key);
    FASTSEG_CHECK(std::abs(number) < 9e15 && number == std::floor(number), key,
                  " must be an integer, got ", shown(value));
    return static_cast<int64_t>(number);
  }
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  const int64_t integer = index ? PyLong_AsLongLong(index.ptr()) : -1;
  if (integer == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    throw py::type_error(message(key, " must be an integer of 64 bits, got ", shown(value)));
  }
  return integer;
}

// The items of any sequence, an array or a tensor, as a list or tuple.
py::object items_of(py::handle value, const char* key) {
  auto items = py::reinterpret_steal<py::object>(PySequence_Fast(value.ptr(), ""));
  if (!items || py::isinstance<py::str>(value)) {
    PyErr_Clear();
    throw py::type_error(message(key, " must be a sequence, got ", shown(value)));
  }
  return items;
}

template <class Use>
void for_each(py::handle value, const char* key, Use&& use) {
  const py::object items = items_of(value, key);
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(items.ptr());
  for (Py_ssize_t i = 0; i < size; ++i) use(i, PySequence_Fast_GET_ITEM(items.ptr(), i));
}

void add_rle(const py::dict& rle, MaskPool* masks) {
  const py::handle size = item(rle, "size"), counts = item(rle, "counts");
  FASTSEG_CHECK(size && counts, "segmentation must have the keys 'size' and 'counts', got ",
                shown(py::list(rle)));
  int64_t sides[2] = {-1, -1};
  int num_sides = 0;
  for_each(size, "segmentation's size", [&](Py_ssize_t i, py::handle side) {
    if (i < 2) sides[i] = integer_of(side, "segmentation's size");
    ++num_sides;
  });
  FASTSEG_CHECK(num_sides == 2 && sides[0] >= 0 && sides[1] >= 0,
                "segmentation's size must be [height, width], got ", shown(size));
  if (PyBytes_Check(counts.ptr())) {
    masks->text.append(PyBytes_AS_STRING(counts.ptr()), PyBytes_GET_SIZE(counts.ptr()));
  } else if (PyUnicode_Check(counts.ptr())) {
    Py_ssize_t length = 0;
    const char* const text = PyUnicode_AsUTF8AndSize(counts.ptr(), &length);
    if (text == nullptr) throw py::error_already_set();
    masks->text.append(text, length);
  } else {
    CountWriter writer(&masks->text);
    for_each(counts, "segmentation's counts", [&](Py_ssize_t, py::handle count) {
      const int64_t run = integer_of(count, "segmentation's counts");
      FASTSEG_CHECK(run >= 0 && run <= kMaxMaskArea,
                    "segmentation's counts must be from 0 to 2^32, got ", run);
      writer.add(run);
    });
  }
  masks->end_mask(sides[0], sides[1]);
}

void add_mask(py::handle segmentation, MaskPool* masks) {
  if (py::isinstance<py::dict>(segmentation)) {
    return add_rle(py::reinterpret_borrow<py::dict>(segmentation), masks);
  }
  for_each(segmentation, "segmentation", [&](Py_ssize_t, py::handle polygon) {
    for_each(polygon, "segmentation's polygon", [&](Py_ssize_t, py::handle side) {
      masks->coordinates.push_back(number_of(side, "segmentation's polygon"));
    });
    masks->end_polygon();
  });
  masks->end_mask(-1, -1);
}

void add_entry(const py::dict& entry, Annotations* found) {
  Annotation one;
  py::handle image = item(entry, "image_id");
  if (!image) image = item(entry, "video_id");
  const py::handle category = item(entry, "category_id");
  FASTSEG_CHECK(image && category, "image_id and category_id must be there, got the keys ",
                shown(py::list(entry)));
  one.image = integer_of(image, "image_id");
  one.category = integer_of(category, "category_id");
  if (const py::handle value = item(entry, "id")) one.id = integer_of(value, "id");
  if (const py::handle value = item(entry, "score")) one.score = number_of(value, "score");
  if (const py::handle value = item(entry, "area")) one.area = number_of(value, "area");
  if (const py::handle frames = item(entry, "areas")) {
    MeanArea mean;
    for_each(frames, "areas", [&](Py_ssize_t, py::handle area) {
      if (!area.is_none()) mean.add(number_of(area, "areas"));
    });
    one.area = mean.value();
  }
  if (const py::handle value = item(entry, "iscrowd")) one.crowd = number_of(value, "iscrowd") != 0;
  if (const py::handle value = item(entry, "ignore")) one.ignore = number_of(value, "ignore") != 0;
  if (const py::handle box = item(entry, "bbox")) {
    Py_ssize_t size = 0;
    for_each(box, "bbox", [&](Py_ssize_t i, py::handle side) {
      if (i < 4) one.box[i] = number_of(side, "bbox");
      ++size;
    });
    FASTSEG_CHECK(size == 0 || size == 4, "bbox must have 4 numbers, got ", size);
  }
  if (const py::handle mask = item(entry, "segmentation")) {
    add_mask(mask, &found->masks);
  } else if (const py::handle frames = item(entry, "segmentations")) {
    for_each(frames, "segmentations", [&](Py_ssize_t, py::handle frame) {
      frame.is_none() ? found->masks.end_mask(0, 0) : add_mask(frame, &found->masks);
    });
  }
  found->add(one);
}

// Calls use(entry) for every entry of a list of dicts, and names the entry in errors.
template <class Use>
void for_each_dict(const py::list& entries, const std::string& name, Use&& use) {
  for (size_t n = 0; n < entries.size(); ++n) {
    const py::object entry = entries[n];
    try {
      if (!py::isinstance<py::dict>(entry)) {
        throw py::type_error(message("must be a dict, got ", Py_TYPE(entry.ptr())->tp_name));
      }
      use(py::reinterpret_borrow<py::dict>(entry));
    } catch (const std::invalid_argument& error) {
      FASTSEG_CHECK(false, name, "[", n, "]: ", error.what());
    } catch (const py::type_error& error) {
      throw py::type_error(message(name, "[", n, "]: ", error.what()));
    }
  }
}

py::dict read_dicts(const py::list& entries, const std::string& name) {
  Annotations found;
  for_each_dict(entries, name, [&](const py::dict& entry) { add_entry(entry, &found); });
  return to_columns(std::move(found));
}

py::dict read_masks(const py::list& rles, const std::string& name) {
  MaskPool masks;
  for_each_dict(rles, name, [&](const py::dict& rle) { add_rle(rle, &masks); });
  py::dict columns;
  put_masks(std::move(masks), columns);
  return columns;
}

}  // namespace

void bind_annotations(py::module_& module) {
  module.def("json_members", &json_members, py::arg("text"));
  module.def("annotations_from_json", &read_json, py::arg("text"), py::arg("begin"), py::arg("end"),
             py::arg("name"), py::arg("with_masks") = true);
  module.def("annotations_from_file", &read_file, py::arg("descriptor"), py::arg("size"),
             py::arg("name"), py::arg("with_masks") = true);
  module.def("annotations_from_dicts", &read_dicts, py::arg("entries"), py::arg("name"));
  module.def("masks_from_rles", &read_masks, py::arg("rles"), py::arg("name"));
}

}  // namespace fastseg
