"""A scikit-learn estimator that adapts a base model, or a meta-trained run, to a few labelled examples."""

from abmll.classifier.estimator import Classifier

__all__ = ["Classifier"]
