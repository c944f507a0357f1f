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
    from_data = {*cls.data_arguments((1,), None), "num_labels"}
    published = {option: value for option, value in cls.options().items() if option not in from_data}
    suggested = cls.settings_for(cls.data)
    chosen = {**published, **suggested.get("options", {})}
    rows = [("option", "published", cls.data)]
    rows += [(option, repr(value), repr(chosen[option])) for option, value in published.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    rest = ", ".join(f"{key} {value}" for key, value in suggested.items() if key != "options")
    if rest:
        print(f"\nsettings for {cls.data}: {rest}")


def _summary(cls: type) -> str:
    """First sentence of a class's docstring."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split()).split(". ")[0].rstrip(".")
