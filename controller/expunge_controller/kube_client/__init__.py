"""A cluster's API; knows no Experiment."""
