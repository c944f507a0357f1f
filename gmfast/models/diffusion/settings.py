"""Settings of `gmfast train` for a small U-Net, which trains in minutes on two CPU cores."""

from collections.abc import Mapping
from typing import Any

_UNET = {"channels": 32, "num_blocks": 1, "dropout": 0.0}


def unet_settings(digits: Mapping[str, Any] | None = None, **options: Any) -> dict[str, dict[str, Any]]:
    """Settings by data set, as in `gmfast.models.base.Model`.

    Args:
        digits: Options of the model for digits alone.
        options: Options of the model, besides the network's.
    """
    unet = {**_UNET, "multipliers": (1, 2), "attention": (4,)}
    of_digits = {"lr": 0.001, "options": {**unet, **options, **(digits or {})}}
    unet = {**_UNET, "multipliers": (1, 2, 2), "attention": (4, 8)}
    of_photos = {"size": 16, "batch_size": 32, "lr": 0.001, "options": {**unet, **options}}
    return {"digits": of_digits, "binary-digits": of_digits, "photos": of_photos}
