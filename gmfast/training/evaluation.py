"""Evaluation of a model on held-out data."""

import torch

from .._progress import Progress, reporting
from ..data import Dataset, to_unit
from ..models.base import Batch, Model, evaluating


def check_data(model: Model, dataset: Dataset, conditional: bool = False) -> None:
    """Check that held-out data are of the kind that a model was made for.

    Raises:
        ValueError: For another modality, shape or number of levels, or labels that are not there.
    """
    if dataset.num_levels != model.num_levels:
        expected, got = (
            "vectors" if count is None else f"{count} levels"
            for count in (model.num_levels, dataset.num_levels)
        )
        raise ValueError(f"data: expected {expected}, as the model has, got {got}")
    fits = dataset.modality == model.modality
    if model.modality == "sound":
        if not fits:
            raise ValueError(
                f"data: expected sound, as the model has, got {dataset.name}, which is {dataset.items}"
            )
    elif not fits or dataset.image_shape != model.image_shape:
        raise ValueError(
            f"data: expected {model.modality} of shape {model.image_shape}, as the model has, got "
            f"{dataset.items} of shape {dataset.image_shape}"
        )
    if conditional and dataset.heldout_labels is None:
        raise ValueError(f"data: expected labels for a conditional model, but {dataset.name} has none")


@torch.no_grad()
def evaluate(
    model: Model, dataset: Dataset, conditional: bool = False, *, progress: Progress = False
) -> float:
    """Evaluate the first of the model's `metrics` over the held-out data: the mean over samples, in its unit.

    What the model draws, such as the noise of a flow, is the same each time and leaves torch's generators as
    they were.

    Args:
        model: The model, in eval mode meanwhile.
        dataset: The data.
        conditional: Whether the model takes the data's labels.
        progress: True shows a bar; a function is called with the numbers of samples done and to do.

    Raises:
        ValueError: When data and model do not go together.
    """
    check_data(model, dataset, conditional)
    samples, labels = dataset.heldout, dataset.heldout_labels if conditional else None
    device, metric = model.device, next(iter(model.metrics))
    size = max(1, min(model.evaluate_size, 2**17 // samples[0, 0].numel()))
    total = 0.0
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        evaluating(model),
        reporting(progress, len(samples), dataset.items[:-1], "evaluating") as advance,
    ):
        torch.manual_seed(0)
        for start in range(0, len(samples), size):
            chosen = slice(start, start + size)
            x = to_unit(samples[chosen].to(device), model.num_levels)
            batch = Batch(x, None if labels is None else labels[chosen].to(device))
            total += model.evaluate(batch)[metric].double().sum().item()
            advance(len(x))
    return total / len(samples)
