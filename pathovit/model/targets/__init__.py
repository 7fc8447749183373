"""Targets: what a slide model is asked, as the columns of a table say it.

one column of names            binary or multiclass          truth (1,) or one-hot (C,)
several columns of 0 and 1     multilabel                    truth (C,)
one column of numbers          regression                    truth (1,)
a time and an event column     survival                      truth (2,): time, 1 if the event happened
"""

from pathovit.model.targets.kind import Kind, Truth
from pathovit.model.targets.table import read_target, read_truth, said_of_classes
from pathovit.model.targets.target import KINDS, Target

__all__ = ["KINDS", "Kind", "Target", "Truth", "read_target", "read_truth", "said_of_classes"]
