"""The two terms of improved DDPM's loss."""

from .. import reference


def diffusion_hybrid_loss(
    model_output, x0, x_t, noise, table, timestep, *, num_classes=256, formulation="exact"
):
    """Both terms of the hybrid loss of improved DDPM (Nichol and Dhariwal, 2021, arXiv:2102.09672).

    Args:
        model_output: floating `(B, 2C, *S)`: the predicted noise, then v, the place of the log-variance in
            [log_var_min, log_var_max] of the table, from -1 to 1.
        x0, x_t, noise: `(B, C, *S)`: the data in [-1, 1], noised, and the noise.
        table: float64 `(T, 20)`, of the DDPM sampler over all T time steps, row t for the step from t to t - 1.
        timestep: int64 `(B,)`, rows of the table. At 0 the second term is the decoder's.
        num_classes, formulation: of `discretized_gaussian_nll`.

    Returns:
        `(simple, bound)`, both `(B,)`: the mean squared error of the noise, and a term of the variational
        bound in bits per dimension, which has a gradient by v alone (the mean's is stopped). The loss is
        `simple + 0.001 · T · bound`, averaged, or as the paper scales it.
    """
    return reference.diffusion_hybrid_loss(
        model_output, x0, x_t, noise, table, timestep, num_classes=num_classes, formulation=formulation
    )
