"""Class conditioning: an embedding that is added to features as a bias of each channel."""

from torch import Tensor, nn


def label_embedding(num_labels: int | None, channels: int) -> nn.Embedding | None:
    """Embedding of each class, `(num_labels, channels)`, small enough for all classes to start alike.

    Returns None for a model without classes.
    """
    if num_labels is None:
        return None
    embedding = nn.Embedding(num_labels, channels)
    nn.init.normal_(embedding.weight, 0.0, 0.05)
    return embedding


def add_label(h: Tensor, embedding: nn.Embedding | None, label: Tensor | None) -> Tensor:
    """Add the embedding of `label (B,)` to features `h (B, C, *S)` at every position, where there is one."""
    if embedding is None:
        return h
    return h + embedding(label).view(*h.shape[:2], *[1] * (h.dim() - 2))
