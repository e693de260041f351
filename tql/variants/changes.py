"""The changes of a built critic, by name."""

from tql.critic import AbstractCritic
from tql.variants.rms_norm import with_rms_norm
from tql.variants.sigma_reparam import with_sigma_reparam

CRITIC_CHANGES = {"rms-norm": with_rms_norm, "sigma-reparam": with_sigma_reparam}
"""Functions from a critic to a critic, by the short names that settings may use."""


def changed(critic: AbstractCritic, names: tuple[str, ...]) -> AbstractCritic:
    """The critic after these changes, in this order. Raises `ValueError` for an unknown name."""
    for name in names:
        if name not in CRITIC_CHANGES:
            known = ", ".join(CRITIC_CHANGES)
            raise ValueError(f"there is no change of a critic named '{name}'; choose {known}.")
        critic = CRITIC_CHANGES[name](critic)
    return critic
