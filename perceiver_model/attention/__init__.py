"""Attention: the latents' self-attend, cross-attends, and the paths that compute them."""
