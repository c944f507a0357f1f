from diffusion.test_peer_schedulers import k_diffusion  # noqa: F401
