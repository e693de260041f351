"""Checkers of components: one function per concept, which takes somebody's own object and says
what is wrong with it. They are made for coursework, and work on anybody's component."""
