"""Predictor: inputs of all kinds, batching, failures, device and dtype."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_truth import LABELS, EncodedTruth
from made_up_images import padded_batch
from PIL import Image

import fastseg
from fastseg.cli import SAMPLES
from fastseg.images import ImageError, load_image
from fastseg.instances import Instances
from fastseg.ops import rle_encode
from fastseg.predictor import Predictor
from fastseg.segmentation import PanopticSegmentation, SemanticSegmentation

HISTOLOGY = SAMPLES / "histology_pink.png"
DENSE = SAMPLES / "fluorescence_dense.png"


@dataclass
class Means:
    """The fake model's output: one number per image."""

    mean: torch.Tensor


class MeanModel(torch.nn.Module):
    """Finds one instance, whose label is the image's mean in 0-255 and whose mask is all of it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, 3, 1, 1))
        self.batches = []

    def preprocess(self, images):
        assert all(image.dtype == torch.float32 for image in images)
        self.batches.append(len(images))
        return padded_batch(images)

    def forward(self, pixels, sizes):
        assert pixels.dtype == self.weight.dtype
        if pixels.shape[-1] > 100:
            raise RuntimeError("out of memory")
        return Means((pixels * self.weight).double().sum((1, 2, 3)) / (3 * sizes.prod(1)))

    def postprocess(self, detections, batch):
        return [
            Instances(
                boxes=torch.tensor([[0.0, 0, width, height]]),
                scores=torch.tensor([0.75]),
                labels=(mean * 255).round().long()[None],
                rles=rle_encode(torch.ones(1, height, width, dtype=torch.bool)),
                image_size=(height, width),
            )
            for mean, (height, width) in zip(detections.mean, batch.original_sizes, strict=True)
        ]


def plain(value, height=4, width=5):
    return np.full((height, width, 3), value, np.uint8)


def labels_of(results):
    return [result.labels.tolist() for result in results]


def test_one_image_gives_one_result_and_a_list_gives_a_list(tmp_path):
    predictor = Predictor(MeanModel(), "cpu")
    Image.fromarray(plain(40)).save(tmp_path / "a.png")
    one = predictor(plain(30))
    assert isinstance(one, Instances)
    assert one.image_size == (4, 5)
    tensor = torch.full((3, 7, 6), 20 / 255)
    mixed = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(plain(10)), tensor]
    assert labels_of(predictor(mixed)) == [[40], [40], [10], [20]]
    assert labels_of(predictor(tuple(mixed[:1]))) == [[40]]
    assert predictor([]) == []


def test_a_directory_gives_its_images_by_name(tmp_path):
    for value, name in ((3, "c.png"), (1, "a.png"), (2, "b.bmp")):
        Image.fromarray(plain(value)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    predictor = Predictor(MeanModel(), "cpu")
    assert labels_of(predictor(tmp_path)) == labels_of(predictor(str(tmp_path))) == [[1], [2], [3]]


def test_results_are_ordinary_tensors_on_the_cpu():
    result = Predictor(MeanModel(), "cpu")(plain(9))
    for tensor in (result.boxes, result.scores, result.labels):
        assert not tensor.is_inference()
        assert tensor.device.type == "cpu"
    result.boxes += 1


def test_images_run_in_batches_of_the_given_size_in_their_order():
    model = MeanModel()
    images = [plain(value, height=3 + value % 4) for value in range(7)]
    results = Predictor(model, "cpu", batch_size=3)(images)
    assert labels_of(results) == [[value] for value in range(7)]
    assert [result.image_size[0] for result in results] == [3, 4, 5, 6, 3, 4, 5]
    assert model.batches == [3, 3, 1]


def test_stream_takes_few_images_ahead():
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield plain(len(taken) % 256)

    stream = Predictor(MeanModel(), "cpu", batch_size=2).stream(endless())
    for expected in (1, 2, 3, 4, 5):
        assert next(stream).result.labels.tolist() == [expected]
    assert len(taken) <= 8
    stream.close()


def test_a_failing_image_costs_no_other_its_result(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    too_large = plain(5, width=101)  # fails in the model and takes its batch along
    inputs = [plain(1), tmp_path / "broken.png", plain(2), too_large, plain(3), plain(4)]
    predictor = Predictor(MeanModel(), "cpu", batch_size=4)
    predictions = list(predictor.stream(inputs))
    assert [prediction.source for prediction in predictions] == inputs
    failed = [prediction.error for prediction in predictions]
    assert isinstance(failed[1], ImageError)
    assert "broken.png" in str(failed[1])
    assert str(failed[3]) == "out of memory"
    good = [prediction for prediction in predictions if prediction.error is None]
    assert labels_of(prediction.result for prediction in good) == [[1], [2], [3], [4]]
    assert all(prediction.seconds > 0 for prediction in good)
    assert torch.equal(good[0].image, load_image(inputs[0]))


def test_a_call_raises_the_first_error(tmp_path):
    predictor = Predictor(MeanModel(), "cpu")
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        predictor([plain(1), tmp_path / "missing.png"])
    with pytest.raises(ImageError, match=r"missing\.png"):
        predictor(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="no image files"):
        predictor(tmp_path)
    with pytest.raises(ImageError, match="got dict"):
        predictor({})


def test_score_threshold_is_strict():
    assert len(Predictor(MeanModel(), "cpu", score_threshold=0.74)(plain(1))) == 1
    assert len(Predictor(MeanModel(), "cpu", score_threshold=0.75)(plain(1))) == 0


def test_dtype_converts_a_copy_and_leaves_the_given_model_alone():
    model = MeanModel()
    predictor = Predictor(model, "cpu", torch.bfloat16)
    assert predictor.dtype == predictor.model.weight.dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32
    assert predictor(plain(64)).labels.tolist() == [64]
    assert Predictor(model, "cpu", torch.float32).model is model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"score_threshold": 1.5}, "score_threshold must be between 0 and 1, got 1.5"),
        ({"dtype": torch.int8}, "dtype must be a floating-point type, got torch.int8"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Predictor(MeanModel(), "cpu", **arguments)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="got Linear"):
        Predictor(torch.nn.Linear(1, 1), "cpu")


def test_the_task_is_the_models_own_unless_another_is_asked_for():
    for own, asked, kind in (
        ("panoptic", None, PanopticSegmentation),
        ("panoptic", "semantic", SemanticSegmentation),
        ("semantic", "instance", Instances),
    ):
        predictor = Predictor(EncodedTruth(own), "cpu", task=asked)
        assert predictor.task == (asked or own)
        number = next(number for number, label in LABELS.items() if label < 80)
        color = [number & 255, number >> 8 & 255, number >> 16]
        image = np.full((4, 5, 3), color, np.uint8)
        assert isinstance(predictor(image), kind)
        assert predictor(image).image_size == (4, 5)


def test_segments_and_labels_are_ordinary_tensors_on_the_cpu():
    for task, name in (("panoptic", "ids"), ("semantic", "labels")):
        (prediction,) = Predictor(EncodedTruth(), "cpu", task=task).stream([plain(0)])
        values = getattr(prediction.result, name)
        assert values.device.type == "cpu" and not values.is_inference()
        values += 1


def test_score_threshold_of_segments_makes_void():
    number = next(iter(LABELS))
    image = np.full((4, 5, 3), [number & 255, number >> 8 & 255, number >> 16], np.uint8)
    for threshold, count in ((0.89, 1), (0.9, 0)):
        result = Predictor(EncodedTruth(), "cpu", score_threshold=threshold)(image)
        assert len(result) == count and result.ids.any() == count
    with pytest.raises(ValueError, match="task 'semantic', which has no scores"):
        Predictor(EncodedTruth("semantic"), "cpu", score_threshold=0.5)


def test_a_task_that_the_model_cannot_do_is_named_with_the_model():
    for model in (MeanModel(), fastseg.default_model()):
        assert Predictor(model, "cpu", task="instance").task == Predictor(model, "cpu").task
        name = type(model).__name__
        with pytest.raises(ValueError, match=f"{name} cannot do task 'panoptic'; .* instance"):
            Predictor(model, "cpu", task="panoptic")
    with pytest.raises(ValueError, match="EncodedTruth cannot do task 'depth'"):
        Predictor(EncodedTruth(), "cpu", task="depth")
    assert Predictor(MeanModel(), "cpu", task="instance")(plain(7)).labels.tolist() == [7]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_where_there_is_none_says_so():
    with pytest.raises(ValueError, match="device 'cuda': torch sees no GPU"):
        Predictor(MeanModel(), "cuda")


@pytest.fixture(scope="module")
def predictor():
    return Predictor(device="cpu", score_threshold=0.5)


def test_default_model_finds_the_nuclei_of_the_samples(predictor):
    dense, histology = predictor([DENSE, HISTOLOGY])
    assert (dense.image_size, histology.image_size) == ((256, 256), (256, 320))
    assert set(dense.names) == {"nucleus"}
    assert 80 <= len(dense) <= 99  # 99 are annotated
    assert 60 <= len(histology) <= 81  # 81 are annotated
    assert dense.scores.min() > 0.5
    areas = dense.masks().sum((1, 2))
    boxes = dense.boxes
    box_areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert (areas > 0).all()
    assert (areas <= 1.5 * box_areas).all()


def test_a_checkpoint_path_is_the_same_model(predictor):
    weights = next(Path(fastseg.__file__).parent.glob("weights/*.safetensors"))
    same = Predictor(weights, "cpu", score_threshold=0.5)(DENSE)
    expected = predictor(DENSE)
    torch.testing.assert_close(same.boxes, expected.boxes)
    assert same.rles == expected.rles


def test_bfloat16_finds_the_same_nuclei(predictor):
    expected = predictor(DENSE)
    rounded = Predictor(None, "cpu", torch.bfloat16, 0.5)(DENSE)
    assert abs(len(rounded) - len(expected)) <= 4
    both = expected.masks().any(0) & rounded.masks().any(0)
    either = expected.masks().any(0) | rounded.masks().any(0)
    assert both.sum() / either.sum() > 0.95


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_graph_replay_equals_the_eager_model(dtype):
    images = [DENSE, HISTOLOGY, DENSE, HISTOLOGY, DENSE]
    eager = Predictor(dtype=dtype, batch_size=1, cuda_graphs=False)(images)
    graphed = Predictor(dtype=dtype, batch_size=1)(images)
    for expected, result in zip(eager, graphed, strict=True):
        assert len(result) == len(expected)
        torch.testing.assert_close(result.boxes, expected.boxes, atol=0.05, rtol=0)
