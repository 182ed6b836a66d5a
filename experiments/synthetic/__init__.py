"""ABMLL on linear-Gaussian tasks whose between-task variance per weight and exact posteriors are known."""
