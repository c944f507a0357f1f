"""Data of which everything is known: mixtures of Gaussians, their exact denoiser, and the path that the
probability flow takes, along which each coordinate's cumulative probability stays as it is."""

import math

import torch


class Mixture:
    """Independent coordinates, each of a mixture with equal shares."""

    def __init__(self, means, std):
        self.means = torch.tensor(means, dtype=torch.float64)
        self.std = std

    def mean_of_data(self, x, alpha, sigma):
        """E[x0 | x]."""
        spread = alpha**2 * self.std**2 + sigma**2
        if len(self.means) == 1:
            mean = self.means.item()
            return mean + alpha * self.std**2 / spread * (x - alpha * mean)
        away = x[..., None] - alpha[..., None] * self.means.to(x)
        share = torch.softmax(-(away.square()) / (2 * spread[..., None]), -1)
        each = self.means.to(x) + (alpha * self.std**2 / spread)[..., None] * away
        return (share * each).sum(-1)

    def probability(self, x, alpha, sigma):
        """P(noised data < x), of one coordinate."""
        spread = math.sqrt(alpha**2 * self.std**2 + sigma**2)
        return torch.special.ndtr((x[..., None] - alpha * self.means) / spread).mean(-1)

    def denoiser(self, schedule, prediction="epsilon"):
        def denoise(x, t):
            alpha, sigma = (v.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype) for v in schedule.alpha_sigma(t))
            x0 = self.mean_of_data(x, alpha, sigma)
            z = (x - alpha * x0) / sigma
            return {
                "epsilon": z,
                "x0": x0,
                "v": (alpha * z - sigma * x0) / (alpha**2 + sigma**2).sqrt(),
                "flow": z - x0,
                "score": -z / sigma,
            }[prediction]

        return denoise
