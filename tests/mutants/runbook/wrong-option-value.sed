# file: deploy/RUNBOOK.md
# A command is given a value that its option does not take.
s/--from checkpoint   /--from committed   /
