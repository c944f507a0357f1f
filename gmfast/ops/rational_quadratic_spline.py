from .. import reference


def rational_quadratic_spline(x, widths, heights, derivatives, **options):
    return reference.rational_quadratic_spline(x, widths, heights, derivatives, **options)
