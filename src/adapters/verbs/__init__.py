"""The verbs on a model, grouped: each file is one group, and each verb delegates in a line or two."""
