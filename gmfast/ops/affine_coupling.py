from .. import reference


def affine_coupling(
    x, shift, scale, *, scale_map="exp", shift_first=False, clamp=2.0, mask=None, inverse=False
):
    return reference.affine_coupling(
        x,
        shift,
        scale,
        scale_map=scale_map,
        shift_first=shift_first,
        clamp=clamp,
        mask=mask,
        inverse=inverse,
    )
