"""The constants of a course. A lecturer changes them between years: then `tql exercises` hands out
stubs with the new values, and answers that were written for the old ones do not pass."""

UNIT = 1.0
"""Exercise 1 asks for entropy in units of so many nats: 1 is a nat, and ln 2 = 0.6931 a bit."""

LETTERS = 2026
"""Exercise 8: the seed that says which letter stands for which agent."""
