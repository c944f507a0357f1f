"""IAF: Kingma et al., 2016, https://arxiv.org/abs/1606.04934."""

from .maf import AffineAutoregressiveFlow


class IAF(AffineAutoregressiveFlow):
    """Inverse autoregressive flow: `x_i = z_i * s_i + t_i`, s_i and t_i functions of the noise before z_i.

    It is MAF with the directions of its transforms exchanged, and takes the same arguments. Sampling is one
    pass. The density goes value by value and computes each hidden unit once: the arithmetic of one pass, and
    its gradient that of three more (`gmfast.nn.MaskedAffineAutoregressive`). So an IAF trains by maximum
    likelihood too; the paper uses it as a posterior, which is only sampled from.
    """

    inverted = True
