"""State of an accelerated scheduler besides its own attributes: plans, and the host's copy of timesteps."""

import torch


def on_host(tensor):
    """True if reading a number of the tensor needs no device synchronisation."""
    return tensor.device.type == "cpu"


def _version(tensor):
    return None if tensor.is_inference() else tensor._version


class State:
    """Plans, noise and cached timesteps of one accelerated scheduler.

    A scheduler holds it as `_gmfast`. A deep copy of the scheduler gets a fresh one; a pickled scheduler has
    none, and its class's own methods.

    Args:
        target: Replacement methods of the scheduler's class (`install.Target`).
        noise: `GeneratorNoise` or `KeyedNoise`.
    """

    def __init__(self, target, noise):
        self.target = target
        self.rule = target.rule
        self.original = target.original
        self.noise = noise
        self.draw = noise.draw
        self._output = target.output
        self._plans, self._every = {}, {}
        self._inputs = ()
        self._config = None
        self._numbers = {}

    def __deepcopy__(self, memo):
        return State(self.target, self.noise)

    def __reduce__(self):
        return type(None), ()

    def finish(self, return_dict, *results):
        """Return what a step returns: the scheduler's output class, or a tuple."""
        return self._output(*results) if return_dict else results

    # ---- Plans

    def plan(self, scheduler, key=None):
        """Return the rule's plan for the scheduler's current tables, made if there is none yet.

        Args:
            scheduler: the scheduler.
            key: hashable; what the plan depends on besides the tensors that the rule watches.
        """
        if scheduler._internal_dict is not self._config:
            self._renew(scheduler)
        else:
            for name, tensor, version, copy in self._inputs:
                now = getattr(scheduler, name)
                if (
                    now is not tensor
                    or (version is not None and now._version != version)
                    or (copy is not None and not torch.equal(now, copy))
                ):
                    self._renew(scheduler)
                    break
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= 8:
                self._plans.clear()
            plan = self._plans[key] = self.rule.plan(self, scheduler, key)
        return plan

    def _renew(self, scheduler):
        """Look up the plans made from equal tables, which need not be computed or sent again."""
        if self._config is not scheduler._internal_dict:
            self.target.check_config(scheduler.config)  # `register_to_config` may have changed it
            self._config = scheduler._internal_dict
        self._inputs, contents = [], [id(self._config)]
        for name in self.rule.watched:
            tensor = getattr(scheduler, name)
            if tensor is None:  # PNDM's timesteps before `set_timesteps`
                self._inputs.append((name, None, None, None))
                contents.append(None)
                continue
            version, copy = _version(tensor), None
            if version is None and on_host(tensor):
                copy = tensor.clone()  # inference tensors have no version counter
            self._inputs.append((name, tensor, version, copy))
            if name in ("sigmas", *self.rule.reads) and (on_host(tensor) or self._known(name, tensor)):
                contents += tensor.shape[:1], tensor.dtype, *self.numbers(scheduler, name)
            else:
                contents += id(tensor), version
        if len(self._every) >= 8:
            self._every.clear()
        # Kept with its inputs, so that no later object can be at an address that is part of the contents.
        self._plans, *_ = self._every.setdefault(tuple(contents), ({}, self._config, self._inputs))

    # ---- Timesteps

    def numbers(self, scheduler, name="timesteps"):
        """Return a tensor of the scheduler as a list, read from its device once."""
        tensor = getattr(scheduler, name)
        if self._known(name, tensor):
            return self._numbers[name][2]
        numbers = tensor.tolist() if tensor.dim() else [tensor.item()]
        self._numbers[name] = tensor, _version(tensor), numbers
        return numbers

    def _known(self, name, tensor):
        """True if the list read before is still right; inference tensors on a device count as unchanged."""
        kept = self._numbers.get(name)
        if kept is None or kept[0] is not tensor:
            return False
        return kept[1] == _version(tensor) and (kept[1] is not None or not on_host(tensor))

    def position(self, scheduler, timestep):
        """Return the index in `timesteps` of a tensor that is a view of one of its elements, else None.

        Loops over `timesteps` give such views; the address says the index without reading the device.
        """
        timesteps = scheduler.timesteps
        if timestep.device != timesteps.device or timestep.dtype != timesteps.dtype or timestep.numel() != 1:
            return None
        stride = timesteps.element_size() * timesteps.stride(0)
        offset = timestep.data_ptr() - timesteps.data_ptr()
        if stride <= 0 or offset % stride or not 0 <= offset // stride < timesteps.shape[0]:
            return None
        return offset // stride

    def value(self, scheduler, timestep):
        """Return a timestep as a number; None for a device's tensor that is not an element of `timesteps`."""
        if not isinstance(timestep, torch.Tensor):
            return timestep
        if on_host(timestep):
            return timestep.item() if timestep.numel() == 1 else None
        position = self.position(scheduler, timestep)
        return None if position is None else self.numbers(scheduler)[position]

    def index(self, scheduler, timestep):
        """Return the index that diffusers begins with: the timestep's second occurrence, or its only one.

        None where there is none, or it is not known without synchronising with the device.
        """
        value = self.value(scheduler, timestep)
        if value is None:
            return None
        numbers = self.numbers(scheduler)
        try:
            first = numbers.index(value)
        except ValueError:
            return None
        try:
            return numbers.index(value, first + 1)
        except ValueError:
            return first

    def row(self, scheduler, timestep, device):
        """Return the row of a table by training timesteps: an int, or an int64 tensor on `device`.

        None for a timestep that the table has no row for.
        """
        value = self.value(scheduler, timestep)
        if value is None:
            if timestep.numel() != 1 or timestep.dtype not in (torch.int64, torch.int32):
                return None
            timestep = timestep.reshape(())
            if timestep.dtype != torch.int64 or timestep.device != device:
                timestep = timestep.to(device, torch.int64)
            return timestep
        if isinstance(value, float) or not 0 <= value < scheduler._internal_dict["num_train_timesteps"]:
            return None
        return int(value)
