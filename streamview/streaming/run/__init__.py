"""Running a plan: a step, one pass over all steps, and all passes of a call, forward and backward."""
