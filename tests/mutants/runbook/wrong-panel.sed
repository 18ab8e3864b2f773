# file: deploy/RUNBOOK.md
# A panel is called otherwise.
s/\*Why nothing is published\*/*Why publishing waits*/
