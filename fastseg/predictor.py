"""From images of any kind to results: reading, batching, device, dtype, CUDA graphs."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from fastseg import _C
from fastseg.cuda_graphs import GraphedForward
from fastseg.images import ImageInput, image_files, load_image
from fastseg.instances import Instances
from fastseg.segmentation import PanopticSegmentation, SemanticSegmentation

Result: TypeAlias = Instances | PanopticSegmentation | SemanticSegmentation


@dataclass
class Prediction:
    """What `Predictor.stream` yields for one input: a result or an error.

    Args:
        source: the input as it was given.
        image: [3, height, width] as it was read, None if that failed.
        result: of the kind that belongs to the task, None if there is an error.
        error: what went wrong with this image.
        seconds: time the image's batch took, divided by the images in it.
    """

    source: Any
    image: Tensor | None = None
    result: Result | None = None
    error: Exception | None = None
    seconds: float = 0.0


class Predictor:
    """Finds the instances or segments in images, or the class of each pixel.

    Args:
        model: a model, the path of a checkpoint (see `fastseg.load_model`), or None for the default
            model. A model object is moved to `device` and set to eval mode in place, as torch's
            own `.to()` does; it is copied first where `dtype` would round its weights.
        device: default: the GPU where there is one, else the CPU.
        dtype: data type of the weights and activations; default: the model's own, which is float32
            for checkpoints.
        score_threshold: only instances and segments with a greater score are returned. The model
            has a threshold of its own that comes first (often 0.05; of panoptic segments 0.8).
        task: "instance", "panoptic" or "semantic", if the model can do it (see its `tasks`);
            default: what the model was made for.
        batch_size: images that run together; default: 8 on a GPU, 1 on a CPU, where more gain
            nothing. Images of a batch are padded to a common size.
        cuda_graphs: on a GPU, replay the model from CUDA graphs (see `GraphedForward`).

    Raises:
        ValueError: if an argument is out of its range, or the model cannot do the task.
    """

    def __init__(
        self,
        model: torch.nn.Module | str | os.PathLike[str] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        score_threshold: float | None = None,
        *,
        task: str | None = None,
        batch_size: int | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        self.device = _device(device)
        if batch_size is None:
            batch_size = 8 if self.device.type == "cuda" else 1
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold must be between 0 and 1, got {score_threshold}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type, got {dtype}")
        self.batch_size = batch_size
        self.score_threshold = score_threshold
        self.model = _model(model, self.device, dtype)
        self.task = _task(self.model, task)
        if self.task == "semantic" and score_threshold is not None:
            raise ValueError("score_threshold is not for task 'semantic', which has no scores")
        self.dtype = next((p.dtype for p in self.model.parameters()), dtype or torch.float32)
        graphs = cuda_graphs and self.device.type == "cuda"
        self._forward = GraphedForward(self.model) if graphs else self.model

    def __call__(self, inputs: ImageInput | Sequence[ImageInput]) -> Result | list[Result]:
        """Predicts one image or several.

        Args:
            inputs: one image (path, PIL image, NumPy array [height, width, 3] or tensor
                [3, height, width], see `fastseg.images.load_image`), the path of a directory, or a
                list of images of any of these kinds.

        Returns:
            `Instances`, `PanopticSegmentation` or `SemanticSegmentation`, by the task, on the CPU,
            at the image's own size; a list for a list or directory.

        Raises:
            ImageError: if an image cannot be read; the message names the file.
        """
        if isinstance(inputs, (str, os.PathLike)) and Path(inputs).is_dir():
            return self._predict_all(image_files(inputs))
        if isinstance(inputs, (list, tuple)):
            return self._predict_all(inputs)
        return self._predict_all([cast(ImageInput, inputs)])[0]

    def stream(self, inputs: Iterable[ImageInput]) -> Iterator[Prediction]:
        """Predicts any number of images, one result after the other in the order of the inputs.

        At most two batches of images are in memory; the next one is read while one is predicted.
        An image that fails comes as a `Prediction` with an error and costs no other its result.
        """
        remaining = iter(inputs)
        pending: deque[tuple[ImageInput, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fastseg-read") as reader:
            while True:
                for source in islice(remaining, 2 * self.batch_size - len(pending)):
                    pending.append((source, reader.submit(load_image, source)))
                if not pending:
                    return
                batch = [pending.popleft() for _ in range(min(self.batch_size, len(pending)))]
                yield from self._predict_batch(batch)

    def _predict_all(self, inputs: Sequence[ImageInput]) -> list[Result]:
        results = []
        for prediction in self.stream(inputs):
            if prediction.result is None:
                raise cast(Exception, prediction.error)
            results.append(prediction.result)
        return results

    def _predict_batch(
        self, batch: Sequence[tuple[ImageInput, Future[Tensor]]]
    ) -> list[Prediction]:
        predictions = []
        for source, future in batch:
            try:
                predictions.append(Prediction(source, image=future.result()))
            except Exception as error:
                predictions.append(Prediction(source, error=error))
        start = time.perf_counter()
        readable = [prediction for prediction in predictions if prediction.error is None]
        self._fill(readable)
        for prediction in readable:
            prediction.seconds = (time.perf_counter() - start) / len(readable)
        return predictions

    def _fill(self, predictions: Sequence[Prediction]) -> None:
        """Sets each prediction's result or error; a batch that fails goes one by one instead."""
        if not predictions:
            return
        try:
            images = [cast(Tensor, prediction.image) for prediction in predictions]
            results = self._predict(images)
        except Exception as error:  # of one image: too large for the memory, say
            if len(predictions) == 1:
                predictions[0].error = error
                return
            for prediction in predictions:
                self._fill([prediction])
            return
        for prediction, result in zip(predictions, results, strict=True):
            prediction.result = result

    def _predict(self, images: Sequence[Tensor]) -> list[Result]:
        # Models for one task alone have no choice to be told.
        options = {"task": self.task} if hasattr(self.model, "task") else {}
        with torch.inference_mode(), self._device_guard():
            batch = self.model.preprocess([self._upload(image) for image in images])
            pixels = batch.pixels.to(self.dtype, memory_format=torch.channels_last)
            predictions = self._forward(pixels, batch.sizes)
            results = self.model.postprocess(predictions, batch, **options)
        return [self._finished(result) for result in results]

    def _upload(self, image: Tensor) -> Tensor:
        """uint8 goes over the bus as it is, a quarter of the floats."""
        moved = image.to(self.device)
        return moved / 255 if moved.dtype == torch.uint8 else moved

    def _finished(self, result: Result) -> Result:
        """On the CPU, in ordinary tensors: those of inference mode refuse autograd and writes."""
        if self.score_threshold is not None and not isinstance(result, SemanticSegmentation):
            result = result.above(self.score_threshold)
        values = {field.name: getattr(result, field.name) for field in fields(result)}
        copies: dict[str, Any] = {
            name: value.to("cpu", copy=True)
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        return replace(result, **copies)

    def _device_guard(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def _task(model: Any, task: str | None) -> str:
    """The task that a model shall do: its own where none is asked for."""
    tasks = getattr(model, "tasks", ("instance",))
    if task is None:
        return getattr(model, "task", tasks[0])
    if task not in tasks:
        raise ValueError(
            f"{type(model).__name__} cannot do task {task!r}; its tasks: {', '.join(tasks)}"
        )
    return task


def _device(device: torch.device | str | None) -> torch.device:
    if device is None and torch.cuda.is_available() and not _C.build_info()["cuda"]:
        warnings.warn(
            "fastseg was built without CUDA: using the CPU (see `fastseg doctor`)", stacklevel=3
        )
        return torch.device("cpu")
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be the CPU or a CUDA GPU, got {str(device)!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r}: torch sees no GPU (`fastseg doctor` says more)")
    return device


def _model(
    model: Any,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Any:
    """The model that the argument of `Predictor` means, on its device and ready to predict."""
    import fastseg

    if model is None:
        model = fastseg.default_model()
    elif isinstance(model, (str, os.PathLike)):
        model = fastseg.load_model(model)
    elif not (hasattr(model, "preprocess") and hasattr(model, "postprocess")):
        raise TypeError(
            "model must be a fastseg model, the path of a checkpoint or None, got "
            f"{type(model).__name__}"
        )
    elif any(dtype not in (None, parameter.dtype) for parameter in model.parameters()):
        model = copy.deepcopy(model)
    return model.eval().to(device=device, dtype=dtype, memory_format=torch.channels_last)
