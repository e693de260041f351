"""What people change in a transformer to keep its attention from collapsing, one change per file.

An attention or a block is a class behind a seam of `tql.attention`; those that wrap another one
combine. RMSNorm and sigma-reparametrisation replace parts of a critic that has been built.
"""
