# file: deploy/RUNBOOK.md
# The text names a metric that there is not.
s/until `journal_bytes`|wait until `journal_bytes`/wait until `journal_used_bytes`/
