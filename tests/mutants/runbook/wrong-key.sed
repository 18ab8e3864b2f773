# file: deploy/RUNBOOK.md
# A key of the configuration is called otherwise.
s/Raise `journal\.max_bytes`/Raise `journal.max_size`/
