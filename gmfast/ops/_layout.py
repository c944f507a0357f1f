"""The memory layout of outputs, one rule for every operator; `csrc/ops/layout.h` has it in C++."""


def empty_as(tensor, shape, dtype=None):
    """A dense tensor: channels_last where `tensor` (B, C, *S) has its channels innermost, else contiguous."""
    if tensor.dim() > 2 and tensor.stride(1) == 1 and not tensor.is_contiguous():
        batch, channels, *spatial = shape
        return tensor.new_empty((batch, *spatial, channels), dtype=dtype).movedim(-1, 1)
    return tensor.new_empty(shape, dtype=dtype)
