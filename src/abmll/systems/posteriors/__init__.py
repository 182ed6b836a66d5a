"""Posteriors that are made after adaptation, of a phi without stds: what answers draw from in its place.

A method without stds ends adaptation with one phi. A posterior of this package is made of that phi, of the steps that
led to it, or of the examples, and predictions ask it for draws. None of them changes training, phi, or the row of the
mean weights.
"""
