"""Evaluation of a model on held-out data."""

import math

import torch
from torch import Tensor

from .._processes import Processes
from .._progress import Progress, reporting
from ..data import Dataset
from ..data.loader import load_batches
from ..models.base import Batch, Model, evaluating


def check_data(model: Model, dataset: Dataset, conditional: bool = False) -> None:
    """Check that data are of the kind that a model was made for.

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
    if conditional and not dataset.streamed and dataset.num_labels is None:
        raise ValueError(f"data: expected labels for a conditional model, but {dataset.name} has none")


@torch.no_grad()
def evaluate_samples(
    model: Model,
    dataset: Dataset,
    conditional: bool = False,
    *,
    progress: Progress = False,
    processes: Processes | None = None,
    workers: int = 0,
) -> dict[str, Tensor]:
    """Evaluate the model's `metrics` for each held-out sample: by name, float64 `(N,)` in their units.

    What the model draws, such as the noise of a flow, is the same each time, whatever the number of
    processes, and leaves torch's generators as they were.

    Args:
        model: The model, in eval mode meanwhile.
        dataset: The data.
        conditional: Whether the model takes the data's labels.
        progress: True shows a bar; a function is called with the numbers of samples done and to do.
        processes: The processes that divide the samples and all call this; None: this one alone.
        workers: Number of further processes that load data; 0: none.

    Raises:
        ValueError: When data and model do not go together.
    """
    check_data(model, dataset, conditional)
    split, device = dataset.split("heldout"), model.device
    processes = processes or Processes(0, 1, device)
    size = max(1, min(model.evaluate_size, 2**17 // math.prod(split.shape[1:])))
    starts = range(0, len(split), size)
    chunks = [list(range(start, min(start + size, len(split)))) for start in starts]
    own = chunks[processes.rank :: processes.count]
    loaded = load_batches(split, own, workers=workers, pin_memory=device.type == "cuda")
    values: dict[str, list[Tensor]] = {name: [] for name in model.metrics}
    progress = progress if processes.main else False
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        evaluating(model),
        reporting(progress, len(split), dataset.items[:-1], "evaluating") as advance,
    ):
        for number, chunk in enumerate(chunks):
            if number % processes.count == processes.rank:
                torch.manual_seed(number)  # what a chunk draws is of no process
                x, label = next(loaded)
                batch = Batch(dataset.as_input(x.to(device)), label.to(device) if conditional else None)
                found = model.evaluate(batch)
                for name, collected in values.items():
                    collected.append(found[name].double().cpu())
            advance(len(chunk))
    index = processes.gather(torch.tensor([i for chunk in own for i in chunk], dtype=torch.int64))
    evaluated = {}
    for name, collected in values.items():
        value = processes.gather(torch.cat(collected) if collected else torch.empty(0, dtype=torch.float64))
        evaluated[name] = torch.empty_like(value).index_copy_(0, index, value)
    return evaluated


def evaluate(
    model: Model, dataset: Dataset, conditional: bool = False, *, progress: Progress = False
) -> float:
    """Evaluate the first of the model's `metrics` over the held-out data: the mean over samples, in its unit.

    The mean of `evaluate_samples`, whose arguments these are.
    """
    values = evaluate_samples(model, dataset, conditional, progress=progress)
    return values[next(iter(model.metrics))].mean().item()
