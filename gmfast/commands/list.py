"""`gmfast list`."""

from typing import Annotated

import typer

from ..models.registry import MODELS


def list_models(
    model: Annotated[str | None, typer.Argument(help="Show this model's options too.")] = None,
) -> None:
    """List the models, or the options of one: what `gmfast train MODEL --set NAME=VALUE` takes."""
    if model is None:
        width = max(map(len, MODELS))
        for name, cls in MODELS.items():
            print(f"{name:{width}}  {cls.family}, {' or '.join(sorted(cls.modalities))}: {_summary(cls)}")
        return
    name = MODELS.resolve(model)
    cls = MODELS[name]
    print(f"{name}: {_summary(cls)}")
    print(f"{cls.family}, {' or '.join(sorted(cls.modalities))}; trained on {cls.data} by default\n")
    suggested = cls.settings_for(cls.data)
    options = {**cls.options(), **suggested.get("options", {})}
    width = max(map(len, options))
    for option, default in cls.options().items():
        chosen = options[option]
        note = f"  (the published {default!r} on other data)" if chosen != default else ""
        print(f"  {option:{width}}  {chosen!r}{note}")
    rest = ", ".join(f"{key} {value}" for key, value in suggested.items() if key != "options")
    if rest:
        print(f"\nsettings that suit {cls.data}: {rest}")


def _summary(cls: type) -> str:
    """First sentence of a class's docstring."""
    return " ".join(cls.__doc__.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
