"""Reading images: every kind becomes the same [3, height, width] RGB tensor."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.images import ImageError, image_files, load_image

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
EXPECTED = torch.from_numpy(RGB).permute(2, 0, 1)


def test_paths_pil_arrays_and_tensors_agree(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(RGB).save(path)
    sources = [path, str(path), Image.fromarray(RGB), RGB, EXPECTED, RGB[::-1][::-1]]
    for source in sources:
        assert torch.equal(load_image(source), EXPECTED)


def test_float_images_keep_their_values():
    array = RGB.astype(np.float64) / 255
    for source in (array, array.astype(">f4"), torch.from_numpy(array).permute(2, 0, 1)):
        image = load_image(source)
        assert image.dtype == torch.float32
        torch.testing.assert_close(image, EXPECTED / 255)


def test_reading_never_writes_to_the_source():
    array = RGB.copy()
    array.setflags(write=False)
    load_image(array)
    tensor = torch.from_numpy(RGB.astype(np.float32) / 255).permute(2, 0, 1).requires_grad_()
    assert not load_image(tensor).requires_grad


def test_exif_orientation_is_applied(tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: shown after a quarter turn clockwise
    Image.fromarray(RGB).save(path, exif=exif)
    assert torch.equal(load_image(path), EXPECTED.rot90(-1, (1, 2)))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_grey_becomes_three_equal_channels(shape):
    grey = RGB[:, :, 0]
    expected = torch.from_numpy(grey).expand(3, -1, -1)
    assert torch.equal(load_image(grey.reshape(shape)), expected)
    assert torch.equal(load_image(Image.fromarray(grey)), expected)
    assert torch.equal(load_image(torch.from_numpy(grey)), expected)
    assert torch.equal(load_image(torch.from_numpy(grey)[None]), expected)


def test_black_and_white_is_0_and_255():
    bits = RGB[:, :, 0] > 127
    expected = torch.from_numpy(bits * np.uint8(255)).expand(3, -1, -1)
    for source in (bits, Image.fromarray(bits), torch.from_numpy(bits)):
        assert torch.equal(load_image(source), expected)


def test_transparency_is_laid_over_white():
    layers = np.dstack([RGB, np.full((5, 7), 255, np.uint8)])
    layers[0, 0] = (10, 20, 30, 0)
    layers[0, 1] = (10, 20, 30, 51)  # a fifth
    pixels = Image.fromarray(layers)
    for source in (layers, pixels):
        image = load_image(source)
        assert image[:, 0, 0].tolist() == [255, 255, 255]
        assert image[:, 0, 1].tolist() == [206, 208, 210]
        assert torch.equal(image[:, 1:], EXPECTED[:, 1:])
    shares = load_image(layers.astype(np.float32) / 255)
    torch.testing.assert_close(shares * 255, load_image(layers).float(), atol=0.5, rtol=0)


def test_palettes_become_colours_with_their_transparency():
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert load_image(palette)[:, 0].tolist() == [[255, 0], [0, 255], [0, 0]]
    stream = io.BytesIO()
    palette.save(stream, format="PNG", transparency=1)
    image = load_image(Image.open(stream))
    assert image[:, 0].tolist() == [[255, 255], [0, 255], [0, 255]]


def test_16_bits_are_stretched_from_the_darkest_to_the_brightest(tmp_path):
    array = np.linspace(200, 3000, 40 * 50).reshape(40, 50).astype(np.uint16)  # of a 12-bit camera
    for name in ("image.png", "image.tif"):
        Image.fromarray(array).save(tmp_path / name)
    sources = [tmp_path / "image.png", tmp_path / "image.tif", array, torch.from_numpy(array)]
    expected = torch.from_numpy((array.astype(np.float32) - 200) / 2800).expand(3, -1, -1)
    for source in sources:
        image = load_image(source)
        assert image.dtype == torch.float32
        assert (image.min(), image.max()) == (0, 1)
        torch.testing.assert_close(image, expected, atol=2e-3, rtol=0)


def test_stretching_copes_with_hot_pixels_and_constant_images():
    array = np.linspace(0, 1000, 100 * 100).reshape(100, 100).astype(np.uint16)
    array[0, 0] = 65535
    assert load_image(array)[0, 50, 50] == pytest.approx(0.5, abs=0.02)
    assert load_image(np.full((4, 4), 500, np.uint16)).eq(0).all()
    spot = np.zeros((100, 100), np.uint16)
    spot[3, 4] = 7
    assert load_image(spot)[0, 3, 4] == 1


def test_float_files_are_stretched_and_must_be_finite():
    values = np.array([[-5.0, 0.0], [5.0, 15.0]], np.float32)
    image = load_image(Image.fromarray(values))
    torch.testing.assert_close(image[0], torch.tensor([[0, 0.25], [0.5, 1]]), atol=5e-3, rtol=0)
    values[0, 0] = np.nan
    with pytest.raises(ImageError, match="finite"):
        load_image(Image.fromarray(values))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 5, 7), np.uint8), r"got shape \(3, 5, 7\)"),
        (np.zeros((2, 5, 7, 3), np.uint8), r"got shape \(2, 5, 7, 3\)"),
        (np.zeros((5, 7), np.int64), "got int64"),
        (np.full((5, 7), 200.0), "0-1, got values from 200 to 200"),
        (np.full((5, 7), np.nan), "0-1, got values from nan"),
        (np.zeros((0, 7, 3), np.uint8), "must have pixels, got 0 x 7"),
        (torch.zeros(2, 3, 5, 7), r"got shape \(2, 3, 5, 7\)"),
        (torch.zeros(5, 7, 3), r"got shape \(5, 7, 3\)"),
        (torch.zeros(3, 5, 7, dtype=torch.int32), "got torch.int32"),
        (torch.full((3, 5, 7), -2.0), "0-1, got values from -2 to -2"),
        (torch.zeros(3, 5, 0), "must have pixels, got 5 x 0"),
        (17, "got int"),
    ],
)
def test_what_is_no_image_is_refused_with_its_shape_or_type(source, message):
    with pytest.raises(ImageError, match=message):
        load_image(source)


def test_unreadable_files_are_named(tmp_path):
    Image.fromarray(RGB.repeat(20, 0)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    for name in ("cut.png", "text.jpg", "empty.png", "missing.png"):
        with pytest.raises(ImageError, match=name):
            load_image(tmp_path / name)
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "missing.png")


def test_image_files_lists_images_by_name(tmp_path):
    for name in ("b.PNG", "a.jpeg", "notes.txt", ".png"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    assert [path.name for path in image_files(tmp_path)] == ["a.jpeg", "b.PNG"]
    with pytest.raises(ImageError, match="no image files"):
        image_files(tmp_path / "sub.png")
    with pytest.raises(ImageError, match="missing"):
        image_files(tmp_path / "missing")
