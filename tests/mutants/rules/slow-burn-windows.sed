# file: deploy/prometheus/rules.py
# The windows of the slow burn are those of the fast one.
s/burn\(6, "6h", "30m"\)/burn(6, "1h", "5m")/
