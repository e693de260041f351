"""The replay buffer's ring, against a list."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from hypothesis import given, settings

from tql.batch import Transition
from tql.training.replay import Replay


def transitions(first, n) -> Transition:
    """n rows whose every number says which row it is, from `first` on; n_s = 3, n_a = 2."""
    number = first + jnp.arange(n, dtype=float)
    s, a = (number[:, None] + jnp.arange(k)[None] / 10 for k in (3, 2))
    return Transition(s, a, number, number / 2, s + 0.5, a - 0.5)


def row(number) -> Transition:
    return jax.tree.map(lambda x: x[0], transitions(number, 1))


def by_hand(n, capacity, added):
    """The numbers in a ring's places; None where nothing was written."""
    places, oldest = [*range(1, n + 1)] + [None] * (capacity - n), 0
    for number in range(n + 1, n + added + 1):
        if None in places:
            places[places.index(None)] = number
        else:
            places[oldest], oldest = number, (oldest + 1) % capacity
    return places


class Newest(Replay):
    """A mutant: a full ring replaces its last place again and again."""

    def add(self, row):
        slot = jnp.minimum(self.written, self.capacity - 1)
        rows = jax.tree.map(lambda ring, x: ring.at[slot].set(x), self.rows, row)
        return Newest(rows, self.written + 1)


def filled(kind, n, capacity, added):
    ring = Replay.start(transitions(1, n), capacity)
    ring = kind(ring.rows, ring.written)
    for number in range(n + 1, n + added + 1):
        ring = ring.add(row(number))
    return ring


def is_by_hand(ring, places):
    wanted = [transitions(x, 1) if x else jax.tree.map(jnp.zeros_like, transitions(1, 1))
              for x in places]
    wanted = jax.tree.map(lambda *x: np.concatenate(x), *wanted)
    return all(map(np.array_equal, jax.tree.leaves(ring.rows), jax.tree.leaves(wanted)))


@settings(deadline=None, derandomize=True, max_examples=12)
@given(n=st.integers(1, 7), room=st.integers(0, 5), added=st.integers(0, 29))
def test_the_oldest_row_makes_room(n, room, added):
    places = by_hand(n, n + room, added)
    ring = filled(Replay, n, n + room, added)
    assert is_by_hand(ring, places) and int(ring.written) == n + added
    if added > room + 1 and n + room > 1:
        assert not is_by_hand(filled(Newest, n, n + room, added), places)
    drawn = {int(x) for x in ring.draw(997, jr.key(n)).r}
    assert drawn == {x for x in places if x}, "all that was written, and nothing else"


@settings(deadline=None, derandomize=True, max_examples=12)
@given(n=st.integers(1, 7), room=st.integers(0, 5), added=st.integers(0, 29), at=st.integers(0, 29))
def test_a_window_of_the_new_rows_and_the_dataset_make_the_same_ring(n, room, added, at):
    """As in a resume: only the places of the new rows are kept, at most the whole ring."""
    at, length = min(at, added), min(max(added, 1), n + room)
    half = filled(Replay, n, n + room, at)
    again = Replay.start(transitions(1, n), n + room)
    again = again.with_window(n, half.window(n, length), n + at)
    for number in range(n + at + 1, n + added + 1):
        again = again.add(row(number))
    whole = filled(Replay, n, n + room, added)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(whole)):
        np.testing.assert_array_equal(ours, theirs)


def test_rows_are_drawn_evenly():
    """Of 5 rows in 7 places: 9,973 draws, each row within 5 standard deviations of a fifth."""
    drawn = np.asarray(filled(Replay, 3, 7, 2).draw(9973, jr.key(0)).r, int)
    counts = np.bincount(drawn, minlength=6)[1:]
    assert np.all(np.abs(counts - 9973 / 5) < 5 * np.sqrt(9973 * 0.2 * 0.8))
