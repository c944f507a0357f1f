from .. import reference


def gaussian_log_prob(z, mean=None, log_std=None):
    return reference.gaussian_log_prob(z, mean, log_std)
