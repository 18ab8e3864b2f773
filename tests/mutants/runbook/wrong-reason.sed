# file: deploy/RUNBOOK.md
# The table of reasons has one that is never exported.
s/^\| `too_slow`, `no_transactions`/| `too_slow`, `transactions_off`/
