"""The multilayer unconstrained feature model: layers tied to the data by optimal transport.

`fit` reduces the model to an objective of the classifier alone (`reduced_mse`, `reduced_ce`), which
`search` minimizes by Newton steps (`newton`) with a `preconditioner`, escaping points that are not
minima (`escapes`).
"""
