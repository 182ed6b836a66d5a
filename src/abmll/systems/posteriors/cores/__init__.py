"""Posteriors over a core between the factors: W - W0 = s B R A, where R is drawn."""
