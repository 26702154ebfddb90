"""The multilayer unconstrained feature model: layers tied to the data by optimal transport.

`fit` minimizes an objective of the classifier alone (`reduced_mse`, `reduced_ce`) by Newton steps
and escapes from points that are not minima (`newton`), and returns a `solution`.
"""
