# file: deploy/prometheus/rules.py
# The page for an instance without a broker waits for an hour.
s/"WeniEdgeNoBroker", "page", "5m"/"WeniEdgeNoBroker", "page", "1h"/
