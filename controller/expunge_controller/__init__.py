"""The controller: experiment file -> plan -> steps -> results.

An executor runs the steps. The controller never loads torch.
"""
