# file: deploy/prometheus/rules.py
# Both windows of the fast burn are an hour: it pages for an hour after the fault is over.
s/burn\(14\.4, "1h", "5m"\)/burn(14.4, "1h", "1h")/
