# %% [markdown]
# # Exercise 8. Which bug has which agent?
# A bug in a learner seldom raises an error. The loss falls, the program ends, and the agent does
# not act. What you have then is what was recorded. Here are the records of five agents that were
# really trained, for 2000 updates each, from the same initial weights and with the same batches.
# One is healthy. Each of the others has one bug. Say which is which from the records alone, before
# you see any code.
#
# **Difficulty**: hard. **Time**: 45 minutes. **You need** walkthroughs 4, 6 and 7.
#
# **Writes**: a picture to `runs/walkthrough/exercise_08/`.
#
# | verdict | what it means |
# |---|---|
# | `healthy` | no bug |
# | `target not stopped` | y is made with the critic itself, and the gradient goes through y, too |
# | `mask ignored` | the target goes on where the task is solved: $y = r + \gamma \bar Q(s', a')$ |
# | `broadcast` | the y of the batch has the shape [batch, 1], so each Q is compared with every y |
# | `controller's sign` | the temperatures ascend their loss in place of descending it |
#
# The agents are critics of width 32 with two layers. Their target takes the action that the dataset
# took next, so there is no policy: $y = r + \gamma\,m\,\bar Q(s', a')$, with $\gamma$ = 0.95 and a
# target network that follows with $\tau$ = 0.01. The reward is $-1$ in every step until the cube is
# where it belongs, then 0, with mask 0. This is so in 2 % of the data's rows.

# %%
import matplotlib.pyplot as plt
import numpy as np

from tql.contracts.diagnosis import check_diagnosis, records, settings

AGENTS, SETTINGS = records(), settings()
for name, x in AGENTS["A"].items():
    print(f"{name:12} {x.shape}")

# %% [markdown]
# ## The evidence
# There is a row for each agent. `q_mean` and `target_mean` are means of Q and of y over the
# batches, and `q_std` is the standard deviation of Q over a batch. `value` is Q along one episode
# that none of the agents was trained on; the task is solved at step 0. `landscape` is Q over two
# dimensions of the action, ten steps before that. Dotted is what can be said without any training:
# the targets of the entropy, and the value $-1/(1 - \gamma)$ of never solving the task.
#
# Before you look, write down for each bug what it must do to at least one of these curves.

# %%
if __name__ == "__main__":  # The grader does not draw.
    from tql.training.workspace import pictures

    updates = SETTINGS["every"] * np.arange(1, 1 + len(AGENTS["A"]["td_loss"]))
    fig, axes = plt.subplots(5, 6, figsize=(20, 15), layout="constrained")
    for (letter, seen), (td, q, spread, H, alpha, value) in zip(AGENTS.items(), axes):
        td.semilogy(updates, seen["td_loss"])
        td.set(title=f"{letter}: TD loss", ylim=(0.01, 10))
        q.plot(updates, seen["q_mean"], label="q_mean")
        q.plot(updates, seen["target_mean"], label="target_mean")
        q.set(title=f"{letter}: means of Q and y", ylim=(-21, 1))
        spread.plot(updates, seen["q_std"])
        spread.set(title=f"{letter}: standard deviation of Q", ylim=(0, 3))
        for layer, group in np.ndindex(2, 2):
            style = dict(color=f"C{2 * layer + group}", ls="--" if layer else "-")
            label = f"layer {layer + 1}, {('[VALUE]', 'others')[group]}"
            H.plot(updates, seen["entropy"][:, layer, group], **style, label=label)
            alpha.semilogy(updates, seen["alpha"][:, layer, group], **style)
        for T in {T for pair in SETTINGS["target"] for T in pair}:
            H.axhline(T, color="black", ls=":")
        H.set(title=f"{letter}: entropy (nats)", ylim=(1.5, 3.6))
        alpha.set(title=f"{letter}: temperatures")
        steps = np.arange(len(seen["value"])) - SETTINGS["before"]
        value.plot(steps, seen["value"])
        value.axvline(0, color="0.6", lw=0.8)
        value.set(title=f"{letter}: value along an episode", ylim=(-21, 1))
        for ax in (q, value):
            ax.axhline(-1 / (1 - SETTINGS["discount"]), color="black", ls=":")
    axes[0, 1].legend(fontsize="small")
    axes[0, 3].legend(fontsize="small")
    for ax, label in zip(axes[-1], [*["updates"] * 5, "steps after the task is solved"]):
        ax.set_xlabel(label)
    fig.savefig(pictures("exercise_08") / "records.png", dpi=90)

    fig, axes = plt.subplots(1, 5, figsize=(18, 3.6), layout="constrained")
    for (letter, seen), ax in zip(AGENTS.items(), axes):
        picture = ax.imshow(seen["landscape"], extent=(-0.5, 0.5, 0.5, -0.5))
        low, high = seen["landscape"].min(), seen["landscape"].max()
        ax.set(title=f"{letter}: Q from {low:.2f} to {high:.2f}", xlabel="change of action 2")
    axes[0].set_ylabel("change of action 1")
    fig.suptitle("Q over two dimensions of the action (each picture has its own colours)")
    fig.savefig(pictures("exercise_08") / "landscapes.png", dpi=90)

# %% [markdown]
# ## Your diagnosis
# Write one of the five verdicts of the table behind every letter. The check says how many are
# right, and what to look at next. For each of them, be ready to say which number convinced you.

# %%
answers = {"A": "", "B": "", "C": "", "D": "", "E": ""}

# %% Check
check_diagnosis(answers)
print("The diagnosis is right.")

# %% [markdown]
# ## Picture
# On the left is what each agent expects along the episode, now under the name that you gave it. On
# the right is what a critic would say that knows the future: $k$ steps before the task is solved,
# the return is $-(1 - \gamma^k)/(1 - \gamma)$. The healthy agent has the right shape close to the
# goal. Farther away it has only begun to learn, because value travels back slowly.

# %% Picture
from tql.training.workspace import pictures  # noqa: E402

gamma, before = SETTINGS["discount"], SETTINGS["before"]
steps = np.arange(before + 1) - before
fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
for letter, seen in AGENTS.items():
    left.plot(steps, seen["value"][: before + 1], label=f"{letter}: {answers[letter]}")
right.plot(steps, -(1 - gamma**-steps) / (1 - gamma), color="black")
left.set(title="your verdicts", ylabel="discounted reward")
right.set(title="expected of one who knows the future (closed form)")
for ax in (left, right):
    ax.set_xlabel("steps after the task is solved")
left.legend(fontsize="small")
fig.savefig(pictures("exercise_08") / "verdicts.png", dpi=110)

# %% [markdown]
# ## In words
# Rank the four bugs by how long they would have stayed hidden from somebody who looks at the TD
# loss alone. Which single number would you add to the log of every training, so that all four are
# seen within the first hundred updates?
#
# Compare with `td_loss`, `critic_loss` and `temperature_loss` in `tql/loop.py`: which character of
# them has to change for each bug?
