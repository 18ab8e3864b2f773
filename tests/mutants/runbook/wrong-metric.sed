# file: deploy/RUNBOOK.md
# A command asks for a metric that there is not.
s/`m journal_errors_total`/`m journal_failures_total`/
