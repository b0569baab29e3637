"""Tasks that come with pserver."""

SHIPPED = {
    "digits": "workers.tasks.digits:Digits",
    "synthetic-mlp": "workers.tasks.synthetic_mlp:SyntheticMLP",
}
"""Import path by short name; imported when asked for."""
