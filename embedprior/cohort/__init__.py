"""From a folder of files and a label table to exams, pairs, groups and splits, with every drop counted."""

from embedprior.cohort.base import Cohort, FlowStep, flow_table

__all__ = ["Cohort", "FlowStep", "flow_table"]
