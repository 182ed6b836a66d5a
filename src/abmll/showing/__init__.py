"""Saved tasks opened to be asked, several on one base model, and the page that shows what they say."""
