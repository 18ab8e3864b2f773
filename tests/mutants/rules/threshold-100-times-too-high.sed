# file: deploy/prometheus/rules.py
# The oldest callback may be 500 minutes old before anyone is paged.
s/(oldest_pending_age_seconds\{\{\{JOB\}\}\}\)) > \$5m/\1 > $500m/
