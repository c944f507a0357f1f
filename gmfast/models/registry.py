"""Names of the models, and where they are; nothing is imported before it is asked for."""

import difflib
import re
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Model


class Registry(MutableMapping):
    """Model classes by name, imported when they are looked up.

    Other spellings are understood too: `PixelCNN++`, `pixel-cnn-pp` and `PixelCNNPP` are `pixelcnnpp`.

    Args:
        models: By name, "module:Class"; a module that begins with a dot is relative to `gmfast.models`.
    """

    def __init__(self, models: dict[str, "str | type[Model]"]):
        self._models = dict(models)

    def __getitem__(self, name: str) -> "type[Model]":
        found = self._models[name]
        if isinstance(found, str):
            module, _, cls = found.partition(":")
            found = self._models[name] = getattr(import_module(module, __package__), cls)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._models

    def __setitem__(self, name: str, model: "str | type[Model]") -> None:
        self._models[name] = model

    def __delitem__(self, name: str) -> None:
        del self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def class_names(self) -> dict[str, str]:
        """By the name of a class, the model's name."""
        return {
            found.partition(":")[2] if isinstance(found, str) else found.__name__: name
            for name, found in self._models.items()
        }

    def name_of(self, cls: "type[Model]") -> str:
        """Name of a model class; one that has none is entered under the name of the class."""
        for name, found in self._models.items():
            if isinstance(found, str) and found.endswith(f":{cls.__name__}"):
                found = self[name]
            if found is cls:
                return name
        name = cls.__name__.lower()
        if name in self:
            name = f"{cls.__module__}.{cls.__qualname__}"
        self[name] = cls
        return name

    def resolve(self, name: str) -> str:
        """The model's name in `MODELS` for any spelling of it.

        Raises:
            ValueError: For a name that is none, with the nearest one where there is one.
        """
        if not isinstance(name, str):
            raise ValueError(f"model: expected one of {', '.join(self)}, got {name!r}")
        spellings = {_plain(cls): model for cls, model in self.class_names().items()}
        spellings |= {_plain(model): model for model in self}
        if _plain(name) in spellings:
            return spellings[_plain(name)]
        near = difflib.get_close_matches(_plain(name), spellings, 1)
        hint = f"; did you mean {spellings[near[0]]!r}?" if near else ""
        raise ValueError(f"model: expected one of {', '.join(self)}, got {name!r}{hint}")


def _plain(name: str) -> str:
    """A name without case, separators and plus signs."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))


#: What `gmfast train` calls each model.
MODELS = Registry(
    {
        "consistency": ".diffusion.consistency:ConsistencyModel",
        "ddpm": ".diffusion.ddpm:DDPM",
        "edm": ".diffusion.edm:EDM",
        "energy": ".energy:EnergyModel",
        "flow_matching": ".diffusion.flow_matching:FlowMatching",
        "flowpp": ".flows.flowpp:FlowPP",
        "gated_pixelcnn": ".autoregressive.gated_pixelcnn:GatedPixelCNN",
        "glow": ".flows.glow:Glow",
        "iaf": ".flows.iaf:IAF",
        "made": ".autoregressive.made:MADE",
        "maf": ".flows.maf:MAF",
        "ncsn": ".diffusion.ncsn:NCSN",
        "nice": ".flows.nice:NICE",
        "pixelcnn": ".autoregressive.pixelcnn:PixelCNN",
        "pixelcnnpp": ".autoregressive.pixelcnnpp:PixelCNNPP",
        "realnvp": ".flows.realnvp:RealNVP",
        "spline_flow": ".flows.spline_flow:SplineFlow",
        "wavenet": ".autoregressive.wavenet:WaveNet",
    }
)
