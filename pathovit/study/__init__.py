"""A cohort and its labels -> a model and its figures."""
