# file: deploy/grafana/overview.py
# Round trips are shown at a quantile that is not exported.
s/quantile="0\.99"/quantile="0.999"/
