"""Distillation objectives: transfers, the inherit-and-explore lift over any of them, and logit terms.

``catalogue`` can be imported without torch; ``build`` makes an objective.
"""
