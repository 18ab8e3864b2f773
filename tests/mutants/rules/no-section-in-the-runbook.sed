# file: deploy/prometheus/rules.py
# The link to the runbook leads to no section.
s/\{RUNBOOK\}#\{name\.lower\(\)\}/{RUNBOOK}#alert-{name.lower()}/
