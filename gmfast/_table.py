"""Layout of the coefficient tables that `gmfast.functional.diffusion_step` reads.

The same columns, in the same order, are the enumeration of csrc's diffusion step; a test compares the two.
"""

#: Names of a table's columns, each the factor of one operand: x0 = f(x0_x * x + x0_m * m), then a linear
#: combination for the result, one for the tensor kept as the next history, and bounds of the log-variance.
COLUMNS = (
    *("x0_x", "x0_m"),
    *("x", "m", "x0", "h1", "h2", "h3", "h4", "noise"),
    *("kept_x", "kept_m", "kept_x0", "kept_h1", "kept_h2", "kept_h3", "kept_h4", "kept_noise"),
    *("log_var_min", "log_var_max"),
)
