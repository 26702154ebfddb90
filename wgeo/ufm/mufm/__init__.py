"""The multilayer unconstrained feature model: layers tied to the data by optimal transport.

`fit` minimizes an objective of the classifier alone (`reduced_mse`, `reduced_ce`) and returns a
`solution`. It takes Newton steps, and escapes from critical points that are not minima (`newton`).
"""
