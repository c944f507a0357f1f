"""Networks that models of several families are made of."""
