"""Public names of samplers and schedules.

Models are called `DDPM`, `EDM` and `FlowMatching` too, so inside the package samplers and schedules have a
suffix, which `gmfast.diffusion` drops where it exports them.
"""

import dataclasses


def public_name(cls: type) -> str:
    """Name under which `gmfast.diffusion` exports a class: `DDIM` for `DDIMSampler`.

    Classes defined outside `gmfast.diffusion` keep the name that they have.
    """
    name = cls.__name__
    if cls.__module__.startswith(f"{__package__}."):
        name = name.removesuffix("Sampler").removesuffix("Schedule") or name
    return name


class PublicRepr:
    """Mix-in for dataclasses whose `repr` is the expression that a user types, such as `DDIM(eta=0.5)`."""

    def __repr__(self) -> str:
        if not dataclasses.is_dataclass(self):
            return super().__repr__()
        values = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
        return f"{public_name(type(self))}({values})"


def described(value: object) -> str:
    """Describe a value for an error message: the `repr` of a string, a class's name, or the value's type."""
    if isinstance(value, str):
        return repr(value)
    return f"the class {public_name(value)}" if isinstance(value, type) else public_name(type(value))
