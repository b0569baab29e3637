"""Tasks that come with pserver."""

SHIPPED = {
    "digits": "workers.tasks.digits:Digits",
    "fashion-mnist": "workers.tasks.fashion_mnist:FashionMNIST",
    "logistic": "workers.tasks.logistic:Logistic",
    "synthetic-mlp": "workers.tasks.synthetic_mlp:SyntheticMLP",
}
"""Import path by short name; imported when asked for."""
