"""Surveys: what every kernel of a network responds to in the images of a data set."""
