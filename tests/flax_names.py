"""The golden files' critics: arrays under the names of a Flax parameter tree, such as
`block0/query/kernel`. Kernels there are (input, output), and those of attention have an axis for
heads."""

import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from tql.critic import Critic

NAMES = (
    (r"tokenizer\.w_s", "state_projection/kernel"),
    (r"tokenizer\.b_s", "state_projection/bias"),
    (r"tokenizer\.e_s", "state_modality_embedding"),
    (r"tokenizer\.w_a", "action_projection/kernel"),
    (r"tokenizer\.b_a", "action_projection/bias"),
    (r"tokenizer\.e_a", "action_modality_embedding"),
    (r"tokenizer\.p", "position_embedding"),
    (r"tokenizer\.v", "value_token"),
    (r"blocks\[(\d)\]\.attention_norm\.(\w+)", r"block\1/attn_norm/\2"),
    (r"blocks\[(\d)\]\.mlp_norm\.(\w+)", r"block\1/mlp_norm/\2"),
    (r"blocks\[(\d)\]\.attention\.(query|key|value)\.(\w+)", r"block\1/\2/\3"),
    (r"blocks\[(\d)\]\.attention\.out\.(\w+)", r"block\1/attn_out/\2"),
    (r"blocks\[(\d)\]\.(mlp_\w+)\.(\w+)", r"block\1/\2/\3"),
    (r"final_norm\.(\w+)", r"final_norm/\1"),
    (r"q_heads\[(\d)\]\.(hidden|out)\.(\w+)", r"head\1/\2/\3"),
)
"""Our path of an array, as a pattern, and its name in the file."""


def path_of(keypath) -> str:
    return jax.tree_util.keystr(keypath).lstrip(".")


def foreign_name(path: str) -> str:
    """The name of the critic's array at `path`."""
    for pattern, name in NAMES:
        if match := re.fullmatch(pattern, path):
            name = match.expand(name)
            return name.replace("weight", "scale" if "norm" in name else "kernel")
    raise ValueError(f"the critic's array '{path}' has no name in the golden files.")


def critic_from_arrays(
    arrays: dict[str, np.ndarray], heads: int, n_s: int, layers: int = 2, ensemble: int = 2
) -> Critic:
    """The critic with these arrays, every one of which is used."""
    tokens, d_model = arrays["position_embedding"].shape
    sizes = dict(d_model=d_model, heads=heads, layers=layers, ensemble=ensemble)
    critic = Critic(n_s, tokens - n_s, **sizes, key=jr.key(0))
    leaves, structure = jax.tree_util.tree_flatten_with_path(critic)
    names = [foreign_name(path_of(path)) for path, _ in leaves]
    assert sorted(names) == sorted(arrays)

    def ours(name, like):
        x = arrays[name]
        x = x.reshape(x.shape[0], -1).T if name.endswith("kernel") else x
        return jnp.asarray(x.reshape(like.shape))

    restored = [ours(name, leaf) for name, (_, leaf) in zip(names, leaves)]
    return jax.tree_util.tree_unflatten(structure, restored)
