"""Attention: the self-attend of the latents, cross-attends, and the paths that compute them."""
