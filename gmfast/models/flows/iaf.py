"""IAF: Kingma et al., 2016, https://arxiv.org/abs/1606.04934."""

from .maf import AffineAutoregressiveFlow


class IAF(AffineAutoregressiveFlow):
    """Inverse autoregressive flow: `x_i = z_i·s_i + t_i`, s_i and t_i computed from the *noise* before z_i by
    a masked network, several times, the order turned around each time: MAF with its directions exchanged.

    Sampling is one pass. The density goes value by value, each hidden unit computed once: the arithmetic of
    one pass, and its gradient that of three more (`gmfast.nn.MaskedAffineAutoregressive`), so that an IAF
    trains by maximum likelihood too, where the paper has it as a posterior that is only sampled from.

    Arguments are those of `MAF`.
    """

    inverted = True
