r"""RMSNorm in place of every LayerNorm (Zhang & Sennrich 2019, arXiv 1910.07467)."""

import equinox as eqx
import jax

from tql.critic import AbstractCritic
from tql.layers import NORM_EPS


def rms_norm(width: int) -> eqx.nn.RMSNorm:
    r"""$g \odot x \big/ \sqrt{\langle x^2 \rangle + 10^{-6}}$, without mean and bias; at first
    $g = 1$."""
    return eqx.nn.RMSNorm(width, eps=NORM_EPS, use_bias=False)


def with_rms_norm(critic: AbstractCritic) -> AbstractCritic:
    """The same critic with an RMSNorm in place of every LayerNorm."""
    is_norm = lambda node: isinstance(node, eqx.nn.LayerNorm)
    replace = lambda node: rms_norm(*node.shape) if is_norm(node) else node
    return jax.tree.map(replace, critic, is_leaf=is_norm)
