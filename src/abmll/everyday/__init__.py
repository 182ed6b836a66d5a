"""Tasks of one's own: labelled rows to a posterior that is saved, predictions, and a check of their worth."""
